"""Parameters, memory and disk space of a student, computed from its config without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from engine.config import RunConfig, StudentConfig

GIB = 1 << 30


@dataclass(frozen=True)
class ParameterCount:
    """Number of parameters of a student, by part."""

    embeddings: int
    layers: int
    norm: int

    @property
    def total(self) -> int:
        return self.embeddings + self.layers + self.norm


def parameter_count(student: StudentConfig) -> ParameterCount:
    """Number of parameters of a LlamaForCausalLM of this shape (without biases)."""
    hidden, mlp = student.hidden_size, student.intermediate_size
    head = hidden // student.num_attention_heads
    attention = 2 * hidden * hidden + 2 * hidden * head * student.num_key_value_heads
    layer = attention + 3 * hidden * mlp + 2 * hidden
    matrices = 1 if student.tie_word_embeddings else 2
    return ParameterCount(
        embeddings=matrices * student.vocab_size * hidden,
        layers=student.num_hidden_layers * layer,
        norm=hidden,
    )


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of memory that one phase of a run needs on its device, by part."""

    weights: int = 0
    """fp32."""
    gradients: int = 0
    """fp32."""
    moments: int = 0
    """Both moments of AdamW, fp32."""
    half_copy: int = 0
    """bf16 copy of the weights, made by autocast."""
    activations: int = 0
    loss: int = 0
    """Logits of one chunk with their gradient, and the output matrix in bf16 with its gradient."""
    teachers: int = 0
    """Weights of the experts that are in memory."""
    projection: int = 0
    """One pass of an expert, and the projection of one chunk of positions."""
    context: int = 0
    """CUDA context and workspaces of its libraries."""

    @property
    def state(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.moments

    @property
    def total(self) -> int:
        return sum(count for _, count in self.parts())

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Name and bytes of every part, in a fixed order."""
        return (
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("AdamW moments", self.moments),
            ("bf16 copy", self.half_copy),
            ("activations", self.activations),
            ("loss chunk", self.loss),
            ("experts", self.teachers),
            ("expert pass and projection", self.projection),
            ("CUDA context", self.context),
        )

    def sentence(self) -> str:
        """The numbers in one line."""
        parts = [
            ("weights, gradients and AdamW", self.state),
            ("bf16 copy", self.half_copy),
            ("activations and loss", self.activations + self.loss),
            ("experts", self.teachers),
            ("their passes and projection", self.projection),
            ("CUDA context", self.context),
        ]
        listed = ", ".join(
            f"{name} {count / GIB:.1f}" for n, (name, count) in enumerate(parts) if count or n < 3
        )
        return f"{self.total / GIB:.1f} GiB ({listed})"


TOKENS_PER_PASS = {"cpu": 2048, "cuda": 16384, "mps": 4096}
"""Tokens of one pass of an expert, padding included, by device type."""
PROJECTION_CHUNK = {"cpu": 64, "cuda": 1024, "mps": 1024}
"""Teacher positions whose probabilities are in memory at a time, by device type."""
CUDA_CONTEXT = 700 << 20
"""Estimated bytes of a CUDA context with the kernels and workspaces of its libraries."""
_LARGEST_VOCABULARY = 152_000
_GPU_LOGITS = 1 << 26
"""Logits of a chunk of the loss on a GPU (engine/distill/train/logits.py)."""


def training_memory(
    config: RunConfig, half_precision: bool, device: str = "cpu", experts: Sequence[int] = ()
) -> MemoryNeed:
    """Estimated memory of one optimizer step.

    Args:
        device: its type: the chunks of loss and projection are larger on a GPU.
        experts: parameters of each expert that is in memory with the student.

    Activations: for a Llama block autograd keeps about 16 vectors of hidden_size and 5 of
    intermediate_size per token, half of them in bf16; with activation checkpointing one block of
    these and one vector of hidden_size per layer.
    """
    student, optimizer = config.student, config.optimizer
    parameters = parameter_count(student).total
    tokens = optimizer.micro_batch_size * optimizer.max_seq_len
    width = 3 if half_precision else 4
    block = tokens * width * (16 * student.hidden_size + 5 * student.intermediate_size)
    if optimizer.activation_checkpointing:
        kept = block + tokens * 4 * student.hidden_size * student.num_hidden_layers
    else:
        kept = block * student.num_hidden_layers
    mask = optimizer.micro_batch_size * optimizer.max_seq_len**2
    scoring = scoring_memory(experts, half_precision, device)
    return MemoryNeed(
        weights=4 * parameters,
        gradients=4 * parameters,
        moments=8 * parameters,
        half_copy=2 * parameters if half_precision else 0,
        activations=kept + mask,
        loss=_loss_bytes(student, device, tokens, online=bool(experts)),
        teachers=scoring.teachers,
        projection=scoring.projection,
        context=scoring.context,
    )


def _loss_bytes(student: StudentConfig, device: str, tokens: int, online: bool) -> int:
    matrix = student.vocab_size * student.hidden_size
    if device == "cpu":
        return 3 * 4 * 256 * student.vocab_size + 6 * matrix
    positions = min(tokens, max(256, _GPU_LOGITS // student.vocab_size))
    # fp32 logits, their bf16 copy and e^z; online also dense targets, at most a projection's chunk
    chunk = positions * student.vocab_size * 10
    if online:
        chunk += min(positions, PROJECTION_CHUNK[device]) * student.vocab_size * 8
    return chunk + 10 * matrix


def scoring_memory(experts: Sequence[int], half_precision: bool, device: str) -> MemoryNeed:
    """Estimated memory of experts (their parameters) that are loaded together and score text.

    The width H of a model of P parameters is at most about 2 P^(1/3); a pass keeps about 18 H
    numbers per token in one layer. The largest vocabulary of the built-in experts is assumed. The
    key-value cache of generation is left out: it gets what is free, and halves its batch.
    """
    context = CUDA_CONTEXT if device == "cuda" else 0
    largest = max(experts, default=0)
    if not largest:
        return MemoryNeed(context=context)
    width = 2 if half_precision else 4
    hidden = round(2 * largest ** (1 / 3))
    one_pass = TOKENS_PER_PASS[device] * 18 * hidden * width
    vocabulary = min(_LARGEST_VOCABULARY, largest // 512)
    # logits in the products' type and fp32, and three copies over the student's vocabulary
    projection = PROJECTION_CHUNK[device] * (vocabulary * (width + 4) + 3 * 4 * 32_000)
    return MemoryNeed(
        teachers=width * sum(experts),
        projection=max(one_pass, projection),
        context=context,
    )


def checkpoint_bytes(student: StudentConfig) -> int:
    """Bytes of a full checkpoint: fp32 weights and both moments of AdamW."""
    return 12 * parameter_count(student).total


@dataclass(frozen=True)
class DiskNeed:
    """Bytes on disk that a run needs below its root, without the experts."""

    checkpoints: int
    """The full checkpoints that are kept, one from before the decay, one being written, and the
    best weights."""
    targets: int
    """Scored text (cached targets)."""
    model: int
    """The finished model and its GGUF file."""

    @property
    def total(self) -> int:
        return self.checkpoints + self.targets + self.model


def disk_need(config: RunConfig, scored_tokens: int) -> DiskNeed:
    """Upper estimate of a run's disk space.

    scored_tokens: tokens whose targets are stored, all experts together.
    """
    parameters = parameter_count(config.student).total
    full = config.checkpoint.keep + 2
    best = 4 * parameters if config.checkpoint.keep_best else 0
    targets = config.targets
    # 2 bytes for an id, 4 for a probability, and about 25 other bytes per position
    position = 25 + 6 * targets.top_k + 2 * targets.draws * targets.draw_epochs
    return DiskNeed(
        checkpoints=full * checkpoint_bytes(config.student) + best,
        targets=position * scored_tokens,
        model=4 * parameters,
    )


def least_memory(
    config: RunConfig, half_precision: bool, device: str = "cpu", experts: Sequence[int] = ()
) -> MemoryNeed:
    """`training_memory` with all settings that save memory on a device: micro-batch size 1 and
    activation checkpointing."""
    optimizer = msgspec.structs.replace(
        config.optimizer, micro_batch_size=1, activation_checkpointing=True
    )
    smaller = msgspec.structs.replace(config, optimizer=optimizer)
    return training_memory(smaller, half_precision, device, experts)
