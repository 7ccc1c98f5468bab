"""Owns the export job: the model to deliver becomes one GGUF file, verified before it takes the
place of a former one, with a Modelfile and a model card beside it, and goes to the Hub when asked.

How a file is written is `gguf_file`'s, whether it is right `parity`'s.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.checkpoint.model_record import RECORD
from engine.checkpoint.tensor_files import hash_file
from engine.errors import GladiusError, MissingError, UsageError
from engine.events import CheckDone, Exported, JobRequest
from engine.export import llama_runtime
from engine.export.card import write_card
from engine.export.gguf import file_bytes, write_gguf
from engine.export.licences import model_name
from engine.export.model_source import Source, open_source
from engine.export.modelfile import write_modelfile
from engine.export.parity import parity_checks
from engine.export.push import Push, check_access, push
from engine.export.tensors import Weights, lossless_type
from engine.export.tokenizer import GgufTokenizer, read_gguf_tokenizer
from engine.gguf_types import DEFAULT_TYPE, GgufType, gguf_type
from engine.run.job import JobContext, JobStopped, run_started
from engine.workspace import Workspace, fsync_dir

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ExportRequest(msgspec.Struct, frozen=True):
    """The job's config."""

    type: str = DEFAULT_TYPE
    checkpoint: str | None = None
    """`latest`, `best` or a step; None: the finished model, else the newest checkpoint."""
    output: str | None = None
    """The file, or a folder for it; None: beside the finished model."""
    push: str | None = None
    """A repository on the Hub, such as `me/my-student`; asking is the caller's."""
    private: bool = False
    """A repository that is made for the push is private."""


def main(ctx: JobContext, request: JobRequest) -> int:
    """Export as the request says; returns the worker's exit code."""
    return ExportJob(ctx, request).run()


class ExportJob:
    """One export."""

    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        self.request = request
        self.workspace = Workspace.find(request.root)
        self.wanted = msgspec.json.decode(request.config, type=ExportRequest)
        self.delivered: Path | None = None
        """The file, once it is in its place."""

    def run(self) -> int:
        transformers_logging.disable_progress_bar()
        self.ctx.emit(run_started(self.request, config=msgspec.to_builtins(self.wanted)))
        kind = gguf_type(self.wanted.type)
        if self.wanted.push:
            with self.ctx.busy("asking the Hub"):
                check_access(self.wanted.push)
        torch.set_num_threads(hardware.physical_cores())
        try:
            with open_source(
                self.workspace,
                "export",
                self.wanted.checkpoint,
                lambda: self.ctx.checkpoint_point("reading"),
            ) as source:
                path = self._export(source, kind)
        except JobStopped:
            if self.delivered is not None:
                reason = f"stopped while it was uploaded; {self.delivered} is done"
                return self.ctx.ended("stopped", reason, model_path=str(self.delivered))
            return self.ctx.ended("stopped", "stopped; nothing of the export is left")
        return self.ctx.ended("completed", model_path=str(path))

    def _export(self, source: Source, kind: GgufType) -> Path:
        for note in source.notes:
            self.ctx.log(note, "warning")
        path = self._output(source, kind)
        self.ctx.log(f"{source.title} becomes {path.name}, {kind.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path)
        except OSError as error:
            raise GladiusError(
                f"can't write in {path.parent}: {error.strerror}; choose another --output"
            ) from error
        weights = Weights(source.folder)
        self._refuse_damaged(source)
        tokenizer = read_gguf_tokenizer(source.folder, weights.config["vocab_size"])
        for note in tokenizer.notes:
            self.ctx.log(note, "warning")
        self._warn_of_rows(weights, kind)
        _refuse_without_space(path, weights, tokenizer, kind)
        temporary = _temporary(path, kind.name)
        try:
            self._write(temporary, source, weights, tokenizer, kind)
            checks = self._verify(temporary, source, kind)
            try:
                os.replace(temporary, path)
                fsync_dir(path.parent)
            except OSError as error:
                raise _unwritable(path, error) from error
        finally:
            for leftover in (temporary, _temporary(path, "step")):
                leftover.unlink(missing_ok=True)
        self._deliver(path, source, tokenizer, kind, checks)
        return path

    def _output(self, source: Source, kind: GgufType) -> Path:
        """The file's final path."""
        default = f"{source.name}.gguf"
        if self.wanted.output is None:
            return self.workspace.model_dir / default
        path = Path(self.wanted.output).expanduser()
        path = path if path.is_absolute() else Path.cwd() / path
        if path.is_dir() or self.wanted.output.endswith("/"):
            return path / default
        if path.suffix != ".gguf":
            raise UsageError(f"--output {self.wanted.output}: give a name that ends in .gguf")
        return path

    def _write(
        self,
        temporary: Path,
        source: Source,
        weights: Weights,
        tokenizer: GgufTokenizer,
        kind: GgufType,
    ) -> None:
        """The file under a name of its own; GladiusError in one line when it can't be."""
        name = model_name(source.name, source.record)
        first = kind.name if kind.own else lossless_type(weights.dtype)
        target = temporary if kind.own else _temporary(temporary, "step")
        try:
            write_gguf(target, weights, tokenizer, wanted=first, name=name, report=self._report)
            if not kind.own:
                self._report("quantising", 0, None)
                by = llama_runtime.quantize(
                    target,
                    temporary,
                    kind,
                    threads=torch.get_num_threads(),
                    tick=lambda: self._report("quantising", 0, None),
                )
                self.ctx.log(f"quantised by {by}")
                _fsync(temporary)
        except OSError as error:
            raise _unwritable(temporary, error) from error
        finally:
            if target != temporary:
                target.unlink(missing_ok=True)

    def _verify(self, temporary: Path, source: Source, kind: GgufType) -> list[CheckDone]:
        """The rows of the comparison; GladiusError when one of them fails."""
        checks: list[CheckDone] = []
        for check in parity_checks(temporary, source.folder, self._report, kind):
            self.ctx.emit(check)
            checks.append(check)
            if check.verdict == "fail":
                raise GladiusError(
                    f"the written file is not the model ({check.title}: {check.value}); it is "
                    "removed, and a former file is untouched"
                )
        return checks

    def _deliver(
        self,
        path: Path,
        source: Source,
        tokenizer: GgufTokenizer,
        kind: GgufType,
        checks: list[CheckDone],
    ) -> None:
        """What lies beside the file, the event that tells of it, and the Hub."""
        try:
            modelfile = write_modelfile(path, source.folder, tokenizer)
            card = write_card(path, source, kind, checks)
        except OSError as error:
            raise GladiusError(
                f"{path} is done, but what goes beside it can't be written ({error.strerror}); "
                "make room, then export again"
            ) from error
        if not modelfile.template:
            self.ctx.log(f"{modelfile.path.name} has no TEMPLATE: {modelfile.why}", "warning")
        for ask in card.asks:
            self.ctx.log(ask)
        self.ctx.emit(
            Exported(
                path=str(path),
                weights=kind.name,
                bytes=path.stat().st_size,
                source=source.title,
                parity=_parity_line(checks),
                beside=(modelfile.path.name, card.path.name),
            )
        )
        self.delivered = path
        if self.wanted.push:
            url = push(
                Push(self.wanted.push, self.wanted.private),
                source.folder,
                [path, modelfile.path, card.path],
                lambda doing: self._report(doing, 0, None),
            )
            self.ctx.log(f"uploaded to {url}")

    def _refuse_damaged(self, source: Source) -> None:
        """Weights that changed since they were saved would make a file that verifies all the same
        (a checkpoint's are verified when it is chosen)."""
        for name, saved in (source.record.files if source.record else {}).items():
            path = source.folder / name
            if not name.endswith(".safetensors") or not path.is_file():
                continue
            if hash_file(path, lambda: self.ctx.checkpoint_point("reading")) != saved.sha256:
                raise GladiusError(
                    f"{path} is damaged (its SHA-256 is not what {RECORD} says): put it back, or "
                    f"export with --checkpoint latest (remove {RECORD} if you changed it yourself)"
                )

    def _warn_of_rows(self, weights: Weights, kind: GgufType) -> None:
        if kind.block == 1:
            return
        odd = [t.name for t in weights.placed() if len(t.shape) > 1 and t.shape[-1] % kind.block]
        if odd:
            self.ctx.log(
                f"{len(odd)} tensors ({odd[0]}, ...) have rows that are no multiple of "
                f"{kind.block}: they get another type than {kind.name}",
                "warning",
            )

    def _report(self, activity: str, done: float, total: float | None) -> None:
        """Progress of a stage, as the writers and checks of a GGUF file report it."""
        self.ctx.checkpoint_point(activity)
        self.ctx.progress(
            f"export:{activity}",
            activity,
            done,
            total,
            unit="B" if total else "",
            finished=total is not None and done >= total,
        )


def _temporary(path: Path, what: str) -> Path:
    """A name beside the final one, told apart by process."""
    return path.with_name(f".{path.name.lstrip('.')}.{what}-{os.getpid()}.tmp")


def _remove_leftovers(path: Path) -> None:
    """Delete what an export to this file left when it was killed."""
    import psutil

    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        owner = leftover.name.removesuffix(".tmp").rpartition("-")[2]
        if not (owner.isdecimal() and int(owner) != os.getpid() and psutil.pid_exists(int(owner))):
            leftover.unlink(missing_ok=True)


def _refuse_without_space(
    path: Path, weights: Weights, tokenizer: GgufTokenizer, kind: GgufType
) -> None:
    """Before minutes of work; MissingError too where nobody can make the type."""
    if not kind.own and not (llama_runtime.find_quantizer() or llama_runtime.find_python()):
        raise MissingError(llama_runtime.quantizer_missing(kind.name))
    first = kind.name if kind.own else lossless_type(weights.dtype)
    needed = file_bytes(weights, tokenizer, first)
    if not kind.own:
        needed += round(needed * kind.bits / 16)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise GladiusError(
            f"the file needs {needed / 2**20:,.0f} MiB and the disk of {path.parent} has "
            f"{free / 2**20:,.0f} MiB free; make room, or choose another --output"
        )


def _unwritable(path: Path, error: OSError) -> GladiusError:
    if error.errno in _FULL_DISK:
        return GladiusError(
            f"the disk of {path.parent} ran full while the file was written; make room, or choose "
            "another --output (a former file is untouched)"
        )
    return GladiusError(
        f"can't write in {path.parent}: {error.strerror or error}; choose another --output"
    )


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parity_line(checks: list[CheckDone]) -> str:
    """What was compared and what was not, in a line."""
    marks = {"pass": "✓", "warn": "!", "skip": "not compared", "fail": "✗"}
    parts = [f"{check.title.removeprefix('GGUF ')} {marks[check.verdict]}" for check in checks]
    logits = checks[-1]
    if logits.name == "gguf_logits" and logits.number is not None:
        parts[-1] += f" (KL {logits.number:.1e})"
    return ", ".join(parts)
