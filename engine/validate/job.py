"""The validation job: choose the model, run all checks, write the report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import torch
import transformers

from engine.errors import ExitCode
from engine.events import CheckDone, JobRequest, ReportDone
from engine.export.model_source import ModelSource
from engine.run.job import JobContext, JobStopped, run_started
from engine.validate.check import Check, run_check
from engine.validate.checks.table import STRUCTURAL_CHECKS
from engine.validate.choice import ValidateConfig, choose_model, report_path
from engine.validate.context import CheckContext
from engine.validate.quality.table import QUALITY_CHECKS
from engine.validate.quality.tasks import refuse_unknown
from engine.validate.report import (
    Machine,
    ModelFacts,
    Report,
    Row,
    compare,
    quality_of,
    read_report,
    structure_of,
    verdict_text,
    write_report,
)
from engine.workspace import Workspace


def main(ctx: JobContext, request: JobRequest) -> int:
    """Run the ValidateConfig in `request.config`; returns the worker's exit code."""
    return Validation(ctx, request).run()


class Validation:
    """One validation of one model.

    Attributes:
        rows: the results so far.
        previous: the report that this one will replace; None where there is none.
    """

    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        self.request = request
        self.workspace = Workspace.find(request.root)
        self.config = msgspec.json.decode(request.config, type=ValidateConfig)
        self.rows: list[CheckDone] = []
        self.previous: Report | None = None

    def run(self) -> int:
        """Run the validation; returns the worker's exit code."""
        tasks_path = Path(self.config.tasks_path) if self.config.tasks_path else None
        with self.ctx.busy("looking up tasks"):
            refuse_unknown(self.config.tasks, tasks_path)
        try:
            with choose_model(self.workspace, self.config, self._tick_reading) as source:
                self.previous = read_report(report_path(self.workspace, self.config, source))
                self._report_start(source)
                context = CheckContext(self.ctx, self.workspace, self.config, source)
                self._run_checks(STRUCTURAL_CHECKS, context)
                self._run_quality_checks(context)
                return self._finish(context)
        except JobStopped:
            return self.ctx.ended("stopped", "stopped; no report was written")

    def _tick_reading(self) -> None:
        self.ctx.checkpoint_point("reading a checkpoint")

    def _report_start(self, source: ModelSource) -> None:
        self.ctx.emit(
            run_started(
                self.request,
                config=msgspec.to_builtins(self.config),
                preset=source.record.preset if source.record else "",
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        )
        for warning in source.warnings:
            self.ctx.log(warning, "warning")
        self.ctx.log(f"validating {source.title}")

    def _run_checks(self, checks: Sequence[Check], context: CheckContext) -> None:
        for check in checks:
            if check.needs == "files" and not context.readable:
                continue
            if check.needs == "model" and context.loaded is None:
                reason = (
                    "The model does not load, or has weights that are not finite."
                    if context.readable
                    else "The file cannot be read."
                )
                self._record([check.skipped(reason)])
            else:
                self._record(run_check(check, context))

    def _run_quality_checks(self, context: CheckContext) -> None:
        if context.loaded is not None:
            self._run_checks(QUALITY_CHECKS, context)
            return
        # One row is enough.
        reason = "The model cannot run, so its quality was not measured."
        self._record([QUALITY_CHECKS[0].skipped(reason)])

    def _record(self, rows: Iterable[CheckDone]) -> None:
        """Report rows as they are made, each with its value in the previous report."""
        previous = {} if self.previous is None else {r.name: r.value for r in self.previous.checks}
        for row in rows:
            row = msgspec.structs.replace(row, former=previous.get(row.name, ""))
            self.rows.append(row)
            self.ctx.emit(row)
            self.ctx.checkpoint_point("validating")

    def _finish(self, context: CheckContext) -> int:
        """Write the report and report the end of the job; returns the worker's exit code."""
        summary = None
        if self.previous is not None:
            summary, comparison = compare(self.previous, self.rows, context.weights_digest)
            self._record([comparison])
        report = Report(
            created=time.time(),
            seconds=time.monotonic() - self.ctx.began,
            structure=structure_of(self.rows),
            quality=quality_of(self.rows),
            verdict=verdict_text(self.rows),
            model=_model_facts(context),
            machine=_machine(context),
            checks=tuple(map(Row.of, self.rows)),
            generations=tuple(context.generations),
            previous=summary,
        )
        path = self._write(context.source, report)
        self.ctx.emit(
            ReportDone(
                structure=report.structure,
                quality=report.quality,
                verdict=report.verdict,
                path=str(path),
                seconds=report.seconds,
            )
        )
        broken = report.structure == "broken"
        self.ctx.ended(
            "failed" if broken else "completed",
            f"{report.verdict}; see {path}" if broken else report.verdict,
            exit_code=ExitCode.FAILED if broken else ExitCode.DONE,
            seconds=report.seconds,
        )
        # The worker did its job; the exit code of the command is in the event.
        return 0

    def _write(self, source: ModelSource, report: Report) -> Path:
        """Write the report next to the model, or to the logs where that fails."""
        path = report_path(self.workspace, self.config, source)
        try:
            write_report(path, report)
        except OSError as error:
            fallback = self.workspace.logs_dir / f"validation-{self.request.run_id}.json"
            self.ctx.log(
                f"cannot write {path} ({error.strerror}); the report is in {fallback}", "warning"
            )
            write_report(fallback, report)
            return fallback
        return path


def _model_facts(context: CheckContext) -> ModelFacts:
    source, record, gguf = context.source, context.record, context.config.gguf
    return ModelFacts(
        path=gguf or (str(source.folder) if source.finished else ""),
        title=source.title,
        kind="gguf" if gguf else "model" if source.finished else "checkpoint",
        preset=record.preset if record else "",
        step=record.step if record else None,
        tokens_seen=record.tokens_seen if record else None,
        parameters=context.survey.parameters,
        weights=context.weights_digest,
    )


def _machine(context: CheckContext) -> Machine:
    loaded = context.loaded
    return Machine(
        device="" if loaded is None else loaded.device.type,
        precision="" if loaded is None else str(loaded.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
    )
