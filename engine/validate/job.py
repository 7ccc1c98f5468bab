"""Owns a validation from start to end: which model, the checks in their order, the report.

What is checked is owned by the `checks_*` (structure) and `quality_*` files, the verdict by
`report`. The worker process calls `main`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch
import transformers

from engine import hardware
from engine.errors import ExitCode
from engine.events import CheckDone, JobRequest, ReportDone
from engine.experts.gguf_source import GGUFExpert
from engine.export.model_source import Source
from engine.export.parity import parity_checks
from engine.run.job import JobContext, JobStopped, run_started
from engine.validate.checks.check import guarded, row, skipped
from engine.validate.checks.files import (
    check_files,
    check_finite,
    check_parameters,
    stored_tensors,
    survey,
    weights_digest,
)
from engine.validate.checks.gguf import check_gguf_file
from engine.validate.checks.load import Loaded, load_folder, load_gguf, read_config, read_json
from engine.validate.checks.tokenizer import (
    check_round_trip,
    check_special_tokens,
    check_template,
)
from engine.validate.choice import ValidateConfig, choose_model, report_path
from engine.validate.quality import answers as quality_answers
from engine.validate.quality import tasks as quality_tasks
from engine.validate.quality.capabilities import check_abilities
from engine.validate.quality.held_out import check_held_out, open_held_out
from engine.validate.quality.writer import Writer
from engine.validate.report import (
    Former,
    Generation,
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

_GREEDY = "Tell me in one sentence what you are."
_GREEDY_TOKENS = 24
_SMALL = 50_000_000
_PATIENCE = 5.0
"""Seconds of a stage that need no word of progress."""


def main(ctx: JobContext, request: JobRequest) -> int:
    """Validates as the request says; returns the worker's exit code."""
    return Validation(ctx, request).run()


class Validation:
    """One validation of one model."""

    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        self.request = request
        self.workspace = Workspace.find(request.root)
        self.config = msgspec.json.decode(request.config, type=ValidateConfig)
        self.rows: list[CheckDone] = []
        self.generations: list[Generation] = []
        self.former: Report | None = None
        self.loaded: Loaded | None = None
        self.weights = ""
        self.parameters = 0

    def run(self) -> int:
        """The whole job; returns the worker's exit code."""
        tasks_path = Path(self.config.tasks_path) if self.config.tasks_path else None
        with self.ctx.busy("looking up the tasks"):
            quality_tasks.refuse_unknown(self.config.tasks, tasks_path)
        beat = lambda: self.ctx.checkpoint_point("reading a checkpoint")  # noqa: E731
        try:
            with choose_model(self.workspace, self.config, beat) as source:
                gguf = Path(self.config.gguf) if self.config.gguf else None
                self.former = read_report(report_path(self.workspace, self.config, source))
                self._announce(source)
                self._structure(source, gguf)
                self._quality(source)
                return self._end(source)
        except JobStopped:
            return self.ctx.ended("stopped", "stopped; no report was written")

    def _announce(self, source: Source) -> None:
        record = source.record
        self.ctx.emit(
            run_started(
                self.request,
                config=msgspec.to_builtins(self.config),
                preset=record.preset if record else "",
                device="cuda" if torch.cuda.is_available() else "cpu",
            )
        )
        for note in source.notes:
            self.ctx.log(note, "warning")
        self.ctx.log(f"validates {source.title}")

    # The checks, in their order

    def _structure(self, source: Source, gguf: Path | None) -> None:
        serve, record = self.ctx.checkpoint_point, source.record
        if gguf is None:
            digests: dict[str, str] = {}

            def files() -> CheckDone:
                done, found = check_files(source.folder, record, source.finished, serve)
                digests.update(found)
                return done

            self._tell(guarded("structural", "files", "files as saved", files))
            self.weights = weights_digest(source.folder, digests)
            config = read_config(source.folder)
            found = survey(stored_tensors(source.folder), serve)
        else:
            done, self.weights = check_gguf_file(gguf, serve)
            self._tell([done])
            if done.verdict == "fail":
                self._skip_structure("The file can't be read.")
                return
            expert = GGUFExpert(gguf)
            with self.ctx.busy("reading the GGUF file"):
                config = expert.config().to_dict()
            found = survey(expert.tensors(), serve)
        self.parameters = found.parameters
        # The products of a small student are shorter than the threads' waiting for one another.
        small = found.parameters < _SMALL
        torch.set_num_threads(1 if small else hardware.physical_cores())
        self._tell([check_finite(found)])
        self._tell(
            guarded(
                "structural",
                "parameters",
                "parameter count",
                lambda: check_parameters(found, config, record),
            )
        )
        with self.ctx.busy("loading the model"):
            done, self.loaded = load_folder(source.folder) if gguf is None else load_gguf(gguf)
        self._tell([done])
        if found.bad:
            self.loaded = None  # it loads, and would write NaN
        if self.loaded is None:
            self._skip_structure("The model does not load, or holds numbers that are not finite.")
        else:
            self._tokenizer(source, gguf, self.loaded)
            self._tell([*guarded("structural", "greedy", "greedy is the same", self._greedy)])
        self._parity(source, gguf)

    def _skip_structure(self, why: str) -> None:
        for name, title in (
            ("tokenizer", "tokenizer round trip"),
            ("special_tokens", "special tokens"),
            ("chat_template", "chat template"),
            ("greedy", "greedy is the same"),
        ):
            self._tell([skipped("structural", name, title, why)])

    def _tokenizer(self, source: Source, gguf: Path | None, loaded: Loaded) -> None:
        tokenizer, own = loaded.tokenizer, source.record is not None
        file = source.folder / "tokenizer.json" if gguf is None else None
        config = read_config(source.folder) if gguf is None else loaded.model.config.to_dict()
        generation = {} if gguf else read_json(source.folder / "generation_config.json")
        rows = int(loaded.model.config.vocab_size)
        checks: tuple[tuple[str, str, Callable[[], CheckDone]], ...] = (
            (
                "tokenizer",
                "tokenizer round trip",
                lambda: check_round_trip(tokenizer, file, rows),
            ),
            (
                "special_tokens",
                "special tokens",
                lambda: check_special_tokens(tokenizer, config, generation),
            ),
            ("chat_template", "chat template", lambda: check_template(tokenizer, own)),
        )
        for name, title, check in checks:
            self.ctx.checkpoint_point("checking the tokenizer")
            self._tell(guarded("structural", name, title, check))

    def _greedy(self) -> CheckDone:
        assert self.loaded is not None
        writer = Writer(self.loaded, self._progress)
        chat = [{"role": "user", "content": _GREEDY}]
        most = max(1, min(_GREEDY_TOKENS, self.loaded.context - len(writer.prompt_ids(chat))))
        one, two = (writer.write([chat], most, "writes twice")[0] for _ in range(2))
        same = one.ids == two.ids
        return row(
            "structural",
            "greedy",
            "greedy is the same",
            same,
            f"twice the same {len(one.ids)} tokens" if same else "two runs differ",
            "Greedy generation runs through, and gives the same tokens again.",
            bound="identical",
            detail="" if same else f"{one.text}\n{two.text}",
        )

    def _parity(self, source: Source, gguf: Path | None) -> None:
        """Each GGUF file beside the model (or the one that is meant) against the folder."""
        whole = (source.folder / "config.json").is_file()
        if gguf is not None and not whole:
            why = "There is no model folder to hold it against; name one with --model DIR."
            self._tell([skipped("structural", "gguf_parity", "GGUF parity", why)])
            return
        files = [gguf] if gguf else sorted(source.folder.glob("*.gguf"))
        for file in files:

            def report(doing: str, done: float, total: float | None) -> None:
                self._progress(doing, done, total)

            rows = guarded(
                "structural",
                "gguf_parity",
                "GGUF parity",
                lambda file=file: parity_checks(file, source.folder, report),
            )
            if len(files) > 1:
                rows = (
                    msgspec.structs.replace(
                        one, name=f"{one.name}:{file.name}", title=f"{one.title} {file.name}"
                    )
                    for one in rows
                )
            self._tell(rows)

    def _quality(self, source: Source) -> None:
        loaded = self.loaded
        if loaded is None:
            why = "The model can't be run, so nothing can be said of its quality."
            self._tell([skipped("quality", "bits_per_byte", "bits per byte", why)])
            return
        serve, writer = self.ctx.checkpoint_point, Writer(loaded, self._progress)
        cache = self.workspace.experts_cache_dir

        def held_out() -> Iterable[CheckDone]:
            return check_held_out(
                open_held_out(source.record, cache, source.folder, loaded), loaded, serve
            )

        self._tell(guarded("quality", "bits_per_byte", "bits per byte", held_out))
        self._tell(
            guarded(
                "quality",
                "routing",
                "tool routing",
                lambda: quality_answers.check_answers(writer, self.generations),
            )
        )
        self._tell(
            guarded(
                "quality",
                "valid_tool_calls",
                "valid tool calls",
                lambda: quality_answers.check_tool_calls(writer, self.generations),
            )
        )
        self._tell(
            guarded(
                "quality",
                "abilities",
                "abilities",
                lambda: check_abilities(writer, self.workspace, loaded.context, serve),
            )
        )
        self._tell(
            guarded(
                "quality",
                "generation_speed",
                "writing speed",
                lambda: quality_answers.check_speed(writer),
            )
        )
        if tasks := self.config.tasks:
            path = Path(self.config.tasks_path) if self.config.tasks_path else None
            with self.ctx.busy("lm-evaluation-harness", at_most=24 * 3600):
                done = list(
                    guarded(
                        "quality",
                        "tasks",
                        "tasks",
                        lambda: quality_tasks.check_tasks(loaded, tasks, path),
                    )
                )
            self._tell(done)

    # The end

    def _end(self, source: Source) -> int:
        former: Former | None = None
        if self.former is not None:
            former, compared = compare(self.former, self.rows, self.weights)
            self._tell([compared])
        structure, quality = structure_of(self.rows), quality_of(self.rows)
        verdict = verdict_text(self.rows)
        report = Report(
            created=time.time(),
            seconds=time.monotonic() - self.ctx.began,
            structure=structure,
            quality=quality,
            verdict=verdict,
            model=self._facts(source),
            machine=self._machine(),
            checks=tuple(map(Row.of, self.rows)),
            generations=tuple(self.generations),
            former=former,
        )
        path = self._write(source, report)
        self.ctx.emit(
            ReportDone(
                structure=structure,
                quality=quality,
                verdict=verdict,
                path=str(path),
                seconds=report.seconds,
            )
        )
        broken = structure == "broken"
        self.ctx.ended(
            "failed" if broken else "completed",
            f"{verdict}; see {path}" if broken else verdict,
            exit_code=ExitCode.FAILED if broken else ExitCode.DONE,
            seconds=report.seconds,
        )
        return 0

    def _facts(self, source: Source) -> ModelFacts:
        record = source.record
        return ModelFacts(
            path=self.config.gguf or ("" if not source.finished else str(source.folder)),
            title=source.title,
            kind="gguf" if self.config.gguf else "model" if source.finished else "checkpoint",
            preset=record.preset if record else "",
            step=record.step if record else None,
            tokens_seen=record.tokens_seen if record else None,
            parameters=self.parameters,
            weights=self.weights,
        )

    def _machine(self) -> Machine:
        loaded = self.loaded
        return Machine(
            device="" if loaded is None else loaded.device.type,
            precision="" if loaded is None else str(loaded.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
            versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
        )

    def _write(self, source: Source, report: Report) -> Path:
        path = report_path(self.workspace, self.config, source)
        try:
            write_report(path, report)
        except OSError as error:
            other = self.workspace.logs_dir / f"validation-{self.request.run_id}.json"
            self.ctx.log(f"{path} can't be written ({error.strerror}): see {other}", "warning")
            write_report(other, report)
            return other
        return path

    def _tell(self, rows: Iterable[CheckDone]) -> None:
        """Emit the rows as they come, each with its value in the former report."""
        before = {} if self.former is None else {r.name: r.value for r in self.former.checks}
        for one in rows:
            one = msgspec.structs.replace(one, former=before.get(one.name, ""))
            self.rows.append(one)
            self.ctx.emit(one)
            self.ctx.checkpoint_point("validating")

    def _progress(self, doing: str, done: float = 0.0, total: float | None = None) -> None:
        """A sign of life of a stage; told once it takes longer than a few seconds."""
        self.ctx.checkpoint_point(doing)
        if total is not None:
            self.ctx.progress(f"validate:{doing}", doing, done, total, every=1.0, after=_PATIENCE)
