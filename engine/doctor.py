"""Owns the examination of a machine before a run: what a preset needs, what is here, and what helps
where the two differ. No torch: what needs a tokenizer or a device runs as the job `audit`.

Checks are pure functions of readings wherever they can be; `examine` takes the readings.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from engine import hardware
from engine.budget import TokenBudget, scores_online, token_budget
from engine.budget import check_text as check_run_text
from engine.config import RunConfig
from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec, ExpertStatus, expert_path, expert_status
from engine.run.events import GpuReading, TokenizersAudited
from engine.sizing import (
    GIB,
    checkpoint_bytes,
    disk_need,
    least_memory,
    parameter_count,
    training_memory,
)
from engine.workspace import Workspace

Status = Literal["ok", "note", "warn", "fail"]

LARGE = 100_000_000
"""Parameters from which a student wants a GPU, or at least `CORES` cores."""
CORES = 8
LONG_DAYS = 60.0
GRACE_SECONDS = 10.0
"""What `docker stop` waits before it kills; systemd waits 90 s, Slurm 30 s."""
HUB_SECONDS = 15.0


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what was looked at, how it stands, the figure, and what helps."""

    topic: str
    status: Status
    figure: str
    remedy: str = ""


def gib(count: float) -> str:
    """Bytes in GiB, as the checks tell them."""
    return f"{count / GIB:.1f} GiB"


# The machine


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


def memory_needs(config: RunConfig, specs: Sequence[ExpertSpec], half: bool) -> tuple[int, int]:
    """Bytes that the run takes on its device, as configured and at least; with the experts where
    they stand beside the student, or the largest of them where it has left before."""
    experts = [(2 if half else 4) * spec.parameters for spec in specs]
    beside = sum(experts) if scores_online(config) else 0
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


# Experts and the Hub


def check_token(missing: Sequence[ExpertSpec]) -> Check:
    """Whether the Hub's client finds a token (which is never shown), and whether one is needed."""
    from huggingface_hub import constants, get_token

    gated = [spec.name for spec in missing if spec.gated]
    try:
        token = get_token()
    except Exception:  # an unreadable file, or a broken single sign-on
        token = None
    if token:
        place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else constants.HF_TOKEN_PATH
        return Check(topic="token", status="ok", figure=f"found ({place})")
    if gated:
        return Check(
            topic="token",
            status="fail",
            figure=f"none, and {', '.join(gated)} can't be had without one",
            remedy="make one at https://huggingface.co/settings/tokens, then: hf auth login "
            "(or export HF_TOKEN=...)",
        )
    return Check(topic="token", status="note", figure="none, and none is needed")


def ask_hub(
    specs: Sequence[ExpertSpec], seconds: float = HUB_SECONDS
) -> dict[str, int | Exception]:
    """For each expert: the bytes that the Hub would send, or why it would not; all asked at once.

    TimeoutError for those that did not answer within `seconds`.
    """
    from engine.experts.hub import list_files

    answers: dict[str, int | Exception] = {}

    def ask(spec: ExpertSpec) -> None:
        try:
            answers[spec.name] = list_files(spec).total
        except Exception as error:
            answers[spec.name] = error

    threads = [threading.Thread(target=ask, args=(spec,), daemon=True) for spec in specs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    waiting = TimeoutError(f"no answer within {seconds:.0f} s")
    return {spec.name: answers.get(spec.name, waiting) for spec in specs}


def check_hub(answers: Mapping[str, int | Exception]) -> Check:
    """Whether the Hub answers, where something is still to be fetched from it."""
    from huggingface_hub import constants

    if not answers:
        figure = "not asked: nothing is to be fetched from it"
        return Check(topic="hub", status="note", figure=figure)
    # A GladiusError is the Hub's own answer, if not the one hoped for; anything else is the way.
    lost = [e for e in answers.values() if isinstance(e, Exception) and not _is_answer(e)]
    if lost:
        return Check(
            topic="hub",
            status="fail",
            figure=f"{constants.ENDPOINT}: {' '.join(str(lost[0]).split())}",
            remedy="look at the network, HTTPS_PROXY and HF_ENDPOINT; offline, copy an expert's "
            "folder to tmp/models/NAME",
        )
    return Check(topic="hub", status="ok", figure=f"{constants.ENDPOINT} answers")


def _is_answer(error: Exception) -> bool:
    return isinstance(error, GladiusError) and "HF_HUB_OFFLINE" not in str(error)


def check_expert(spec: ExpertSpec, state: ExpertStatus, answer: int | Exception | None) -> Check:
    """One expert of the run: whether it is here, and what gets it here."""
    topic = spec.name
    if state.state == "ready":
        return Check(topic=topic, status="ok", figure=f"ready, {gib(state.present_bytes)}")
    size = answer if isinstance(answer, int) else state.expected_bytes
    figure = f"missing, {gib(size)}" if size else "missing"
    if state.state == "partial":
        figure = f"{gib(state.present_bytes)} of {gib(size)}: {state.detail}"
    if spec.source in ("folder", "gguf"):
        remedy = f"nothing lies at {spec.repo}: mend the path in gladius.toml"
    elif isinstance(answer, GladiusError) and _is_answer(answer):
        remedy = " ".join(str(answer).split()).removeprefix(f"{spec.name}: ")
    else:
        remedy = f"gladius_train download {spec.name}"
    return Check(topic=topic, status="fail", figure=figure, remedy=remedy)


# Text and time


def check_text(budget: TokenBudget, config: RunConfig) -> Check:
    """How much text there is for how long a run, and whether what streams it is installed."""
    try:
        check_run_text(config)
    except GladiusError as error:
        figure, _, remedy = " ".join(str(error).split()).partition(";")
        return Check(topic="text", status="fail", figure=figure, remedy=remedy.strip())
    figure, _, remedy = budget.sentence().removeprefix("text: ").partition(" (")
    if budget.warns:
        return Check(topic="text", status="warn", figure=figure, remedy=remedy.rstrip(")"))
    return Check(topic="text", status="ok", figure=figure)


def scored_tokens(config: RunConfig, specs: Sequence[ExpertSpec], budget: TokenBudget) -> int:
    """Tokens whose targets are kept on disk, all experts together, at most."""
    if scores_online(config):
        return 0
    most = config.data.max_teacher_tokens
    total = budget.answers + (budget.files or 0) * len(specs)
    return int(total if most is None else min(total, most * len(specs)))


def least_tokens(config: RunConfig, budget: TokenBudget) -> float | None:
    """Tokens that the run trains on, or those of its expert phases where only convergence ends it;
    None where hours do."""
    if budget.to_be_used is not None or config.schedule.hours is not None:
        return budget.to_be_used
    return float(len(config.experts.names) * config.schedule.expert_tokens)


def check_speed(
    config: RunConfig, device: str, precision: str, flops: float, tokens: float | None
) -> Check:
    """The least time that the matrix products of the run take: six operations a parameter and
    token (arXiv 2001.08361)."""
    figure = f"{flops / 1e12:,.2f} TFLOP/s in {precision} on {device}"
    rate = flops / (6 * parameter_count(config.student).total)
    figure += f", so {rate:,.0f} tokens/s at the very most"
    if tokens is None:
        return Check(topic="speed", status="ok", figure=figure)
    seconds = tokens / rate
    figure += f": {_length(seconds)} for {tokens:,.0f}"
    if seconds > LONG_DAYS * 86400:
        return Check(
            topic="speed",
            status="warn",
            figure=figure,
            remedy="a faster GPU, a shorter run (--hours N), or a smaller student: --preset nano",
        )
    return Check(topic="speed", status="ok", figure=figure)


def _length(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"


# What is optional


def check_tools() -> list[Check]:
    """What more could be had; lacking it is no fault."""
    quantize = find_quantizer()
    xet = importlib.util.find_spec("hf_xet")
    runtime = importlib.util.find_spec("llama_cpp")
    rows = (
        ("llama-quantize", str(quantize or ""), "for k-quants; build llama.cpp in ~/llama.cpp"),
        ("hf-xet", xet and "installed", "quicker downloads; pip install hf-xet"),
        (
            "llama-cpp-python",
            runtime and "installed",
            "checks exports; pip install llama-cpp-python",
        ),
    )
    return [
        Check(topic=name, status="ok" if found else "note", figure=found or f"optional: {use}")
        for name, found, use in rows
    ]


def find_quantizer() -> Path | None:
    """llama.cpp's own quantizer, in ~/llama.cpp or on PATH."""
    home = Path.home() / "llama.cpp"
    for place in (home / "build" / "bin", home):
        path = place / "llama-quantize"
        if path.is_file() and os.access(path, os.X_OK):
            return path
    found = shutil.which("llama-quantize")
    return Path(found) if found else None


# Tokenizers


def lender(ws: Workspace, config: RunConfig, experts: Mapping[str, ExpertSpec]) -> str:
    """The expert whose tokenizer the student borrows, where that one is not here; else ""."""
    wanted = config.student.tokenizer
    if wanted not in experts or wanted in audited_experts(ws, experts):
        return ""
    return wanted


def audited_experts(ws: Workspace, experts: Mapping[str, ExpertSpec]) -> list[str]:
    """The registered experts whose tokenizer lies here."""
    found = []
    for name, spec in experts.items():
        path = expert_path(ws, spec)
        if path.is_file() if spec.source == "gguf" else (path / "tokenizer.json").is_file():
            found.append(name)
    return found


def how_heard(audit: TokenizersAudited) -> Literal["good", "fair", "poor"]:
    """How well an expert can be heard, in a word.

    Where it was run, by its mean weight: good from 0.9, fair from 0.75. Else by the share of
    aligned positions, the mean over the kinds of text: good from 80%, fair from 60%; what is not
    aligned is heard through rule 2, at less weight. Never good with over 5% of the blocks skipped,
    poor with over 20%.
    """
    if audit.mean_weight is not None:
        score, good, fair = audit.mean_weight, 0.9, 0.75
    else:
        shares = [kind.aligned for kind in audit.kinds]
        score, good, fair = sum(shares) / max(1, len(shares)), 0.8, 0.6
    skipped = audit.skipped_blocks / max(1, audit.blocks + audit.skipped_blocks)
    if score >= good and skipped <= 0.05:
        return "good"
    return "fair" if score >= fair and skipped <= 0.2 else "poor"


# All of it


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What `examine` found, and what the speed is to be held against."""

    checks: list[Check]
    tokens: float | None
    """That the run trains on at least; None where hours decide."""


def examine(
    ws: Workspace,
    config: RunConfig,
    experts: Mapping[str, ExpertSpec],
    say: Callable[[str], None] = lambda doing: None,
) -> Reading:
    """All checks that need no torch, in the order in which they are told."""
    specs = [experts[name] for name in config.experts.names]
    states = {spec.name: expert_status(ws, spec) for spec in specs}
    version, cuda = torch_build()
    gpus = hardware.Sampler().read(None, ws.root).gpus
    bf16 = hardware.has_bf16()
    checks = [
        check_python(),
        check_torch(version, cuda, gpus, config),
        check_gpu(gpus, hardware.driver_version() if gpus else "", config, specs),
        check_processor(hardware.physical_cores(), bf16, config),
    ]
    on_gpu = bool(gpus) and bool(cuda) and config.device.device in ("auto", "cuda")
    if on_gpu:
        first = gpus[0]
        checks.append(
            check_memory(
                config,
                specs,
                total=first.total_bytes,
                available=first.total_bytes - first.used_bytes,
                half=config.device.precision != "fp32",
                what="gpu memory",
            )
        )
    if not on_gpu or checks[-1].status == "fail":
        half = bf16 if config.device.precision == "auto" else config.device.precision == "bf16"
        checks.append(
            check_memory(
                config,
                specs,
                total=hardware.total_ram(),
                available=hardware.available_ram(),
                half=half,
            )
        )
    budget = token_budget(config, specs)
    scored = scored_tokens(config, specs, budget)
    checks.append(check_disk(config, states, hardware.disk_free(ws.checkpoints_dir), scored))
    say("measuring the disk")
    checks.append(_measured_grace(ws, config))
    missing = [
        spec for spec in specs if spec.source == "hub" and states[spec.name].state != "ready"
    ]
    checks.append(check_token(missing))
    if missing:
        say("asking the Hub")
    answers = ask_hub(missing)
    checks.append(check_hub(answers))
    checks += [check_expert(spec, states[spec.name], answers.get(spec.name)) for spec in specs]
    checks.append(check_text(budget, config))
    return Reading(checks=checks, tokens=least_tokens(config, budget))


def _measured_grace(ws: Workspace, config: RunConfig) -> Check:
    places = (ws.checkpoints_dir, *ws.checkpoints_dir.parents)
    folder = next(place for place in places if place.is_dir())
    try:
        most = min(1 << 30, max(64 << 20, checkpoint_bytes(config.student)))
        return check_grace(config, write_speed(folder, most))
    except OSError as error:
        return Check(
            topic="grace",
            status="fail",
            figure=f"can't write in {folder}: {error.strerror or error}",
            remedy="make room, mend its permissions, or choose another folder: --root DIR",
        )
