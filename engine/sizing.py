"""Parameters, memory and disk space of a student, computed from its config without torch."""

from __future__ import annotations

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
    """Bytes of memory that training a student needs."""

    state: int
    """fp32 weights and gradients, and both moments of AdamW."""
    half_copy: int
    """bf16 copy of the weights, made by autocast."""
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.state + self.half_copy + self.activations + self.loss

    def sentence(self) -> str:
        """The numbers in one line."""
        return (
            f"{self.total / GIB:.1f} GiB (weights, gradients and AdamW {self.state / GIB:.1f}, "
            f"bf16 copy {self.half_copy / GIB:.1f}, activations and loss "
            f"{(self.activations + self.loss) / GIB:.1f})"
        )


def training_memory(config: RunConfig, half_precision: bool) -> MemoryNeed:
    """Estimated memory of one optimizer step.

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
    chunk = 3 * 4 * 256 * student.vocab_size
    output = 6 * student.vocab_size * student.hidden_size
    return MemoryNeed(
        state=16 * parameters,
        half_copy=2 * parameters if half_precision else 0,
        activations=kept + mask,
        loss=chunk + output,
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


def least_memory(config: RunConfig, half_precision: bool) -> MemoryNeed:
    """`training_memory` with all settings that save memory on a device: micro-batch size 1 and
    activation checkpointing."""
    optimizer = msgspec.structs.replace(
        config.optimizer, micro_batch_size=1, activation_checkpointing=True
    )
    return training_memory(msgspec.structs.replace(config, optimizer=optimizer), half_precision)
