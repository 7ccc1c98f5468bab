"""Shared context of the stages that prepare a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import DataConfig, RunConfig
from engine.distill.jobs.sealing import Sealing
from engine.distill.teacher.loading import expert_digest
from engine.distill.teacher.pool import TeacherPool
from engine.experts.registry import ExpertSpec, expert_path
from engine.run.job import JobContext
from engine.workspace import Workspace


@dataclass(frozen=True)
class RunSetup:
    """A run's config, experts and surroundings.

    Attributes:
        dtype: of the matrix products.
        sealing: compares with the seal of a training run; None in other jobs.
    """

    workspace: Workspace
    config: RunConfig
    experts: Sequence[ExpertSpec]
    ctx: JobContext
    pool: TeacherPool
    dtype: torch.dtype
    sealing: Sealing | None = None

    def expert_path(self, spec: ExpertSpec) -> Path:
        """The expert's folder or .gguf file."""
        return expert_path(self.workspace, spec)

    def cache_dir(self, spec: ExpertSpec) -> Path:
        """The folder for the expert's answers and targets."""
        return self.workspace.experts_cache_dir / spec.name

    def identity(self, spec: ExpertSpec) -> str:
        """Identifies the content of the expert's files, see `expert_digest`."""
        if self.sealing is not None:
            return self.sealing.identity(spec)
        return expert_digest(self.expert_path(spec), spec)

    def original(self, path: str | Path) -> str:
        """A path as it was when the run began: it differs in a root that was moved."""
        return str(path) if self.sealing is None else self.sealing.original(path)

    @property
    def stored_data(self) -> DataConfig:
        """The text's config with the paths of when the run began."""
        return (self.sealing.stored_config if self.sealing else self.config).data
