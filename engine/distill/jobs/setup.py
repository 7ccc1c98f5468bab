"""Shared context of the stages that prepare a training run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import RunConfig
from engine.distill.teacher.pool import TeacherPool
from engine.experts.registry import ExpertSpec, expert_path
from engine.run.job import JobContext
from engine.workspace import Workspace


@dataclass(frozen=True)
class RunSetup:
    """A run's config, experts and surroundings.

    Attributes:
        dtype: of the matrix products.
    """

    workspace: Workspace
    config: RunConfig
    experts: Sequence[ExpertSpec]
    ctx: JobContext
    pool: TeacherPool
    dtype: torch.dtype

    def expert_path(self, spec: ExpertSpec) -> Path:
        """The expert's folder or .gguf file."""
        return expert_path(self.workspace, spec)

    def cache_dir(self, spec: ExpertSpec) -> Path:
        """The folder for the expert's answers and targets."""
        return self.workspace.experts_cache_dir / spec.name
