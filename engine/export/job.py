"""The export job: write the model as a GGUF file, verify it, write the Modelfile and the model card
next to it, and upload all of it to the Hub if requested.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.checkpoint.hashing import hash_file
from engine.checkpoint.model_record import RECORD
from engine.cleaning import record_made
from engine.errors import GladiusError
from engine.events import CheckDone, Exported, JobRequest
from engine.export import llama_runtime
from engine.export.card import write_card
from engine.export.gguf import write_gguf
from engine.export.licences import model_name
from engine.export.model_source import ModelSource, open_model_source
from engine.export.modelfile import write_modelfile
from engine.export.output import (
    fsync_file,
    output_path,
    prepare_folder,
    require_disk_space,
    temporary_path,
    write_error,
)
from engine.export.parity.checks import parity_checks
from engine.export.push import PushTarget, check_access, push
from engine.export.tensors import lossless_type, map_tensors
from engine.export.tokenizer import GgufTokenizer, read_gguf_tokenizer
from engine.export.weights import Weights
from engine.gguf_types import DEFAULT_TYPE, GgufType, file_name, gguf_type
from engine.run.job import JobContext, JobStopped, run_started
from engine.workspace import Workspace, fsync_dir


class ExportRequest(msgspec.Struct, frozen=True):
    """The request of the job, sent as JSON in place of a config."""

    type: str = DEFAULT_TYPE
    checkpoint: str | None = None
    """`latest`, `best` or a step; None: the finished model, or else the newest checkpoint."""
    output: str | None = None
    """The file, or a folder for it; None: next to the finished model."""
    push: str | None = None
    """A repository on the Hub, such as `me/my-student`; the user has confirmed the upload."""
    private: bool = False
    """Whether a repository that does not exist yet is created as private."""


def main(ctx: JobContext, request: JobRequest) -> int:
    """Run the ExportRequest in `request.config`; returns the worker's exit code."""
    return ExportJob(ctx, request).run()


class ExportJob:
    """One export.

    Attributes:
        finished_file: the GGUF file, once it is complete under its final name.
    """

    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        self.request = request
        self.workspace = Workspace.find(request.root)
        self.options = msgspec.json.decode(request.config, type=ExportRequest)
        self.finished_file: Path | None = None

    def run(self) -> int:
        """Run the export; returns the worker's exit code."""
        transformers_logging.disable_progress_bar()
        self.ctx.emit(run_started(self.request, config=msgspec.to_builtins(self.options)))
        file_type = gguf_type(self.options.type)
        if self.options.push:
            with self.ctx.busy("contacting the Hub"):
                check_access(self.options.push)
        torch.set_num_threads(hardware.physical_cores())
        try:
            with open_model_source(
                self.workspace, "export", self.options.checkpoint, self._tick_reading
            ) as source:
                path = self._export(source, file_type)
        except JobStopped:
            if self.finished_file is None:
                return self.ctx.ended("stopped", "stopped; the incomplete file was removed")
            return self.ctx.ended(
                "stopped",
                f"stopped during the upload; {self.finished_file} is complete",
                model_path=str(self.finished_file),
            )
        return self.ctx.ended("completed", model_path=str(path))

    def _export(self, source: ModelSource, file_type: GgufType) -> Path:
        self._log_warnings(source.warnings)
        path = output_path(
            self.options.output,
            self.workspace.model_dir,
            file_name=file_name(source.name, file_type.name),
        )
        self.ctx.log(f"exporting {source.title} to {path.name} as {file_type.name}")
        prepare_folder(path)
        weights = Weights(source.folder)
        self._check_digests(source)
        tokenizer = read_gguf_tokenizer(source.folder, weights.config["vocab_size"])
        self._log_warnings(tokenizer.warnings)
        self._warn_about_odd_rows(weights, file_type)
        require_disk_space(path, weights, tokenizer, file_type)
        temporary = temporary_path(path, file_type.name)
        lossless = temporary_path(temporary, "lossless")
        record_made(self.workspace, temporary, lossless, path)
        try:
            self._write(temporary, source, weights, tokenizer, file_type)
            checks = self._verify(temporary, source, file_type)
            try:
                os.replace(temporary, path)
                fsync_dir(path.parent)
            except OSError as error:
                raise write_error(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        companions = self._write_companions(path, source, tokenizer, file_type, checks)
        record_made(self.workspace, *companions)
        self.finished_file = path
        if self.options.push:
            self._push(self.options.push, source, [path, *companions])
        return path

    def _check_digests(self, source: ModelSource) -> None:
        """Raise GladiusError when weights have changed since they were saved: the GGUF file would
        match the damaged weights. (A checkpoint is verified when it is opened.)"""
        for name, saved in (source.record.files if source.record else {}).items():
            path = source.folder / name
            if not name.endswith(".safetensors") or not path.is_file():
                continue
            if hash_file(path, self._tick_reading) != saved.sha256:
                raise GladiusError(
                    f"{path} is damaged (its SHA-256 differs from {RECORD}): restore it, or "
                    f"export with --checkpoint latest (remove {RECORD} if you changed it yourself)"
                )

    def _warn_about_odd_rows(self, weights: Weights, file_type: GgufType) -> None:
        """Warn that tensors whose rows do not fit into blocks get another type."""
        odd = [
            mapping.gguf_name
            for mapping in map_tensors(weights)
            if len(mapping.shape) > 1 and mapping.shape[-1] % file_type.block
        ]
        if odd:
            self.ctx.log(
                f"{len(odd)} tensors ({odd[0]}, ...) have rows whose length is not a multiple of "
                f"{file_type.block}; they get another type than {file_type.name}",
                "warning",
            )

    def _write(
        self,
        temporary: Path,
        source: ModelSource,
        weights: Weights,
        tokenizer: GgufTokenizer,
        file_type: GgufType,
    ) -> None:
        """Write the file to `temporary`: directly, or quantized by llama.cpp from a lossless file.

        Raises GladiusError when it cannot be written.
        """
        first_type = file_type.name if file_type.own else lossless_type(weights.dtype)
        first = temporary if file_type.own else temporary_path(temporary, "lossless")
        try:
            write_gguf(
                first,
                weights,
                tokenizer,
                type_name=first_type,
                model_name=model_name(source.name, source.record),
                report=self._report,
            )
            if not file_type.own:
                self._quantize(first, temporary, file_type)
        except OSError as error:
            raise write_error(temporary, error) from error
        finally:
            if first != temporary:
                first.unlink(missing_ok=True)

    def _quantize(self, lossless: Path, target: Path, file_type: GgufType) -> None:
        def tick() -> None:
            self._report("quantizing", 0, None)

        tick()
        program = llama_runtime.quantize(
            lossless, target, file_type, threads=torch.get_num_threads(), tick=tick
        )
        self.ctx.log(f"quantized with {program}")
        fsync_file(target)

    def _verify(self, temporary: Path, source: ModelSource, file_type: GgufType) -> list[CheckDone]:
        """Compare the file with the model; raises GladiusError when a check fails."""
        checks: list[CheckDone] = []
        for check in parity_checks(temporary, source.folder, self._report, file_type):
            self.ctx.emit(check)
            checks.append(check)
            if check.verdict == "fail":
                raise GladiusError(
                    f"the written file does not match the model ({check.title}: {check.value}); it "
                    "was removed, and a previous file is unchanged"
                )
        return checks

    def _write_companions(
        self,
        path: Path,
        source: ModelSource,
        tokenizer: GgufTokenizer,
        file_type: GgufType,
        checks: list[CheckDone],
    ) -> list[Path]:
        """Write Modelfile and model card next to the file, and report the export as done."""
        try:
            modelfile = write_modelfile(path, source.folder, tokenizer)
            card = write_card(path, source, file_type, checks)
        except OSError as error:
            raise GladiusError(
                f"{path} is complete, but the Modelfile and the model card cannot be written "
                f"({error.strerror}); free some space, then export again"
            ) from error
        if not modelfile.template:
            self.ctx.log(f"the Modelfile has no TEMPLATE: {modelfile.reason}", "warning")
        for notice in card.notices:
            self.ctx.log(notice)
        self.ctx.emit(
            Exported(
                path=str(path),
                weights=file_type.name,
                bytes=path.stat().st_size,
                source=source.title,
                parity=_parity_summary(checks),
                beside=(modelfile.path.name, card.path.name),
            )
        )
        return [modelfile.path, card.path]

    def _push(self, repo: str, source: ModelSource, files: list[Path]) -> None:
        url = push(self.ctx, PushTarget(repo, self.options.private), source.folder, files)
        self.ctx.log(f"uploaded to {url}")

    def _log_warnings(self, warnings: list[str] | tuple[str, ...]) -> None:
        for warning in warnings:
            self.ctx.log(warning, "warning")

    def _tick_reading(self) -> None:
        self.ctx.checkpoint_point("reading the weights")

    def _report(self, label: str, done: float, total: float | None) -> None:
        """Report progress and carry out commands; raises JobStopped."""
        self.ctx.checkpoint_point(label)
        self.ctx.progress(
            task=f"export:{label}",
            label=label,
            done=done,
            total=total,
            unit="B" if total else "",
            finished=total is not None and done >= total,
        )


def _parity_summary(checks: list[CheckDone]) -> str:
    """The results of the comparison in one line."""
    marks = {"pass": "✓", "warn": "!", "skip": "not compared", "fail": "✗"}
    parts = [f"{check.title.removeprefix('GGUF ')} {marks[check.verdict]}" for check in checks]
    logits = checks[-1]
    if logits.name == "gguf_logits" and logits.number is not None:
        parts[-1] += f" (KL {logits.number:.1e})"
    return ", ".join(parts)
