"""Owns the checks of the machine: Python, torch, GPU, processor, memory, disk, and optional tools.

Pure functions of readings wherever they can be; nothing here imports torch.
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

from engine.budget import scores_online
from engine.config import RunConfig
from engine.doctor.check import Check, gib
from engine.events import GpuReading
from engine.experts.registry import ExpertSpec, ExpertStatus
from engine.programs import find_python, find_quantizer
from engine.sizing import (
    GIB,
    checkpoint_bytes,
    disk_need,
    least_memory,
    parameter_count,
    training_memory,
)

LARGE = 100_000_000
"""Parameters from which a student wants a GPU, or at least `CORES` cores."""
CORES = 8
GRACE_SECONDS = 10.0
"""What `docker stop` waits before it kills; systemd waits 90 s, Slurm 30 s."""


def check_python() -> Check:
    figure = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    return Check(topic="python", status="ok", figure=figure)


def torch_build() -> tuple[str, str]:
    """The installed torch's version and the CUDA that it was built for ("" for none), unimported.

    ("", "") where there is no torch.
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
    """Whether torch is there, and built for the GPU that is."""
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
            remedy="install the build for CUDA that https://pytorch.org/get-started/locally names",
        )
    return Check(topic="torch", status="ok", figure=figure)


def check_gpu(
    gpus: Sequence[GpuReading], driver: str, config: RunConfig, specs: Sequence[ExpertSpec]
) -> Check:
    """Which GPUs are to be seen; whether the student wants one."""
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
            remedy="install the NVIDIA driver (nvidia-smi must answer), or: "
            "--set device.device=auto",
        )
    if config.device.device == "auto" and parameter_count(config.student).total > LARGE:
        wanted = gib(memory_needs(config, specs, True)[1])
        return Check(
            topic="gpu",
            status="warn",
            figure=f"{figure}; the processor would train",
            remedy=f"a GPU with more than {wanted} of memory trains this student in days",
        )
    return Check(topic="gpu", status="ok", figure=f"{figure}, and none is needed")


def check_processor(cores: int, bf16: bool, config: RunConfig) -> Check:
    figure = f"{cores} core{'s' if cores > 1 else ''}, bf16 {'in hardware' if bf16 else 'emulated'}"
    if not bf16:
        figure = f"{cores} core{'s' if cores > 1 else ''}, without bf16: fp32 is used"
    if cores < CORES and parameter_count(config.student).total > LARGE:
        return Check(
            topic="processor",
            status="warn",
            figure=figure,
            remedy=f"{CORES} cores or more for a student of this size",
        )
    return Check(topic="processor", status="ok", figure=figure)


def memory_needs(
    config: RunConfig, specs: Sequence[ExpertSpec], half: bool, online: bool | None = None
) -> tuple[int, int]:
    """Bytes that the run takes on its device, as configured and at least; with the experts where
    they stand beside the student (`online`; None: as the config has it), or the largest of them
    where it has left before."""
    experts = [(2 if half else 4) * spec.parameters for spec in specs]
    online = scores_online(config) if online is None else online
    beside = sum(experts) if online else 0
    alone = 0 if beside else max(experts, default=0)
    need = training_memory(config, half).total + beside
    return max(need, alone), max(least_memory(config, half).total + beside, alone)


def check_memory(
    config: RunConfig,
    specs: Sequence[ExpertSpec],
    *,
    total: int,
    available: int,
    half: bool,
    what: str = "memory",
) -> Check:
    """Whether the student, and the experts that stand beside it, fit into this memory."""
    need, least = memory_needs(config, specs, half)
    figure = f"{gib(available)} of {gib(total)} free, {gib(need)} needed"
    if available >= need:
        return Check(topic=what, status="ok", figure=figure)
    if available >= least:
        return Check(
            topic=what,
            status="warn",
            figure=f"{figure}, {gib(least)} with activation checkpointing",
            remedy="it is turned on by itself; to do it now: "
            "--set optimizer.activation_checkpointing=true",
        )
    smaller = "" if config.preset in ("nano", "demo") else ", or a smaller student: --preset nano"
    if total >= least:
        remedy = f"close other programs until {gib(least)} are free{smaller}"
    else:
        remedy = f"{gib(need)} or more (at least {gib(least)}){smaller}"
        before = memory_needs(config, specs, half, online=False)[1]
        if scores_online(config) and total >= before:
            remedy += (
                f"; or let the experts score their text before ({gib(before)}): "
                "--set data.corpora=[] --set targets.source=cached"
            )
    if least < need:
        figure += f", {gib(least)} with activation checkpointing"
    return Check(topic=what, status="fail", figure=figure, remedy=remedy)


# The disk


def check_disk(
    config: RunConfig, states: Mapping[str, ExpertStatus], free: int, scored_tokens: int
) -> Check:
    """Whether experts, scored text, checkpoints and the model have room."""
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
            remedy="make room (gladius_train clean shows what could go), or: --root DIR",
        )
    return Check(topic="disk", status="ok", figure=figure)


def write_speed(folder: Path, most: int = 1 << 30, seconds: float = 2.0) -> float:
    """Bytes a second that are written durably in `folder`: random bytes, with fsync; the file is
    removed. OSError where it can't be written."""
    path = folder / f".probe-{os.getpid()}"
    piece = os.urandom(8 << 20)
    written = 0
    try:
        began = time.perf_counter()
        with open(path, "wb", buffering=0) as file:
            while written < most and time.perf_counter() - began < seconds:
                written += file.write(piece)
            os.fsync(file.fileno())
        return written / max(time.perf_counter() - began, 1e-6)
    finally:
        path.unlink(missing_ok=True)


def check_grace(config: RunConfig, speed: float) -> Check:
    """How long a run may take to save when it is asked to end: three times bytes over speed."""
    count = checkpoint_bytes(config.student)
    seconds = grace_seconds(config, speed)
    size = gib(count) if count >= GIB // 10 else f"{count / (1 << 20):.0f} MiB"
    figure = f"{seconds:.0f} s (3 × {size} at {speed / 1e6:,.0f} MB/s) to save after SIGTERM"
    if seconds <= GRACE_SECONDS:
        return Check(topic="grace", status="ok", figure=figure)
    whole = 10 * (int(seconds) // 10 + 1)
    return Check(
        topic="grace",
        status="warn",
        figure=figure,
        remedy=f"docker stop -t {whole}; systemd TimeoutStopSec={whole}; Slurm "
        f"--signal=B:TERM@{whole}",
    )


def grace_seconds(config: RunConfig, speed: float) -> float:
    """The grace time in seconds at `speed` bytes a second; at least 1."""
    return max(1.0, 3 * checkpoint_bytes(config.student) / max(speed, 1.0))


# What is optional


def check_tools() -> list[Check]:
    """What more could be had; lacking it is no fault."""
    quantizer, runtime = find_quantizer(), find_python()
    xet = importlib.util.find_spec("hf_xet")
    rows = (
        ("llama-quantize", quantizer, "for k-quants; build llama.cpp in ~/llama.cpp"),
        ("llama-cpp-python", runtime, "checks exports in llama.cpp; make llama-cpp"),
        ("hf-xet", xet and "installed", "quicker uploads (export --push); pip install hf-xet"),
    )
    return [
        Check(
            topic=name,
            status="ok" if found else "note",
            figure=str(found) if found else f"optional: {use}",
        )
        for name, found, use in rows
    ]
