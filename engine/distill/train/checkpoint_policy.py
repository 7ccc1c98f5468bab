"""When a run saves a checkpoint, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

from engine.checkpoint.errors import CheckpointError
from engine.checkpoint.store import CheckpointStore, SavedInfo
from engine.checkpoint.train_state import TrainState
from engine.config import RunConfig, digest, to_json
from engine.distill.train.pace import Pace
from engine.distill.train.run_files import RunFiles
from engine.distill.train.session import Session
from engine.events import CheckpointSaved, LogLine
from engine.run.disk import retry_when_full
from engine.run.job import JobContext

Reason = Literal["interval", "asked", "stop", "best", "decay", "final", "phase"]
_Saved = TypeVar("_Saved")


class CheckpointPolicy:
    """Saves checkpoints of the session: at intervals, at the ends of phases, before the decay, on
    request, and the weights of the best evaluation."""

    def __init__(
        self,
        store: CheckpointStore,
        config: RunConfig,
        session: Session,
        pace: Pace,
        ctx: JobContext,
    ) -> None:
        self.store = store
        self._config = config
        self._config_json = to_json(config)
        self._config_digest = digest(config)
        self._session = session
        self._pace = pace
        self._ctx = ctx
        self._last_save = time.monotonic()
        self._saved_step: int | None = None
        self._files: RunFiles | None = None
        self._waiting = False
        """Whether a checkpoint is being written, or waits for room."""

    def keep_with_run(self, files: RunFiles) -> None:
        """Store these files of the run in each checkpoint from now on."""
        self._files = files
        self._config_json, self._config_digest = files.config_json, files.config_digest

    def restored(self, step: int) -> None:
        """The session was loaded from the checkpoint of this step."""
        self._saved_step = step

    def save_if_due(self, *, ends_phase: bool, ends_run: bool, before_decay: bool) -> None:
        """Save a checkpoint after the current step if one is due.

        before_decay: the learning rate begins to decay with the next step. This checkpoint is
        protected, because a later resume with a larger budget continues from it. The end of the run
        is left to the final checkpoint.
        """
        step = self._session.progress.step
        if before_decay:
            self.save("decay", protect=True)
        elif self._saved_step == step:
            return
        elif ends_phase and not ends_run:
            self.save("phase")
        elif self._interval_passed(step):
            self.save("interval")

    def _interval_passed(self, step: int) -> bool:
        settings = self._config.checkpoint
        if settings.interval_steps and step % settings.interval_steps == 0:
            return True
        if settings.interval_minutes is None:
            return False
        return time.monotonic() - self._last_save >= settings.interval_minutes * 60

    def save(self, reason: Reason, protect: bool = False) -> None:
        """Save a checkpoint of the last completed step.

        While the disk is full the run is paused. If it fails otherwise, training continues with a
        warning; raises CheckpointError if the run can't continue without it (reason `stop` or
        `final`).
        """
        if self._waiting:
            return  # requested while another one waits for room
        self._last_save = time.monotonic()
        # So that the history has every step of every checkpoint, whatever is killed.
        self._ctx.link.commit()
        try:
            saved = self._retried(
                lambda: self.store.save(
                    self._state(),
                    config_json=self._config_json,
                    config_digest=self._config_digest,
                    reason=reason,
                    protect=protect,
                )
            )
        except CheckpointError as error:
            if reason in ("stop", "final"):
                raise
            self._warn(f"no checkpoint was saved, training continues: {error}")
            return
        if self._files is not None:
            self._files.recent.saved()
        self._saved_step = self._session.progress.step
        self._pace.save_seconds = max(1.0, saved.seconds)
        self._report(saved, reason)

    def save_best(self, score: float) -> None:
        """Keep the current weights as the best ones; `score` is their held-out bits per byte."""
        try:
            saved = self._retried(
                lambda: self.store.save_best(
                    self._state(),
                    config_json=self._config_json,
                    config_digest=self._config_digest,
                    score=score,
                )
            )
        except CheckpointError as error:
            self._warn(f"the best weights could not be saved: {error}")
            return
        if saved is not None:
            self._report(saved, "best")

    def _state(self) -> TrainState:
        """The state of the last completed step, with the files of the run."""
        state = self._session.state(self._pace.training_seconds)
        if self._files is not None:
            state.files = self._files.content()
        return state

    def _retried(self, write: Callable[[], _Saved]) -> _Saved:
        self._waiting = True
        try:
            step = self._session.progress.step
            return retry_when_full(self._ctx, write, what="the checkpoint", step=step)
        finally:
            self._waiting = False

    def _report(self, saved: SavedInfo, reason: Reason) -> None:
        self._ctx.emit(
            CheckpointSaved(
                step=self._session.progress.step,
                path=str(saved.path),
                bytes=saved.bytes,
                seconds=saved.seconds,
                reason=reason,
                best=reason == "best",
            )
        )

    def _warn(self, text: str) -> None:
        step = self._session.progress.step
        self._ctx.emit(LogLine(step=step, level="warning", text=text))
