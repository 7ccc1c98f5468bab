"""The experts that a job has in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from engine.distill.align.blocks import BlockEncoder
from engine.distill.align.projection import Projector
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.teacher import Teacher
from engine.experts.registry import ExpertSpec, expert_path
from engine.run.job import JobContext
from engine.workspace import Workspace


@dataclass(frozen=True)
class LoadedExpert:
    """An expert in memory, with what scoring its text for one student needs."""

    teacher: Teacher
    encoder: BlockEncoder
    projector: Projector


class TeacherPool:
    """Loads experts and keeps them in memory: one at a time, or all of a run (online teachers)."""

    def __init__(
        self,
        workspace: Workspace,
        ctx: JobContext,
        device: torch.device,
        dtype: torch.dtype,
        keep_all: bool,
        check: Callable[[ExpertSpec], Callable[[], None]] | None = None,
    ) -> None:
        """check: called before an expert is loaded; what it returns is called after it, and raises
        GladiusError if the expert's files are not to be used."""
        self._workspace = workspace
        self._ctx = ctx
        self._device = device
        self._dtype = dtype
        self._keep_all = keep_all
        self._check = check
        self.loaded: dict[str, Teacher] = {}
        """The experts in memory, by name."""

    def get(self, spec: ExpertSpec) -> Teacher:
        """The expert, loaded where it is not in memory; releases the others unless all stay."""
        if spec.name not in self.loaded:
            if not self._keep_all:
                self.release()
            compare = self._check(spec) if self._check else None
            with self._ctx.busy(f"loading {spec.title}"):
                teacher = load_teacher(
                    expert_path(self._workspace, spec),
                    spec,
                    self._device,
                    self._dtype,
                    self._ctx.heartbeat,
                )
            if compare is not None:
                compare()
            self.loaded[spec.name] = teacher
        return self.loaded[spec.name]

    def release(self) -> None:
        """Free the memory of all experts."""
        self.loaded.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
