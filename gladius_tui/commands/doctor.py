"""The command `doctor`: compare the machine with what a preset needs."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import click

from engine.errors import ExitCode, GladiusError, LockedError
from gladius_tui.commands.run_options import (
    config_option,
    data_option,
    experts_option,
    hours_option,
    lenient_option,
    overrides_option,
    preset_option,
    split_names,
    with_lenient,
)
from gladius_tui.shell import Options, command, print_json, print_stderr, to_builtins

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.config import RunConfig
    from engine.doctor.check import Check
    from engine.events import AnyEvent, SpeedMeasured, TokenizersAudited
    from engine.workspace import Workspace


@command()
@preset_option
@config_option
@experts_option
@hours_option
@data_option
@lenient_option
@click.option("--listen", is_flag=True, help="Also run the experts on the sample text (minutes).")
@overrides_option
@click.pass_obj
def doctor(
    options: Options,
    preset: str | None,
    config: str | None,
    experts: str | None,
    hours: float | None,
    data: tuple[str, ...],
    data_lenient: bool,
    listen: bool,
    overrides: tuple[str, ...],
) -> None:
    """Compare this machine with what a preset needs.

    Each shortfall is reported with its remedy; exits with 3 if something is missing.
    """
    from engine.config import load_config

    run_config = load_config(
        options.workspace,
        preset=preset,
        file=config,
        overrides=with_lenient(overrides, data_lenient),
        experts=split_names(experts),
        data=data,
        hours=hours,
    )
    checks, audit = _examine(options, run_config, listen)
    failed = any(check.status == "fail" for check in checks)
    _print_report(options, run_config.preset, checks, audit)
    if audit.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
        raise click.exceptions.Exit(audit.code)
    if failed:
        raise click.exceptions.Exit(ExitCode.MISSING)


def _examine(options: Options, config: RunConfig, listen: bool) -> tuple[list[Check], _Audit]:
    """Run all checks, and the tokenizer audit in a process of its own."""
    from engine.doctor.examine import examine
    from engine.doctor.experts import experts_with_tokenizer, missing_student_tokenizer
    from engine.doctor.machine import check_tools
    from engine.doctor.text import check_speed
    from engine.experts.registry import load_experts

    def report(doing: str) -> None:
        if not (options.quiet or options.json):
            print_stderr(f"{doing} ...")

    ws = options.workspace
    registered = load_experts(ws)
    reading = examine(ws, config, registered, report)
    report("running the experts" if listen else "measuring the device, comparing the tokenizers")
    owner = missing_student_tokenizer(ws, config, registered)
    audit = _Audit(report)
    audit.run(ws, config, [] if owner else experts_with_tokenizer(ws, registered), listen)
    if owner:
        audit.problem = (
            f"the student uses the tokenizer of {owner}, which is not downloaded; "
            f"fetch it with: gladius_train download {owner}"
        )
    checks = list(reading.checks)
    if (speed := audit.speed) is not None:
        checks.append(
            check_speed(config, speed.device, speed.precision, speed.flops, reading.tokens)
        )
    return checks + check_tools(), audit


def _print_report(options: Options, preset: str, checks: list[Check], audit: _Audit) -> None:
    if options.json:
        print_json(
            {
                "preset": preset,
                "ready": all(check.status != "fail" for check in checks),
                "checks": [to_builtins(check) for check in checks],
                "tokenizers": [_audit_fields(event) for event in audit.tokenizers],
                "audit_problem": audit.problem,
            }
        )
        return
    from gladius_tui.commands.doctor_report import print_report

    print_report(preset, checks, audit.tokenizers, audit.problem, quiet=options.quiet)


def _audit_fields(event: TokenizersAudited) -> dict:
    """The audit as plain data; the key `alignment` says how well the expert can be projected."""
    from engine.doctor.experts import alignment_quality

    fields = to_builtins(event)
    kept = {key: value for key, value in fields.items() if key not in ("type", "seq", "step")}
    return kept | {"alignment": None if event.problem else alignment_quality(event)}


class _Audit:
    """The audit job: tokenizers and the speed of the device. A failure is reported as `problem`."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self.speed: SpeedMeasured | None = None
        self.problem = ""
        self.code = 0
        self._report = report
        self._audited: dict[str, TokenizersAudited] = {}

    @property
    def tokenizers(self) -> list[TokenizersAudited]:
        """The audits of the experts' tokenizers."""
        return list(self._audited.values())

    def run(self, ws: Workspace, config: RunConfig, experts: list[str], listen: bool) -> None:
        """Run the job to its end; `listen` also runs the experts."""
        import msgspec

        if not experts:
            self.problem = "no expert's tokenizer is downloaded"
        request = msgspec.json.encode(
            {
                "config": config,
                "root": str(ws.root),
                "experts": experts,
                "listen": listen,
                # A measurement would slow a running training, and be wrong.
                "speed": "train" not in _running_jobs(ws),
            }
        )
        try:
            if ws.tmp.is_dir():
                self.code = self._run_job(ws, request)
            else:  # the doctor must not create folders in the root
                with tempfile.TemporaryDirectory(prefix="gladius-doctor-") as folder:
                    self.code = self._run_job(type(ws).find(folder), request)
        except LockedError:
            self.problem = "another doctor is running here; try again when it is done"
        except GladiusError as error:
            self.problem = str(error)

    def _run_job(self, ws: Workspace, request: bytes) -> int:
        from engine.run.runner import run_job

        return run_job(ws, job="audit", config=request, on_event=self._on_event)

    def _on_event(self, event: AnyEvent) -> None:
        from engine.events import LogLine, RunEnded, SpeedMeasured, TokenizersAudited

        match event:
            case SpeedMeasured():
                self.speed = event
            case TokenizersAudited():
                self._audited[event.expert] = event  # a restarted worker sends it again
            case LogLine(level="info"):
                self._report(event.text)
            case RunEnded(status="failed"):
                self.problem = event.reason or "the audit failed; see tmp/logs"


def _running_jobs(ws: Workspace) -> list[str]:
    from engine.run.control import running_jobs

    return list(running_jobs(ws)) if ws.tmp.is_dir() else []
