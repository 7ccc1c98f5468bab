"""Owns the command that examines the machine before a run."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import click

from engine.errors import ExitCode, LockedError
from gladius_tui.commands.training import overrides_option
from gladius_tui.shell import Options, command, narrate, plain, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.config import RunConfig
    from engine.events import AnyEvent, SpeedMeasured, TokenizersAudited
    from engine.workspace import Workspace


@command()
@click.option("--preset", metavar="NAME", help="The config to examine for: 1b, nano, demo.")
@click.option("--config", metavar="FILE", help="TOML laid over the preset.")
@click.option("--experts", metavar="A,B", help="Experts, in the order of their phases.")
@click.option("--hours", type=float, help="Training time of the whole run.")
@click.option(
    "--data", metavar="SOURCE", multiple=True, help="Text to learn from, as of train (repeatable)."
)
@click.option("--listen", is_flag=True, help="Run the experts over the sample too (minutes).")
@overrides_option
@click.pass_obj
def doctor(
    options: Options,
    preset: str | None,
    config: str | None,
    experts: str | None,
    hours: float | None,
    data: tuple[str, ...],
    listen: bool,
    overrides: tuple[str, ...],
) -> None:
    """Examine the machine: what a preset needs, what is here, what helps."""
    from engine.config import load_config
    from engine.doctor.examine import examine
    from engine.doctor.experts import (
        alignment_quality,
        experts_with_tokenizer,
        missing_student_tokenizer,
    )
    from engine.doctor.machine import check_tools
    from engine.doctor.text import check_speed
    from engine.experts.registry import load_experts

    ws = options.workspace
    run_config = load_config(
        ws,
        preset=preset,
        file=config,
        overrides=overrides,
        experts=None if experts is None else [n.strip() for n in experts.split(",") if n.strip()],
        data=data,
        hours=hours,
    )
    known = load_experts(ws)

    def say(doing: str) -> None:
        if not (options.quiet or options.json):
            narrate(f"{doing} ...")

    reading = examine(ws, run_config, known, say)
    say("measuring the device and the tokenizers" if not listen else "listening to the experts")
    borrowed = missing_student_tokenizer(ws, run_config, known)
    audited = [] if borrowed else experts_with_tokenizer(ws, known)
    audit = _Audit(ws, run_config, audited, listen, say)
    if borrowed:
        audit.problem = (
            f"the student's tokenizer is {borrowed}'s, which is not here yet: "
            f"gladius_train download {borrowed}"
        )
    checks = list(reading.checks)
    if audit.speed is not None:
        s = audit.speed
        checks.append(check_speed(run_config, s.device, s.precision, s.flops, reading.tokens))
    checks += check_tools()
    failed = [check.topic for check in checks if check.status == "fail"]
    if options.json:
        print_json(
            {
                "preset": run_config.preset,
                "ready": not failed,
                "checks": [plain(check) for check in checks],
                "tokenizers": [
                    _audit_fields(event)
                    | {"heard": None if event.problem else alignment_quality(event)}
                    for event in audit.tokenizers
                ],
                "audit_problem": audit.problem,
            }
        )
    else:
        from gladius_tui.doctor_table import print_report

        print_report(
            run_config.preset, checks, audit.tokenizers, audit.problem, quiet=options.quiet
        )
    if audit.code in (ExitCode.SIGINT, ExitCode.SIGTERM):
        raise click.exceptions.Exit(audit.code)
    if failed:
        raise click.exceptions.Exit(ExitCode.MISSING)


def _audit_fields(event: TokenizersAudited) -> dict:
    return {key: value for key, value in plain(event).items() if key not in ("type", "seq", "step")}


class _Audit:
    """The audit job, run to its end; what could not be done is a line, never an error."""

    def __init__(
        self,
        ws: Workspace,
        config: RunConfig,
        experts: list[str],
        listen: bool,
        say: Callable[[str], None],
    ) -> None:
        import msgspec

        from engine.errors import GladiusError

        self.speed: SpeedMeasured | None = None
        self._audited: dict[str, TokenizersAudited] = {}
        self.problem = "" if experts else "no expert's tokenizer lies here yet"
        self.code = 0
        self._say = say
        request = msgspec.json.encode(
            {
                "config": config,
                "root": str(ws.root),
                "experts": experts,
                "listen": listen,
                # What trains has the device: neither is to be slowed, nor would it be measured.
                "speed": "train" not in _running(ws),
            }
        )
        try:
            if ws.tmp.is_dir():
                self.code = self._run(ws, request)
            else:  # looking at a folder must not fill it
                with tempfile.TemporaryDirectory(prefix="gladius-doctor-") as folder:
                    self.code = self._run(type(ws).find(folder), request)
        except LockedError:
            self.problem = "another doctor is at work here; ask again when it is done"
        except GladiusError as error:
            self.problem = str(error)

    @property
    def tokenizers(self) -> list[TokenizersAudited]:
        return list(self._audited.values())

    def _run(self, ws: Workspace, request: bytes) -> int:
        from engine.run.runner import run_job

        return run_job(ws, job="audit", config=request, on_event=self._on_event)

    def _on_event(self, event: AnyEvent) -> None:
        from engine.events import LogLine, RunEnded, SpeedMeasured, TokenizersAudited

        match event:
            case SpeedMeasured():
                self.speed = event
            case TokenizersAudited():
                self._audited[event.expert] = event  # a worker begun anew tells it again
            case LogLine(level="info"):
                self._say(event.text)
            case RunEnded(status="failed"):
                self.problem = event.reason or "the audit failed; see tmp/logs"


def _running(ws: Workspace) -> list[str]:
    from engine.run.control import running_jobs

    return list(running_jobs(ws)) if ws.tmp.is_dir() else []
