"""The audit job: how well the student's tokenizer aligns with each expert's on a sample
text, before training; and how fast this device multiplies matrices.

It uses the alignment and projection of training, so that its figures are comparable to a run's
DataReady. `engine.doctor` decides whether they are good enough.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from engine import hardware
from engine.chat import ChatRenderer
from engine.checkpoint.layout import TOKENIZER
from engine.config import RunConfig
from engine.distill.align.blocks import BlockEncoder, ChatEncoder, TextBlock
from engine.distill.align.projection import Projector
from engine.distill.align.tables import load_tables
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data.corpus import TextStats
from engine.distill.device import device_and_dtype
from engine.distill.student import load_tokenizer, student_encoder, train_tokenizer
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.loading import load_tokenizer as load_teacher_tokenizer
from engine.distill.teacher.scoring import projection_chunk, teacher_encoder, teacher_forward
from engine.distill.teacher.teacher import Teacher, end_tokens
from engine.errors import GladiusError
from engine.events import JobRequest, KindAudit, SpeedMeasured, TokenizersAudited
from engine.experts.registry import ExpertSpec, expert_path, load_experts
from engine.run.job import JobContext, JobStopped
from engine.text.examples import Example, read_data_file
from engine.workspace import Workspace, assets_dir

SAMPLE = "audit/sample.jsonl"
"""The sample text, in assets/; the `capability` of a line is its kind of text."""


class AuditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request of the job, sent as JSON in place of a config."""

    config: RunConfig
    root: str
    """Root of the experts; the job itself may run in a temporary root."""
    experts: list[str]
    """Registered experts whose tokenizers are present."""
    listen: bool = False
    """Also run each expert over the sample: weight and residual depend on its predictions."""
    speed: bool = True


def main(ctx: JobContext, request: JobRequest) -> int:
    """Audit the requested experts, one event each; returns the worker's exit code."""
    audit_request = msgspec.json.decode(request.config, type=AuditRequest)
    try:
        _audit_all(Workspace.find(audit_request.root), audit_request, ctx)
    except JobStopped:
        return ctx.ended("stopped", "asked")
    return ctx.ended("completed")


def _audit_all(workspace: Workspace, request: AuditRequest, ctx: JobContext) -> None:
    config = request.config
    device, dtype = device_and_dtype(config, hardware.has_bf16)
    if request.speed:
        ctx.checkpoint_point("measuring the device")
        flops = matmul_flops(device, dtype)
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        ctx.emit(SpeedMeasured(device=device.type, precision=precision, flops=flops))
    if not request.experts:
        return
    with ctx.busy("reading the student's tokenizer"):
        tokenizer, source = student_tokenizer(workspace, config)
    student = student_encoder(tokenizer, config.student.vocab_size)
    sample = list(read_data_file(assets_dir() / SAMPLE))
    known = load_experts(workspace)
    for name in request.experts:
        spec = known[name]
        ctx.checkpoint_point(f"auditing {spec.title}")
        if request.listen:
            ctx.log(f"scoring the sample with {spec.title} on {device.type}")
        try:
            with ctx.busy(f"auditing {spec.title}"):
                teacher = _load(workspace, spec, device, dtype) if request.listen else None
                event = audit(
                    workspace, spec, student, sample, config, teacher, ctx.checkpoint_point
                )
            event = msgspec.structs.replace(event, student=source)
        except (GladiusError, ValueError, OSError) as error:
            problem = " ".join(str(error).split()).removeprefix(f"expert {name}: ")
            event = TokenizersAudited(expert=name, student=source, problem=problem)
        teacher = None
        gc.collect()
        ctx.emit(event)


def _load(
    workspace: Workspace, spec: ExpertSpec, device: torch.device, dtype: torch.dtype
) -> Teacher:
    return load_teacher(expert_path(workspace, spec), spec, device, dtype)


def student_tokenizer(
    workspace: Workspace, config: RunConfig
) -> tuple[PreTrainedTokenizerFast, str]:
    """The student's tokenizer and a description of where it is from.

    A tokenizer that a run trains on its own text does not exist before the run: a substitute is
    trained in the same way on the conversations in assets/.
    """
    name, size = config.student.tokenizer, config.student.vocab_size
    known = load_experts(workspace)
    if name in known:
        return load_tokenizer(expert_path(workspace, known[name]), size), f"{name}'s"
    if name != "train":
        return load_tokenizer(Path(name), size), name
    kept = workspace.checkpoints_dir / TOKENIZER
    if (kept / "tokenizer.json").is_file():
        try:
            return load_tokenizer(kept, size), "the run's own"
        except GladiusError:
            pass  # from a run with another vocabulary size
    examples = read_data_file(assets_dir() / "conversations" / "demo.jsonl")
    texts = (m.content for example in examples for m in example.messages or ())
    return train_tokenizer(dict.fromkeys(texts), size), "a stand-in, trained on shipped text"


def audit(
    workspace: Workspace,
    spec: ExpertSpec,
    student: ChatEncoder,
    sample: Sequence[Example],
    config: RunConfig,
    teacher: Teacher | None = None,
    heartbeat: Callable[[str], None] = lambda doing: None,
) -> TokenizersAudited:
    """One expert's audit; weight and residual are measured if its loaded `teacher` is passed.

    GladiusError or ValueError where its tokenizer cannot be read or has no byte-exact tokens.
    """
    expert = tokenizer_encoder(expert_path(workspace, spec), spec)
    encoder = BlockEncoder(student, expert, config.optimizer.max_seq_len, spec.trust_end)
    encoded = _encode(sample, encoder)
    weight = residual = None
    if teacher is not None:
        # The loaded model's vocabulary has all rows of its embedding matrix.
        vocabulary = teacher_encoder(teacher).vocabulary
        tables = load_tables(
            workspace.experts_cache_dir,
            vocabulary,
            student.vocabulary,
            teacher.end_ids,
            student.end_ids[0],
        )
        projector = Projector(tables, teacher.device, config.targets.min_mass)
        weight, residual = _mean_weight(teacher, projector, encoded.blocks, heartbeat)
    stats = encoded.stats.event(spec.name, len(encoded.blocks), 0)
    return TokenizersAudited(
        expert=spec.name,
        reachable=reachable(expert.vocabulary, student.vocabulary),
        blocks=stats.blocks,
        skipped_blocks=stats.skipped_blocks,
        positions=stats.positions,
        aligned=stats.aligned,
        inside=stats.inside,
        crossing=stats.crossing,
        mean_weight=weight,
        mean_residual=residual,
        kinds=tuple(
            KindAudit(kind=kind, positions=count, aligned=aligned / count)
            for kind, (count, aligned) in encoded.kinds.items()
        ),
    )


def tokenizer_encoder(path: Path, spec: ExpertSpec) -> ChatEncoder:
    """An expert's encoder from its tokenizer files alone; no weights are read."""
    tokenizer = load_teacher_tokenizer(path, spec)
    ends: object = None
    if path.suffix != ".gguf":
        try:
            ends = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
        except (OSError, ValueError):
            pass  # it has none: the tokenizer's EOS is used
    renderer = ChatRenderer(tokenizer, spec.chat)
    return ChatEncoder(tokenizer, renderer, end_tokens(tokenizer, spec, ends))


@dataclass
class _EncodedSample:
    blocks: list[TextBlock] = field(default_factory=list)
    stats: TextStats = field(default_factory=TextStats)
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Positions and aligned positions of each kind of text."""


def _encode(sample: Sequence[Example], encoder: BlockEncoder) -> _EncodedSample:
    """The sample as blocks, with statistics as in a run."""
    encoded = _EncodedSample()
    for example in sample:
        found = encoder.encode(example)
        encoded.stats.skipped += bool(found.problem)
        for block in found.blocks:
            encoded.stats.add_block(block)
            encoded.blocks.append(block)
            kind = example.capability or "text"
            count, aligned = encoded.kinds.get(kind, (0, 0))
            aligned_here = int((block.alignment.offset == 0).sum())
            encoded.kinds[kind] = (count + len(block.alignment), aligned + aligned_here)
    return encoded


def reachable(teacher: ByteVocabulary, student: ByteVocabulary) -> float:
    """Share of the student's tokens with bytes whose bytes are also one token of the teacher."""
    spelled = [spelling for spelling in student.token_bytes if spelling is not None]
    teacher_spellings = {spelling for spelling in teacher.token_bytes if spelling is not None}
    return sum(spelling in teacher_spellings for spelling in spelled) / max(1, len(spelled))


def _mean_weight(
    teacher: Teacher,
    projector: Projector,
    blocks: Sequence[TextBlock],
    heartbeat: Callable[[str], None],
) -> tuple[float, float]:
    """Mean weight and residual of the expert over the blocks, as in a run's shards."""
    weight = residual = 0.0
    count = 0
    for start in range(0, len(blocks), 8):
        output = teacher_forward(teacher, blocks[start : start + 8], heartbeat)
        for projected in output.project(projector, projection_chunk(teacher.device)):
            weight += float(projected.weight.sum())
            residual += float(projected.residual.sum())
            count += len(projected.index)
    return weight / max(1, count), residual / max(1, count)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a square matrix product, the best of several."""
    size = 2048 if device.type == "cpu" else 8192

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()

    a = torch.randn(size, size, device=device).to(dtype)
    product = torch.empty_like(a)
    fastest = float("inf")
    for _ in range(6):
        wait()
        began = time.perf_counter()
        torch.mm(a, a, out=product)
        wait()
        fastest = min(fastest, time.perf_counter() - began)
    return 2 * size**3 / fastest
