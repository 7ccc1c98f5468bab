"""Owns the arithmetic of sizes: parameters, memory and disk of a student, without torch.

It does not measure anything; `hardware` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from engine.config import RunConfig, StudentConfig

GIB = 1 << 30


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a student, by part."""

    embeddings: int
    layers: int
    norm: int

    @property
    def total(self) -> int:
        return self.embeddings + self.layers + self.norm


def parameter_count(student: StudentConfig) -> ParameterCount:
    """Parameters of a LlamaForCausalLM of this shape (no biases)."""
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
    """Bytes that training a student takes."""

    state: int
    """fp32 weights, gradients and both moments of AdamW."""
    half_copy: int
    """The bf16 copy of the weights that autocast makes."""
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.state + self.half_copy + self.activations + self.loss

    def sentence(self) -> str:
        """The figures in a few words."""
        return (
            f"{self.total / GIB:.1f} GiB (weights, gradients and AdamW {self.state / GIB:.1f}, "
            f"bf16 copy {self.half_copy / GIB:.1f}, activations and loss "
            f"{(self.activations + self.loss) / GIB:.1f})"
        )


def training_memory(config: RunConfig, half_precision: bool) -> MemoryNeed:
    """What one optimizer step of this run takes, estimated.

    Activations: what autograd keeps of a Llama block is about 16 hidden-sized and 5 MLP-sized
    vectors a token, half of them in bf16; with activation checkpointing one block of those and a
    hidden-sized vector a layer.
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
    """A full checkpoint: fp32 weights and both moments."""
    return 12 * parameter_count(student).total


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a run writes below its root, without the experts themselves."""

    checkpoints: int
    """Full ones that stay, the one kept from before a decay, the next one, and the best weights."""
    targets: int
    """Scored text (cached targets)."""
    model: int
    """The finished model, and its GGUF file."""

    @property
    def total(self) -> int:
        return self.checkpoints + self.targets + self.model


def disk_need(config: RunConfig, scored_tokens: int) -> DiskNeed:
    """What a run takes on disk at most; `scored_tokens` are those whose targets are
    kept, all experts together."""
    parameters = parameter_count(config.student).total
    full = config.checkpoint.keep + 2
    best = 4 * parameters if config.checkpoint.keep_best else 0
    kept = config.targets
    # ids of two bytes, masses of four, and some twenty-five bytes that each position has besides
    position = 25 + 6 * kept.top_k + 2 * kept.draws * kept.draw_epochs
    return DiskNeed(
        checkpoints=full * checkpoint_bytes(config.student) + best,
        targets=position * scored_tokens,
        model=4 * parameters,
    )


def least_memory(config: RunConfig, half_precision: bool) -> MemoryNeed:
    """As `training_memory`, on the last rung before another device: rows one by one, activations
    computed anew in the backward pass."""
    optimizer = msgspec.structs.replace(
        config.optimizer, micro_batch_size=1, activation_checkpointing=True
    )
    return training_memory(msgspec.structs.replace(config, optimizer=optimizer), half_precision)
