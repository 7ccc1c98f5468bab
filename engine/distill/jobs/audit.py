"""Owns the tokenizer audit: how the student's tokenizer lies beside each expert's over a sample of
text that ships, before anything is trained; and how fast this device multiplies. A job.

It measures with the engine's own alignment and projection, so its figures mean what a run's
DataReady means. Whether they are good enough is `engine.doctor`'s to say.
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
from engine.checkpoint.layout import TOKENIZER
from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder, TextBlock, make_blocks
from engine.distill.align.projection import Projector, load_tables
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.data.corpus import Tally
from engine.distill.jobs.preparation import device_and_dtype
from engine.distill.student import load_tokenizer, student_encoder, train_tokenizer
from engine.distill.teacher.scoring import projection_chunk, teacher_encoder, teacher_forward
from engine.distill.teacher.teacher import Teacher, end_tokens, load_teacher, render_chat
from engine.distill.teacher.teacher import load_tokenizer as load_teacher_tokenizer
from engine.errors import GladiusError
from engine.events import JobRequest, KindAudit, SpeedMeasured, TokenizersAudited
from engine.experts.registry import ExpertSpec, expert_path, load_experts
from engine.run.job import JobContext, JobStopped
from engine.text.examples import Example, Message, read_data_file
from engine.workspace import Workspace, assets_dir

SAMPLE = "audit/sample.jsonl"
"""The text that ships for it, below assets/; the `capability` of a line is its kind of text."""


class AuditRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the job is asked: its config as JSON."""

    config: RunConfig
    root: str
    """Where the experts lie; the job itself may run on a root that is thrown away."""
    experts: list[str]
    """Registered experts that have a tokenizer here."""
    listen: bool = False
    """Run each expert over the sample too: weight and residual depend on what it says."""
    speed: bool = True


def main(ctx: JobContext, request: JobRequest) -> int:
    """Audits the experts asked for, one event each; returns the worker's exit code."""
    asked = msgspec.json.decode(request.config, type=AuditRequest)

    try:
        _audit_all(Workspace.find(asked.root), asked, ctx)
    except JobStopped:
        return ctx.ended("stopped", "asked")
    return ctx.ended("completed")


def _audit_all(workspace: Workspace, asked: AuditRequest, ctx: JobContext) -> None:
    config = asked.config
    device, dtype = device_and_dtype(config, hardware.has_bf16)
    if asked.speed:
        ctx.checkpoint_point("measuring the device")
        flops = matmul_flops(device, dtype)
        precision = "bf16" if dtype == torch.bfloat16 else "fp32"
        ctx.emit(SpeedMeasured(device=device.type, precision=precision, flops=flops))
    if not asked.experts:
        return
    with ctx.busy("reading the student's tokenizer"):
        tokenizer, source = student_tokenizer(workspace, config)
    student = student_encoder(tokenizer, config.student.vocab_size)
    sample = list(read_data_file(assets_dir() / SAMPLE))
    known = load_experts(workspace)
    for name in asked.experts:
        spec = known[name]
        ctx.checkpoint_point(f"auditing {spec.title}")
        if asked.listen:
            ctx.log(f"scoring the sample with {spec.title} on {device.type}")
        try:
            with ctx.busy(f"auditing {spec.title}"):
                teacher = _load(workspace, spec, device, dtype) if asked.listen else None
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
    """The student's tokenizer and where it comes from, in words.

    One that a run would train on its own text does not exist before the run: a stand-in is trained
    on the conversations that ship, the way a run would.
    """
    wanted, size = config.student.tokenizer, config.student.vocab_size
    known = load_experts(workspace)
    if wanted in known:
        return load_tokenizer(expert_path(workspace, known[wanted]), size), f"{wanted}'s"
    if wanted != "train":
        return load_tokenizer(Path(wanted), size), wanted
    kept = workspace.checkpoints_dir / TOKENIZER
    if (kept / "tokenizer.json").is_file():
        try:
            return load_tokenizer(kept, size), "the run's own"
        except GladiusError:
            pass  # of a run with another vocabulary
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
    serve: Callable[[str], None] = lambda doing: None,
) -> TokenizersAudited:
    """One expert's audit; with `teacher` it is run over the sample, for weight and residual.

    GladiusError or ValueError where its tokenizer can't be read or has no byte-exact tokens.
    """
    reader = tokenizer_encoder(expert_path(workspace, spec), spec)
    read = _read(sample, student, reader, spec, config)
    weight = residual = None
    if teacher is not None:
        # As the loaded model has it: with the rows of its embedding matrix.
        vocabulary = teacher_encoder(teacher).vocabulary
        tables = load_tables(
            workspace.experts_cache_dir,
            vocabulary,
            student.vocabulary,
            teacher.end_token_ids,
            student.end_ids[0],
        )
        projector = Projector(tables, teacher.device, config.targets.min_mass)
        weight, residual = _listen(teacher, projector, read.blocks, serve)
    told = read.tally.event(spec.name, len(read.blocks), 0)
    return TokenizersAudited(
        expert=spec.name,
        reachable=reachable(reader.vocabulary, student.vocabulary),
        blocks=told.blocks,
        skipped_blocks=told.skipped_blocks,
        positions=told.positions,
        aligned=told.aligned,
        inside=told.inside,
        crossing=told.crossing,
        mean_weight=weight,
        mean_residual=residual,
        kinds=tuple(
            KindAudit(kind=kind, positions=count, aligned=aligned / count)
            for kind, (count, aligned) in read.kinds.items()
        ),
    )


def tokenizer_encoder(path: Path, spec: ExpertSpec) -> ChatEncoder:
    """How an expert reads text, from its small files alone: no weights are opened."""
    tokenizer = load_teacher_tokenizer(path, spec)
    ends: object = None
    if path.suffix != ".gguf":
        try:
            ends = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
        except (OSError, ValueError):
            pass  # it has none: the tokenizer's own end must do

    def render(chat: list[dict[str, str]]) -> str:
        return render_chat(tokenizer, spec, [Message(**turn) for turn in chat])  # type: ignore[arg-type]

    return ChatEncoder(tokenizer, render, end_tokens(tokenizer, spec, ends))


@dataclass
class _Read:
    blocks: list[TextBlock] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    kinds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Positions and aligned positions of each kind of text."""


def _read(
    sample: Sequence[Example],
    student: ChatEncoder,
    teacher: ChatEncoder,
    spec: ExpertSpec,
    config: RunConfig,
) -> _Read:
    """The sample as both read it, cut into blocks as a run would."""
    read = _Read()
    longest = config.optimizer.max_seq_len
    for example in sample:
        for block in make_blocks(
            example,
            student,
            teacher,
            max_student_tokens=longest,
            max_teacher_tokens=max(longest, 2048),
            trust_end=spec.trust_end,
        ):
            if block is None or not len(block.alignment):
                read.tally.skipped += 1
                continue
            read.tally.block(block)
            read.blocks.append(block)
            kind = example.capability or "text"
            count, aligned = read.kinds.get(kind, (0, 0))
            here = int((block.alignment.offset == 0).sum())
            read.kinds[kind] = (count + len(block.alignment), aligned + here)
    return read


def reachable(teacher: ByteVocabulary, student: ByteVocabulary) -> float:
    """Share of the student's tokens (those that have bytes) that are tokens of the teacher, byte
    for byte: the others it can only come to through several of its own."""
    spelled = [spelling for spelling in student.token_bytes if spelling is not None]
    theirs = {spelling for spelling in teacher.token_bytes if spelling is not None}
    return sum(spelling in theirs for spelling in spelled) / max(1, len(spelled))


def _listen(
    teacher: Teacher,
    projector: Projector,
    blocks: Sequence[TextBlock],
    serve: Callable[[str], None],
) -> tuple[float, float]:
    """Mean weight and residual of the expert over the blocks, as a run's shards have them."""
    weight = residual = 0.0
    count = 0
    for start in range(0, len(blocks), 8):
        output = teacher_forward(teacher, blocks[start : start + 8], serve)
        for projected in output.project(projector, projection_chunk(teacher.device)):
            weight += float(projected.weight.sum())
            residual += float(projected.residual.sum())
            count += len(projected.index)
    return weight / max(1, count), residual / max(1, count)


def matmul_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a square matrix product, the best of several."""
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
