"""Shared context of the checks of a validation: the model, earlier results, and progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from engine.checkpoint.model_record import ModelRecord
from engine.export.model_source import ModelSource
from engine.run.job import JobContext
from engine.validate.choice import ValidateConfig
from engine.validate.generation import AnswerGenerator
from engine.validate.loading import LoadedModel
from engine.validate.model_files import TensorSurvey
from engine.validate.report import Generation
from engine.workspace import Workspace

_PROGRESS_AFTER = 5.0
"""Seconds after which a stage that is still running reports its progress."""


@dataclass
class CheckContext:
    """The model under validation.

    Attributes:
        source: the model folder (with `gguf`, the folder that the file is compared with).
        gguf: the GGUF file to validate; None for a model folder.
        readable: False when the GGUF file cannot be read (set by the `files` check).
        weights_digest: SHA-256 over the weights (set by the `files` check).
        survey: names, shapes and finiteness of the tensors (set by the `tensors_finite` check).
        loaded: the model, once the `loads` check has loaded it.
        generations: answers to store in the report.
    """

    job: JobContext
    workspace: Workspace
    config: ValidateConfig
    source: ModelSource
    readable: bool = True
    weights_digest: str = ""
    survey: TensorSurvey = field(default_factory=TensorSurvey)
    loaded: LoadedModel | None = None
    generations: list[Generation] = field(default_factory=list)

    @property
    def gguf(self) -> Path | None:
        return Path(self.config.gguf) if self.config.gguf else None

    @property
    def folder(self) -> Path:
        return self.source.folder

    @property
    def record(self) -> ModelRecord | None:
        """How the model was trained; None for a model that was not made by this program."""
        return self.source.record

    @property
    def model(self) -> LoadedModel:
        """The loaded model, for checks that need it."""
        assert self.loaded is not None, "a check that uses the model must need it in its table"
        return self.loaded

    @cached_property
    def generator(self) -> AnswerGenerator:
        """Generates the model's answers."""
        return AnswerGenerator(self.model, self.progress)

    def heartbeat(self, activity: str) -> None:
        """Report that the job is alive, and carry out commands; raises JobStopped."""
        self.job.checkpoint_point(activity)

    def progress(self, label: str, done: float = 0.0, total: float | None = None) -> None:
        """As `heartbeat`; also reports how much of a long stage is done."""
        self.job.checkpoint_point(label)
        if total is not None:
            self.job.progress(
                f"validate:{label}", label, done, total, every=1.0, after=_PROGRESS_AFTER
            )
