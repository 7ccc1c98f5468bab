"""Run all doctor checks that need no torch.

Checks that need a tokenizer or a device run in the job `audit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from engine import hardware
from engine.budget import token_budget
from engine.config import RunConfig
from engine.doctor import experts as expert_checks
from engine.doctor import machine, text
from engine.doctor.check import Check
from engine.experts.registry import ExpertSpec, expert_status
from engine.prompts import sandbox
from engine.sizing import checkpoint_bytes
from engine.workspace import Workspace


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """The checks, and the figure that the later speed check needs."""

    checks: list[Check]
    tokens: float | None
    """Tokens that the run trains on at least; None if --hours ends it."""


def examine(
    ws: Workspace,
    config: RunConfig,
    experts: Mapping[str, ExpertSpec],
    report: Callable[[str], None] = lambda activity: None,
) -> Examination:
    """Run the checks in the order of the report; `report` receives a line before a slow one."""
    specs = [experts[name] for name in config.experts.names]
    states = {spec.name: expert_status(ws, spec) for spec in specs}
    checks = _device_checks(ws, config, specs)
    budget = token_budget(config, specs)
    scored = text.scored_tokens(config, specs, budget)
    fetched = {spec.name: states[spec.name] for spec in specs if spec.source in ("hub", "wheel")}
    free = hardware.disk_free(ws.checkpoints_dir)
    checks.append(machine.check_disk(config, fetched, free, scored))
    report("measuring the disk")
    checks.append(_measured_grace(ws, config))
    checks.append(machine.check_sandbox(sandbox.isolation()))
    missing = [spec for spec in specs if spec.source == "hub" and not states[spec.name].usable]
    checks.append(expert_checks.check_token(missing))
    if missing:
        report("contacting the Hub")
    answers = expert_checks.query_hub(missing)
    checks.append(expert_checks.check_hub(answers))
    checks += [
        expert_checks.check_expert(spec, states[spec.name], answers.get(spec.name))
        for spec in specs
    ]
    checks.append(text.check_text(budget, config))
    return Examination(checks=checks, tokens=text.least_tokens(config, budget))


def _device_checks(ws: Workspace, config: RunConfig, specs: list[ExpertSpec]) -> list[Check]:
    """Python, torch, GPU, CPU and memory. RAM is checked where there is no GPU."""
    version, cuda = machine.torch_build()
    gpus = hardware.Sampler().read(None, ws.root).gpus
    bf16 = hardware.has_bf16()
    checks = [
        machine.check_python(),
        machine.check_torch(version, cuda, gpus, config),
        machine.check_gpu(gpus, hardware.driver_version() if gpus else "", config, specs),
        machine.check_processor(hardware.physical_cores(), bf16, config),
    ]
    on_gpu = bool(gpus) and bool(cuda) and config.device.device in ("auto", "cuda")
    if on_gpu:
        first = gpus[0]
        checks.append(
            machine.check_memory(
                config,
                specs,
                total=first.total_bytes,
                available=first.total_bytes - first.used_bytes,
                half=config.device.precision != "fp32",
                topic="gpu memory",
            )
        )
    half = bf16 if config.device.precision == "auto" else config.device.precision == "bf16"
    if not on_gpu:
        checks.append(
            machine.check_memory(
                config,
                specs,
                total=hardware.total_ram(),
                available=hardware.available_ram(),
                half=half,
            )
        )
    half = config.device.precision != "fp32" if on_gpu else half
    return [*checks, *machine.memory_table(config, specs, half, "cuda" if on_gpu else "cpu")]


def _measured_grace(ws: Workspace, config: RunConfig) -> Check:
    folders = (ws.checkpoints_dir, *ws.checkpoints_dir.parents)
    folder = next(folder for folder in folders if folder.is_dir())
    try:
        most = min(1 << 30, max(64 << 20, checkpoint_bytes(config.student)))
        return machine.check_grace(config, machine.write_speed(folder, most))
    except OSError as error:
        return Check(
            topic="grace",
            status="fail",
            figure=f"can't write in {folder}: {error.strerror or error}",
            remedy="free disk space, fix the folder's permissions, or choose another: --root DIR",
        )
