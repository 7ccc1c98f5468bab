"""Doctor checks of the machine: Python, torch, GPU, CPU, memory, disk and optional tools.

Most are pure functions of readings. Nothing here imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from engine.config import RunConfig
from engine.doctor.check import Check, gib
from engine.events import GpuReading
from engine.experts.registry import ExpertSpec, ExpertStatus
from engine.memory_plan import cards_text, parts_text, run_memory, settings_that_fit
from engine.programs import find_python, find_quantizer
from engine.sizing import (
    GIB,
    checkpoint_bytes,
    disk_need,
    parameter_count,
)

LARGE = 100_000_000
"""A student with more parameters needs a GPU, or at least `CORES` cores, to train in days."""
CORES = 8
GRACE_SECONDS = 10.0
"""Seconds from SIGTERM to SIGKILL of `docker stop`; systemd waits 90 s, Slurm 30 s."""


def check_python() -> Check:
    """The Python version and platform; always ok."""
    figure = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return Check(topic="python", status="ok", figure=figure)


def torch_build() -> tuple[str, str]:
    """(version, CUDA version) of the installed torch, read without importing it.

    The CUDA version is "" for a CPU build; both are "" if torch is not installed.
    """
    try:
        version = metadata.version("torch")
        found = importlib.util.find_spec("torch")
    except (metadata.PackageNotFoundError, ImportError, ValueError):
        return "", ""
    if found is None or found.origin is None:
        return "", ""
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return version, ""
    cuda = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)", text, re.MULTILINE)
    return version, cuda[1] if cuda else ""


def check_torch(version: str, cuda: str, gpus: Sequence[GpuReading], config: RunConfig) -> Check:
    """Whether torch is installed, with CUDA if there is a GPU."""
    if not version:
        return Check(
            topic="torch", status="fail", figure="not installed", remedy="install with: make setup"
        )
    figure = f"{version}, " + (f"built for CUDA {cuda}" if cuda else "built without CUDA")
    if not cuda and (gpus or config.device.device == "cuda"):
        return Check(
            topic="torch",
            status="fail" if config.device.device == "cuda" else "warn",
            figure=figure,
            remedy="install a CUDA build: https://pytorch.org/get-started/locally",
        )
    return Check(topic="torch", status="ok", figure=figure)


def check_gpu(
    gpus: Sequence[GpuReading], driver: str, config: RunConfig, specs: Sequence[ExpertSpec]
) -> Check:
    """Which GPUs are visible, and whether this student needs one."""
    if gpus:
        names = ", ".join(f"{gpu.name} {gib(gpu.total_bytes)}" for gpu in gpus)
        return Check(topic="gpu", status="ok", figure=f"{names}, driver {driver or 'unknown'}")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    figure = "none" if hidden is None else f"none under CUDA_VISIBLE_DEVICES={hidden!r}"
    if config.device.device == "cuda":
        return Check(
            topic="gpu",
            status="fail",
            figure=figure,
            remedy="install the NVIDIA driver (nvidia-smi must work), or: --set device.device=auto",
        )
    if config.device.device == "auto" and parameter_count(config.student).total > LARGE:
        least = gib(memory_needs(config, specs, True, device="cuda")[1])
        return Check(
            topic="gpu",
            status="warn",
            figure=f"{figure}; training would run on the CPU",
            remedy=f"use a GPU with more than {least} of memory to train this student in days",
        )
    return Check(topic="gpu", status="ok", figure=f"{figure}, not needed")


def check_processor(cores: int, bf16: bool, config: RunConfig) -> Check:
    """Whether the CPU has enough cores for this student; reports its bf16 support."""
    figure = f"{cores} core{'s' if cores > 1 else ''}, "
    figure += "bf16 in hardware" if bf16 else "no bf16 support: fp32 is used"
    if cores < CORES and parameter_count(config.student).total > LARGE:
        return Check(
            topic="processor",
            status="warn",
            figure=figure,
            remedy=f"use {CORES} cores or more for a student of this size",
        )
    return Check(topic="processor", status="ok", figure=figure)


def memory_needs(
    config: RunConfig,
    specs: Sequence[ExpertSpec],
    half: bool,
    online: bool | None = None,
    device: str = "cpu",
) -> tuple[int, int]:
    """Bytes on the device that the run needs: (as configured, with activation checkpointing); see
    `memory_plan.run_memory`."""
    memory = run_memory(config, specs, half, device, online)
    return memory.configured.total, memory.least.total


def check_memory(
    config: RunConfig,
    specs: Sequence[ExpertSpec],
    *,
    total: int,
    available: int,
    half: bool,
    topic: str = "memory",
) -> Check:
    """Whether the student, and experts loaded together with it, fit into this memory (bytes).

    topic: "gpu memory" or "memory".
    """
    device = "cuda" if topic == "gpu memory" else "cpu"
    need, least = memory_needs(config, specs, half, device=device)
    figure = f"{gib(available)} of {gib(total)} free, {gib(need)} needed"
    if available >= need:
        return Check(topic=topic, status="ok", figure=figure)
    if available >= least:
        return Check(
            topic=topic,
            status="warn",
            figure=f"{figure}, {gib(least)} with activation checkpointing",
            remedy="training turns it on when memory runs out; to start with it: "
            "--set optimizer.activation_checkpointing=true",
        )
    smaller = "" if config.preset in ("nano", "demo") else ", or train a smaller one: --preset nano"
    if total >= least:
        remedy = f"close other programs until {gib(least)} are free{smaller}"
    else:
        remedy = f"use a device with {gib(need)} (at least {gib(least)}){smaller}"
        settings = settings_that_fit(config, specs, half, device, total)
        if settings:
            lines = " ".join(f"--set {setting}" for setting in settings)
            remedy += f"; this would fit here: {lines}"
    if least < need:
        figure += f", {gib(least)} with activation checkpointing"
    return Check(topic=topic, status="fail", figure=figure, remedy=remedy)


def memory_table(
    config: RunConfig, specs: Sequence[ExpertSpec], half: bool, device: str
) -> list[Check]:
    """The parts of the need on this device, and whether GPUs of usual sizes are large enough."""
    need = run_memory(config, specs, half, device).configured
    where = "GPU" if device == "cuda" else "CPU"
    return [
        Check(topic="memory parts", status="ok", figure=f"{where}, GiB: {parts_text(need)}"),
        Check(topic="gpu sizes", status="ok", figure=cards_text(config, specs, half=True)),
    ]


# The disk


def check_disk(
    config: RunConfig, states: Mapping[str, ExpertStatus], free: int, scored_tokens: int
) -> Check:
    """Whether experts, scored text, checkpoints and the model fit on the disk.

    `states`: the experts that are downloaded; `free`: bytes; `scored_tokens`: tokens whose targets
    are stored.
    """
    missing = sum(
        max(0, state.expected_bytes - state.present_bytes)
        for state in states.values()
        if state.state != "ready"
    )
    need = disk_need(config, scored_tokens)
    parts = [
        f"{name} {gib(count)}"
        for name, count in (
            ("experts", missing),
            ("scored text", need.targets),
            ("checkpoints", need.checkpoints),
            ("model", need.model),
        )
        if count > GIB // 20
    ]
    total = missing + need.total
    figure = f"{gib(free)} free, {gib(total)} needed" + (f" ({', '.join(parts)})" if parts else "")
    if free < total:
        return Check(
            topic="disk",
            status="fail",
            figure=figure,
            remedy="free disk space (gladius_train clean lists what can go), or: --root DIR",
        )
    return Check(topic="disk", status="ok", figure=figure)


def write_speed(folder: Path, most: int = 1 << 30, seconds: float = 2.0) -> float:
    """Bytes a second written durably (fsync) to a temporary file in `folder`.

    Writes `most` bytes, or for `seconds`. Raises OSError if the folder can't be written.
    """
    path = folder / f".probe-{os.getpid()}"
    chunk = os.urandom(8 << 20)
    written = 0
    try:
        started = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            while written < most and time.perf_counter() - started < seconds:
                written += file.write(chunk)
            os.fsync(file.fileno())
        return written / max(time.perf_counter() - started, 1e-6)
    finally:
        path.unlink(missing_ok=True)


def check_grace(config: RunConfig, speed: float) -> Check:
    """Whether a run can save its checkpoint between SIGTERM and SIGKILL; `speed` in bytes/s."""
    count = checkpoint_bytes(config.student)
    seconds = grace_seconds(config, speed)
    size = gib(count) if count >= GIB // 10 else f"{count / (1 << 20):.0f} MiB"
    figure = f"{seconds:.0f} s (3 × {size} at {speed / 1e6:,.0f} MB/s) to save after SIGTERM"
    if seconds <= GRACE_SECONDS:
        return Check(topic="grace", status="ok", figure=figure)
    limit = 10 * (int(seconds) // 10 + 1)
    return Check(
        topic="grace",
        status="warn",
        figure=figure,
        remedy=f"raise the limit: docker stop -t {limit}; systemd TimeoutStopSec={limit}; Slurm "
        f"--signal=B:TERM@{limit}",
    )


def grace_seconds(config: RunConfig, speed: float) -> float:
    """Seconds to save a checkpoint at `speed` bytes/s, with a safety factor of 3; at least 1."""
    return max(1.0, 3 * checkpoint_bytes(config.student) / max(speed, 1.0))


def check_sandbox(isolation: str) -> Check:
    """How the code in answers is isolated; `isolation`: see `engine.prompts.sandbox`."""
    if isolation == "none":
        return Check(
            topic="sandbox",
            status="warn",
            figure="none: code in answers is not run, and those answers are dropped",
            remedy="allow user namespaces (sysctl user.max_user_namespaces), or use a Linux kernel "
            "with seccomp filters",
        )
    how = {"namespaces": "namespaces", "filter": "a filter of system calls"}[isolation]
    return Check(topic="sandbox", status="ok", figure=f"code in answers runs isolated by {how}")


# Optional tools


def check_tools() -> list[Check]:
    """Which optional tools are installed; a missing one is only a note."""
    quantizer, runtime = find_quantizer(), find_python()
    xet = importlib.util.find_spec("hf_xet")
    rows = (
        ("llama-quantize", quantizer, "writes k-quants; build llama.cpp in ~/llama.cpp"),
        ("llama-cpp-python", runtime, "checks exports in llama.cpp; make llama-cpp"),
        ("hf-xet", xet and "installed", "faster uploads (export --push); pip install hf-xet"),
    )
    return [
        Check(
            topic=name,
            status="ok" if found else "note",
            figure=str(found) if found else f"optional: {use}",
        )
        for name, found, use in rows
    ]
