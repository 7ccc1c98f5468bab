"""Measure training of the 1b student on one GPU and print one JSON object:
`python -m benchmarks.gpu` (at most 8 minutes), or with `--tiny` on the CPU.

Measured are the rate of matrix products (the reference of the MFU), attention by backend, the cost
of a new shape, and optimizer steps of the student with an expert of each shape that the preset 1b
has, with random weights: tokens per second, MFU, peak memory and the shares of the parts. The
baseline is a straightforward bf16 loop with dense logits and the same expert. What does not fit
into the time is listed under "skipped".

MFU: 6 operations per parameter and token of the student and 2 of the expert, divided by the time
and by the rate of matrix products that was measured in the same run.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
)

from benchmarks.timing import narrate
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, StudentConfig, load_config, to_json
from engine.distill.align.alignment import Alignment, align, concatenate
from engine.distill.align.blocks import EncodedBlock
from engine.distill.align.projection import Projector
from engine.distill.align.tables import build_tables
from engine.distill.attention import without_mask
from engine.distill.data.packing import Batch, make_batch
from engine.distill.device import to_device, turn_off_cudnn_attention
from engine.distill.teacher.head import linear_logits
from engine.distill.teacher.scoring import OnlineTargets, TeacherOutput
from engine.distill.teacher.soft_targets import SoftSource
from engine.distill.train.forward import hidden_states
from engine.distill.train.losses import distillation_loss
from engine.distill.train.session import Session
from engine.workspace import Workspace

MINUTES = 8.0
ALPHA, TEMPERATURE = 0.5, 2.0


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements: those of the preset 1b, or tiny ones."""

    tiny: bool
    gemm: int
    length: int
    heads: int
    head_size: int
    repetitions: int
    document: int
    """Tokens of a document; several share a packed row."""


FULL = Sizes(
    tiny=False, gemm=8192, length=2048, heads=16, head_size=128, repetitions=8, document=600
)
TINY = Sizes(tiny=True, gemm=256, length=128, heads=4, head_size=16, repetitions=1, document=50)

SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, int]]] = {
    "Qwen2.5-1.5B": (
        Qwen2Config,
        {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
        },
    ),
    "Llama-3.2-1B": (
        LlamaConfig,
        {
            "vocab_size": 128_256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "phi-2": (
        PhiConfig,
        {
            "vocab_size": 51_200,
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
        },
    ),
    "TinyLlama-1.1B": (
        LlamaConfig,
        {
            "vocab_size": 32_000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
    ),
}
_TINY_SHAPE = {
    "vocab_size": 600,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def expert_config(name: str, tiny: bool) -> PretrainedConfig:
    """The config of an expert's shape, or of a small model of its architecture."""
    kind, shape = SHAPES[name]
    options: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    options["tie_word_embeddings"] = name in ("Qwen2.5-1.5B", "Llama-3.2-1B")
    return kind(**(_TINY_SHAPE if tiny else shape), **options)


# Text: random byte strings as tokens, of vocabularies of the real sizes


class RandomVocabulary:
    """A vocabulary of random byte strings: the part of `ByteVocabulary` that the tables need.

    The first 256 tokens are the bytes; text is encoded by the longest match.
    """

    def __init__(self, size: int, seed: int) -> None:
        rng = random.Random(seed)
        tokens = {bytes([b]): None for b in range(256)}
        while len(tokens) < size:
            length = min(12, 2 + int(rng.expovariate(0.4)))
            tokens[bytes(rng.choices(b"etaoinshrdlu ", k=length))] = None
        self.size = size
        self.token_bytes: list[bytes | None] = list(tokens)
        self.ids = {token: n for n, token in enumerate(tokens)}
        self.longest = max(map(len, tokens))
        self.digest = f"random {size} {seed}"

    def first(self, data: bytes) -> int:
        for length in range(min(self.longest, len(data)), 0, -1):
            found = self.ids.get(data[:length])
            if found is not None:
                return found
        raise AssertionError("every byte is a token")

    def first_tokens(self, pieces: list[bytes]) -> np.ndarray:
        return np.array([self.first(piece) for piece in pieces], dtype=np.int32)

    def encode(self, data: bytes) -> np.ndarray:
        ids = []
        while data:
            ids.append(self.first(data))
            data = data[len(self.token_bytes[ids[-1]] or b"?") :]
        return np.array(ids, dtype=np.int64)

    def lengths(self, ids: np.ndarray) -> np.ndarray:
        return np.array([len(self.token_bytes[n] or b"") for n in ids.tolist()], dtype=np.int64)


@dataclass(frozen=True)
class Text:
    """One packed row of documents for student and expert.

    Attributes:
        blocks: the student's tokens of each document.
        teacher_ids: the expert's tokens of each document.
        alignment: of all documents, one after the other.
    """

    blocks: list[EncodedBlock]
    teacher_ids: list[np.ndarray]
    alignment: Alignment

    @property
    def student_tokens(self) -> int:
        return sum(len(block.ids) for block in self.blocks)

    @property
    def teacher_tokens(self) -> int:
        return sum(len(ids) for ids in self.teacher_ids)


def make_text(
    sizes: Sizes, student: RandomVocabulary, teacher: RandomVocabulary, seed: int
) -> Text:
    """Documents of random student tokens that fill a row."""
    rng = np.random.default_rng(seed)
    blocks, teacher_ids, alignments, used = [], [], [], 0
    while used + sizes.document <= sizes.length:
        drawn = rng.integers(256, student.size, sizes.document - 1)
        data = b"".join(student.token_bytes[n] or b"" for n in drawn.tolist())
        ids = student.encode(data)[: sizes.document - 1]
        data = b"".join(student.token_bytes[n] or b"" for n in ids.tolist())
        theirs = teacher.encode(data)
        scored = np.arange(1, len(ids) + 1)
        blocks.append(
            EncodedBlock(
                np.concatenate([[0], ids]), scored, np.zeros(len(ids), dtype=bool), len(data)
            )
        )
        teacher_ids.append(np.concatenate([[0], theirs]))
        alignments.append(align(theirs, teacher.lengths(theirs), ids, student.lengths(ids)))
        used += len(ids) + 1
    return Text(blocks, teacher_ids, concatenate(alignments))


# Timing


class Clock:
    """Seconds of a call, until the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def once(self, call: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - began

    def median(self, call: Callable[[], object], repetitions: int) -> float:
        call()
        return float(np.median([self.once(call) for _ in range(max(1, repetitions))]))


def gemm_rate(sizes: Sizes, clock: Clock, dtype: torch.dtype) -> float:
    """Operations per second of square matrix products."""
    n = sizes.gemm
    a, b = (torch.randn(n, n, device=clock.device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / clock.median(lambda: a @ b, 4 * sizes.repetitions)


def attention(sizes: Sizes, clock: Clock, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds of forward and backward by backend: causal, and with a mask of documents; and
    what the first call with a new length costs more than the next one."""
    found: dict[str, Any] = {}
    segments = torch.arange(sizes.length, device=clock.device) // sizes.document
    mask = (segments[:, None] == segments[None, :]).tril()[None, None]
    for backend in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
        for name, used in (("causal", None), ("documents", mask)):
            kernel = getattr(SDPBackend, backend)
            call = _attention_call(sizes, clock.device, dtype, sizes.length, used)
            try:
                with sdpa_kernel(kernel):
                    seconds = clock.median(call, sizes.repetitions)
                    fresh = sizes.length - sizes.length // 16
                    shorter = None if used is None else used[..., :fresh, :fresh]
                    new = _attention_call(sizes, clock.device, dtype, fresh, shorter)
                    first, again = clock.once(new), clock.once(new)
            except RuntimeError as error:
                found[f"{backend.lower()} {name}"] = str(error).split("\n")[0][:80]
                continue
            found[f"{backend.lower()} {name}"] = {
                "ms": 1e3 * seconds,
                "new_shape_ms": 1e3 * max(0.0, first - again),
            }
    found["varlen"] = _varlen(sizes, clock, dtype)
    return found


def _attention_call(
    sizes: Sizes, device: torch.device, dtype: torch.dtype, length: int, mask: Tensor | None
) -> Callable[[], None]:
    shape = (1, sizes.heads, length, sizes.head_size)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, requires_grad=True) for _ in range(3))

    def call() -> None:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        out.sum().backward()

    return call


def _varlen(sizes: Sizes, clock: Clock, dtype: torch.dtype) -> Any:
    """Milliseconds of packed attention without a mask, where this torch and device have it."""
    if clock.device.type != "cuda":
        return "needs CUDA"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "needs a newer torch"
    shape = (sizes.length, sizes.heads, sizes.head_size)
    q, k, v = (
        torch.randn(shape, device=clock.device, dtype=dtype, requires_grad=True) for _ in range(3)
    )
    edges = [*range(0, sizes.length, sizes.document), sizes.length]
    cu = torch.tensor(edges, device=clock.device, dtype=torch.int32)

    def call() -> None:
        out = varlen_attn(q, k, v, cu, cu, sizes.document, sizes.document, window_size=(-1, 0))
        assert isinstance(out, Tensor)
        out.sum().backward()

    try:
        return {"ms": 1e3 * clock.median(call, sizes.repetitions)}
    except RuntimeError as error:
        return str(error).split("\n")[0][:80]


# Steps


class Bench:
    """The student, and steps of it with one expert."""

    def __init__(self, sizes: Sizes, config: RunConfig, device: torch.device) -> None:
        self.sizes, self.config, self.device = sizes, config, device
        self.dtype = torch.bfloat16
        self.clock = Clock(device)
        torch.manual_seed(0)
        student = config.student
        shape = LlamaConfig(
            vocab_size=student.vocab_size,
            hidden_size=student.hidden_size,
            intermediate_size=student.intermediate_size,
            num_hidden_layers=student.num_hidden_layers,
            num_attention_heads=student.num_attention_heads,
            num_key_value_heads=student.num_key_value_heads,
            max_position_embeddings=student.max_position_embeddings,
            tie_word_embeddings=True,
            attn_implementation="sdpa",  # type: ignore[call-arg]
        )
        with torch.device(device):
            model = LlamaForCausalLM(shape)
        self.session = Session(model.train(), config.optimizer, config.guards, "random")
        self.vocabulary = RandomVocabulary(student.vocab_size, seed=1)

    def with_expert(self, name: str, rate: float, deadline: float) -> dict[str, Any]:
        """Figures of steps with an expert of this shape."""
        shape = expert_config(name, self.sizes.tiny)
        with torch.device(self.device):
            expert = AutoModelForCausalLM.from_config(shape, dtype=self.dtype)
        expert.eval().requires_grad_(False)
        vocabulary = RandomVocabulary(shape.vocab_size, seed=2)
        text = make_text(self.sizes, self.vocabulary, vocabulary, seed=3)
        tables = build_tables(vocabulary, self.vocabulary, [0], 0)  # type: ignore[arg-type]
        step = OnlineStep(self, expert, Projector(tables, self.device), text)
        work = 6 * _count(self.session.model) * text.student_tokens
        work += 2 * _count(expert) * text.teacher_tokens
        _reset_peak(self.device)
        ours = self.clock.median(step.ours, self.sizes.repetitions)
        figures = {"eager": _rates(ours, text, work, rate), "peak_gib": _peak(self.device)}
        figures["shares"] = {part: s / ours for part, s in step.parts(self.clock).items()}
        _reset_peak(self.device)
        plain = self.clock.median(step.plain, self.sizes.repetitions)
        figures["plain_loop"] = _rates(plain, text, work, rate)
        figures["plain_peak_gib"] = _peak(self.device)
        figures["speedup_over_plain"] = plain / ours
        if time.monotonic() < deadline and not self.sizes.tiny:
            figures["compiled"] = self._compiled(step, text, work, rate)
        return figures

    def _compiled(self, step: OnlineStep, text: Text, work: float, rate: float) -> Any:
        """The same with both trunks compiled, and the seconds that compiling took."""
        trunk, theirs = self.session.model.model, step.expert.base_model
        try:
            began = time.monotonic()
            trunk.compile()
            theirs.compile()
            step.ours()
            self.clock.wait()
            seconds = time.monotonic() - began
            ours = self.clock.median(step.ours, self.sizes.repetitions)
        except Exception as error:  # any error of the compiler is a finding
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        finally:
            trunk._compiled_call_impl = theirs._compiled_call_impl = None
        return {**_rates(ours, text, work, rate), "compile_seconds": seconds}

    def checkpoint(self, folder: Path) -> dict[str, float]:
        """Seconds in which training waits for a checkpoint, and its share at the interval."""
        store = CheckpointStore(folder, keep=2, keep_best=False)
        seconds = self.clock.once(
            lambda: store.save(
                self.session.state(0.0),
                config_json=to_json(self.config),
                config_digest="bench",
                reason="asked",
            )
        )
        interval = 60 * (self.config.checkpoint.interval_minutes or math.inf)
        return {"seconds": seconds, "share": seconds / (interval + seconds)}


class OnlineStep:
    """An optimizer step of one micro-batch, with an expert that scores it."""

    def __init__(self, bench: Bench, expert: Any, projector: Projector, text: Text) -> None:
        self.bench, self.expert, self.projector, self.text = bench, expert, projector, text
        self.memory_divisor = 1
        self.device = bench.device
        longest = max(map(len, text.teacher_ids))
        self.length = longest + -longest % 128
        ids = np.zeros((len(text.teacher_ids), self.length), dtype=np.int64)
        at = []
        for row, theirs in enumerate(text.teacher_ids):
            ids[row, : len(theirs)] = theirs
            at.append(row * self.length + np.arange(len(theirs) - 1))
        self.ids, self.at = torch.from_numpy(ids), torch.from_numpy(np.concatenate(at))

    # The parts of a step

    def data(self) -> Batch:
        return make_batch([self.text.blocks], self.device)

    @torch.no_grad()
    def teacher(self) -> Tensor:
        ids = to_device(self.ids, self.device)
        with without_mask(self.expert, self.length):
            hidden = self.expert.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[to_device(self.at, self.device)]

    def targets(self, hidden: Tensor) -> SoftSource:
        teacher: Any = _Head(self.expert, self.device)
        output = TeacherOutput(teacher, hidden, self.text.alignment)
        return OnlineTargets(output, self.projector, TEMPERATURE, self.device)

    def loss(self, hidden: Tensor, batch: Batch, targets: SoftSource | None) -> Tensor:
        return distillation_loss(
            hidden.flatten(0, 1)[batch.gather],
            self.bench.session.output_matrix,
            batch.labels,
            targets,
            alpha=ALPHA,
            temperature=TEMPERATURE,
            denominator=float(len(batch.labels)),
            compute_dtype=self.bench.dtype,
        ).loss

    def student(self, batch: Batch) -> Tensor:
        model = self.bench.session.model
        return hidden_states(
            model,
            batch.input_ids,
            batch.attention(self.bench.dtype),
            batch.position_ids,
            self.bench.dtype,
        )

    def optimize(self) -> None:
        session = self.bench.session
        torch.nn.utils.clip_grad_norm_(session.model.parameters(), 1.0)
        session.optimizer.step()
        session.optimizer.zero_grad(set_to_none=True)

    def ours(self) -> None:
        """A step as the trainer takes it."""
        batch = self.data()
        targets = self.targets(self.teacher())
        self.loss(self.student(batch), batch, targets).backward()
        self.optimize()

    @torch.no_grad()
    def _plain_teacher(self) -> Tensor:
        ids = to_device(self.ids, self.device)
        return self.expert(input_ids=ids, use_cache=False).logits

    def plain(self) -> None:
        """A straightforward loop: the expert's dense logits, the student's dense logits,
        cross-entropy, autocast."""
        self._plain_teacher()
        batch = self.data()
        labels = torch.full_like(batch.input_ids, -100)
        labels.view(-1)[batch.gather] = batch.labels
        model = self.bench.session.model
        with torch.autocast(self.device.type, dtype=self.bench.dtype):
            logits = model(
                input_ids=batch.input_ids,
                attention_mask=batch.mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        loss.backward()
        self.optimize()

    def parts(self, clock: Clock) -> dict[str, float]:
        """Seconds of each part of `ours`, measured one by one."""
        batch, hidden = self.data(), self.teacher()
        student = self.student(batch).detach().requires_grad_()
        repeat = self.bench.sizes.repetitions
        with_targets = clock.median(
            lambda: self.loss(student, batch, self.targets(hidden)).backward(), repeat
        )
        without = clock.median(lambda: self.loss(student, batch, None).backward(), repeat)
        found = {
            "data": clock.median(self.data, repeat),
            "teacher": clock.median(self.teacher, repeat),
            "projection": max(0.0, with_targets - without),
            "loss": without,
            "student forward": clock.median(lambda: self.student(batch), repeat),
        }
        self.optimize()
        return found


@dataclass(frozen=True)
class _Head:
    """The part of a teacher that `TeacherOutput` and `OnlineTargets` read."""

    model: Any
    device: torch.device
    memory_divisor: int = 1

    def logits(self, hidden: Tensor) -> Tensor:
        return linear_logits(self.model, hidden, None)


def _rates(seconds: float, text: Text, work: float, rate: float) -> dict[str, float]:
    return {
        "ms": 1e3 * seconds,
        "tokens_per_second": text.student_tokens / seconds,
        "mfu": work / seconds / rate,
    }


def _count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _reset_peak(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / (1 << 30) if device.type == "cuda" else None


def machine(device: torch.device) -> dict[str, Any]:
    """The device and the versions."""
    found: dict[str, Any] = {"device": device.type, "torch": torch.__version__}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"name": card.name, "memory_gib": card.total_memory / (1 << 30)}
    return found


def run(tiny: bool, shapes: list[str], minutes: float = MINUTES) -> dict[str, Any]:
    """All measurements, in the order of their value; those after the time limit are skipped."""
    deadline = time.monotonic() + 60 * minutes
    sizes = TINY if tiny else FULL
    device = torch.device("cuda" if torch.cuda.is_available() and not tiny else "cpu")
    turn_off_cudnn_attention()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace.find(folder)
        config = load_config(workspace, preset="nano" if tiny else "1b", experts=["smollm2"])
        if tiny:
            student = StudentConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                vocab_size=512,
            )
            config = msgspec.structs.replace(config, student=student)
        clock, dtype = Clock(device), torch.bfloat16
        result: dict[str, Any] = {"machine": machine(device), "tiny": tiny, "skipped": []}
        rate = gemm_rate(sizes, clock, dtype)
        result["gemm_tflops"] = rate / 1e12
        result["attention"] = attention(sizes, clock, dtype)
        bench = Bench(sizes, config, device)
        result["experts"] = {}
        for name in shapes:
            if time.monotonic() > deadline - 60:
                result["skipped"].append(name)
                continue
            narrate(f"steps with {name}")
            result["experts"][name] = bench.with_expert(name, rate, deadline - 120)
            gc.collect()
        if time.monotonic() < deadline - 30:
            result["checkpoint"] = bench.checkpoint(Path(folder) / "checkpoints")
        else:
            result["skipped"].append("checkpoint")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small sizes, on the CPU")
    parser.add_argument("--only", action="append", choices=SHAPES, metavar="EXPERT")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no GPU is available; --tiny runs on the CPU")
    print(json.dumps(run(options.tiny, options.only or list(SHAPES)), indent=2))


if __name__ == "__main__":
    main()
