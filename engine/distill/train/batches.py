"""The training data of each optimizer step: packed rows, their blocks and their soft targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from engine.config import RunConfig
from engine.distill.align.blocks import EncodedBlock
from engine.distill.data.cursors import Cursor
from engine.distill.data.packing import Batch, Mixer, PackedRow, make_batch
from engine.distill.data.sources import Source
from engine.distill.teacher.soft_targets import ChainedTargets, SoftSource
from engine.distill.train.on_policy import OnPolicyRounds
from engine.distill.train.phases import Schedule
from engine.distill.train.round_sources import RoundSources
from engine.distill.train.session import Session
from engine.run.job import JobContext

Row = tuple[PackedRow, list[EncodedBlock]]
"""A packed row with its blocks."""


@dataclass(frozen=True)
class TrainingData:
    """Training data of a run.

    Attributes:
        sources: of each expert, by source name: the source, and its share of the expert's rows.
        rounds: writes on-policy rounds; None if the run has no on-policy training.
    """

    sources: Mapping[str, Mapping[str, tuple[Source, float]]]
    rounds: OnPolicyRounds | None = None


@dataclass(frozen=True)
class StepData:
    """The packed rows of one optimizer step.

    Attributes:
        cursors: how far each source is read after the step.
    """

    rows: list[Row]
    cursors: dict[str, Cursor]

    @cached_property
    def scored_positions(self) -> int:
        """Scored positions of all rows: the denominator of the step's loss (at least 1)."""
        return max(1, sum(len(block.scored) for _, blocks in self.rows for block in blocks))

    @property
    def tokens(self) -> int:
        """Student tokens, without padding."""
        return sum(len(block.ids) for _, blocks in self.rows for block in blocks)

    def micro_batches(self, size: int) -> Iterator[list[Row]]:
        """The rows, `size` at a time."""
        for first in range(0, len(self.rows), size):
            yield self.rows[first : first + size]


class StepBatches:
    """Chooses the rows of each step and reads them from their sources.

    Attributes:
        sources: every source by name, those of the current on-policy round included.
    """

    def __init__(
        self, config: RunConfig, data: TrainingData, session: Session, ctx: JobContext
    ) -> None:
        self._config = config
        self._data = data
        self._session = session
        self.rounds = RoundSources(data.rounds, session, ctx)
        self.sources: dict[str, Source] = {
            name: source
            for sources in data.sources.values()
            for name, (source, _) in sources.items()
        }
        self.mixer = Mixer(
            self.sources,
            max_seq_len=config.optimizer.max_seq_len,
            global_batch_size=config.optimizer.global_batch_size,
            seed=config.seed,
        )

    def next(self, schedule: Schedule, step: int) -> StepData:
        """The data of optimizer step `step`; a new on-policy round is written where one begins.

        A function of the session's cursors, the seed and the decisions. Raises JobStopped if a stop
        is requested while the student writes.
        """
        if self.rounds.enter(schedule, step):
            self._update_round_sources()
            progress = self._session.progress
            progress.cursors = {
                name: cursor for name, cursor in progress.cursors.items() if name in self.sources
            }
        chosen, cursors = self.mixer.next(self._session.progress.cursors, self.mix(schedule, step))
        return StepData([(row, self._read(row)) for row in chosen], cursors)

    def soft_targets(self, rows: list[Row]) -> SoftSource | None:
        """Soft targets of the rows' scored positions, row after row; None if alpha is 0.

        Adjacent rows of one source are one request: an online teacher scores them in one pass.
        """
        if self._config.loss.alpha == 0.0:
            return None
        groups: list[tuple[str, int, list[int], int]] = []
        for row, blocks in rows:
            indices, positions = list(row.blocks), sum(len(block.scored) for block in blocks)
            if groups and groups[-1][:2] == (row.source, row.epoch):
                _, _, earlier, count = groups.pop()
                indices, positions = earlier + indices, count + positions
            groups.append((row.source, row.epoch, indices, positions))
        parts = [
            (positions, self.sources[name].soft_targets(indices, epoch, self._session.device))
            for name, epoch, indices, positions in groups
        ]
        return parts[0][1] if len(parts) == 1 else ChainedTargets(parts)

    def reset(self) -> None:
        """Forget the current round, after the session was restored from a checkpoint."""
        self.rounds.close()
        self._update_round_sources()

    def _update_round_sources(self) -> None:
        """Remove the sources of earlier rounds and add those of the current one."""
        fixed = {name for sources in self._data.sources.values() for name in sources}
        current = self.rounds.sources
        for name in set(self.sources) - fixed - set(current):
            del self.sources[name]
            self.mixer.remove(name)
        for name, source in current.items():
            self.sources[name] = source
            self.mixer.add(name, source)

    def mix(self, schedule: Schedule, step: int) -> dict[str, float]:
        """Share of each source in the rows of a step."""
        mix: dict[str, float] = {}
        for expert, expert_share in schedule.mix_at(step).items():
            own_writing = self.rounds.unread(expert)
            on_policy = self._config.schedule.on_policy_share if own_writing else 0.0
            for name, (_, source_share) in self._data.sources[expert].items():
                mix[name] = expert_share * source_share * (1.0 - on_policy)
            for name in own_writing:
                mix[name] = expert_share * on_policy
        return mix

    def _read(self, row: PackedRow) -> list[EncodedBlock]:
        source = self.sources[row.source]
        return [source.block(index, row.epoch) for index in row.blocks]


def batch_of(rows: list[Row], device: torch.device) -> Batch:
    """The rows as tensors."""
    return make_batch([blocks for _, blocks in rows], device)
