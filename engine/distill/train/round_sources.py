"""Sources of the current on-policy round: text that the student wrote, scored by the experts."""

from __future__ import annotations

import time

from engine.distill.data.cursors import Cursor
from engine.distill.train.on_policy import PASSES, OnPolicyRound, OnPolicyRounds, OnPolicySource
from engine.distill.train.phases import Schedule
from engine.distill.train.session import Session
from engine.events import LogLine
from engine.run.job import JobContext


class RoundSources:
    """Opens the on-policy round of each step; where a round begins, the student writes its text.

    Attributes:
        by_expert: the sources of the current round, by expert and source name.
    """

    def __init__(self, rounds: OnPolicyRounds | None, session: Session, ctx: JobContext) -> None:
        """rounds: None if the run has no on-policy training."""
        self._rounds = rounds
        self._session = session
        self._ctx = ctx
        self._start: int | None = None
        self.by_expert: dict[str, dict[str, OnPolicySource]] = {}

    @property
    def sources(self) -> dict[str, OnPolicySource]:
        """The sources of the current round, by name."""
        return {name: s for sources in self.by_expert.values() for name, s in sources.items()}

    def unread(self, expert: str) -> list[str]:
        """Names of the expert's sources that have not been trained on `PASSES` times."""
        cursors = self._session.progress.cursors
        return [
            name
            for name in self.by_expert.get(expert, {})
            if cursors.get(name, Cursor()).epoch < PASSES
        ]

    def enter(self, schedule: Schedule, step: int) -> bool:
        """Open the round of this step; whether the sources changed.

        A function of the checkpoint and the decisions: a round that was written before is in the
        checkpoint, and is not written again.
        """
        start = schedule.round_at(step) if self._rounds is not None else None
        if start == self._start:
            return False
        self.close()
        if self._rounds is not None and start is not None:
            began = time.monotonic()
            written = self._session.progress.round
            if written is None or written.start != start:
                phase = schedule.phase_at(step)
                mix = {phase.expert: 1.0} if phase.expert else schedule.mix_at(step)
                written = self._rounds.write(self._session.model, start, mix)
                self._session.progress.round = written
            self.by_expert = self._rounds.open(written)
            self._log(written, time.monotonic() - began)
        self._start = start
        return True

    def close(self) -> None:
        """Remove the sources of the current round."""
        self.by_expert, self._start = {}, None

    def _log(self, written: OnPolicyRound, seconds: float) -> None:
        counts = [f"{len(answers)} for {name}" for name, answers in written.answers.items()]
        tokens = sum(int(source.token_counts().sum()) for source in self.sources.values())
        text = (
            f"on-policy round: the student wrote {', '.join(counts) or 'no'} answers, "
            f"{tokens:,} tokens, {seconds:.1f} s"
        )
        self._ctx.emit(LogLine(step=self._session.progress.step, level="info", text=text))
