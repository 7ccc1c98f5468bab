"""The memory that a run needs on a device, which GPUs are large enough, and the settings that would
fit. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from engine.budget import scores_online
from engine.config import RunConfig
from engine.sizing import GIB, MemoryNeed, least_memory, scoring_memory, training_memory

CARDS = (("16 GB", 15.6), ("24 GB", 23.6), ("48 GB", 47.4), ("80 GB", 79.1))
"""GPUs by their memory, and what of it is free on an idle one, in GiB."""


class ExpertSize(Protocol):
    """The part of an expert's registration that its memory depends on."""

    @property
    def parameters(self) -> int: ...


@dataclass(frozen=True)
class RunMemory:
    """What a run needs on its device.

    Attributes:
        configured: with the settings of the config.
        least: with micro-batch size 1 and activation checkpointing.
    """

    configured: MemoryNeed
    least: MemoryNeed


def run_memory(
    config: RunConfig,
    experts: Sequence[ExpertSize],
    half: bool,
    device: str,
    online: bool | None = None,
) -> RunMemory:
    """The larger of the needs of a run's phases.

    With `online` scoring (None: as the config sets it) all experts are loaded together with the
    student; otherwise one expert at a time, before the student.
    """
    online = scores_online(config) if online is None else online
    sizes = [expert.parameters for expert in experts]
    together = sizes if online else []
    alone = [scoring_memory([size], half, device) for size in ([] if online else sizes)]

    def largest(training: MemoryNeed) -> MemoryNeed:
        return max([training, *alone], key=lambda need: need.total)

    return RunMemory(
        configured=largest(training_memory(config, half, device, together)),
        least=largest(least_memory(config, half, device, together)),
    )


def verdict(memory: RunMemory, free: float) -> str:
    """Whether a run fits into `free` bytes: "fits", "with activation checkpointing" or
    "does not fit"."""
    if memory.configured.total <= free:
        return "fits"
    return "with activation checkpointing" if memory.least.total <= free else "does not fit"


def parts_text(need: MemoryNeed) -> str:
    """The parts of a need that are not zero, in GiB: `weights 4.3, gradients 4.3, ...`."""
    return ", ".join(f"{name} {count / GIB:.1f}" for name, count in need.parts() if count)


def cards_text(config: RunConfig, experts: Sequence[ExpertSize], half: bool) -> str:
    """The verdict on each of `CARDS`: `16 GB does not fit, 24 GB fits, ...`."""
    memory = run_memory(config, experts, half, "cuda")
    return ", ".join(f"{name} {verdict(memory, free * GIB)}" for name, free in CARDS)


def settings_that_fit(
    config: RunConfig, experts: Sequence[ExpertSize], half: bool, device: str, free: float
) -> tuple[str, ...] | None:
    """The smallest change of the config that fits into `free` bytes, as `section.field=value`.

    Tried in order: micro-batch size 1 and activation checkpointing, text that is scored before
    training, shorter sequences. None: no change of these fits.
    """
    for changes in _candidates(config):
        changed = _with_changes(config, changes)
        if run_memory(changed, experts, half, device).configured.total <= free:
            return tuple(f"{name}={_toml(value)}" for name, value in changes.items())
    return None


def _candidates(config: RunConfig) -> Iterator[dict[str, object]]:
    optimizer = config.optimizer
    saving: dict[str, object] = {}
    if optimizer.micro_batch_size > 1:
        saving["optimizer.micro_batch_size"] = 1
    if not optimizer.activation_checkpointing:
        saving["optimizer.activation_checkpointing"] = True
    cached: dict[str, object] = {}
    if scores_online(config):
        cached = {"data.corpora": [], "targets.source": "cached"}
    lengths = [n for n in (1024, 512, 256) if n < optimizer.max_seq_len]
    yield saving
    if cached:
        yield cached
        yield {**saving, **cached}
    for length in lengths:
        yield {**saving, **cached, "optimizer.max_seq_len": length}


def _with_changes(config: RunConfig, changes: dict[str, object]) -> RunConfig:
    for name, value in changes.items():
        section, _, field = name.partition(".")
        part = msgspec.structs.replace(getattr(config, section), **{field: value})
        config = msgspec.structs.replace(config, **{section: part})
    return config


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
