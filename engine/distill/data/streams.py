"""A source of training blocks that reads its text while the student trains, window by window.

A window is to streamed text what an epoch is to text in memory: blocks that are shuffled and packed
together. Its examples follow from the seed and the position where it begins; the position is part
of the cursor, so that a resumed run reads the same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import torch

from engine.config import RunConfig
from engine.distill.align.blocks import BlockEncoder, EncodedBlock, TextBlock
from engine.distill.data.corpus import count_encoded, encode_text
from engine.distill.data.cursors import StreamPosition
from engine.distill.data.shuffled_text import ShuffledText
from engine.distill.data.sources import EpochBlocks, LoadTeacher
from engine.distill.teacher.scoring import OnlineTargets, teacher_forward
from engine.errors import GladiusError, UsageError
from engine.events import TextsRead, describe_texts
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example, LeftOut
from engine.text.forms import passages
from engine.text.pieces import TextPieces
from engine.text.tally import TextTally

_MAX_EMPTY_WINDOWS = 64
"""Windows in a row without a block after which the text counts as unusable."""


class StreamReadError(GladiusError):
    """The text cannot be read any further; the trainer saves a checkpoint before it fails."""


@dataclass
class StreamCounts:
    """Counts of what was read from a stream in this attempt."""

    windows: int = 0
    examples: int = 0
    unreadable: int = 0
    blocks: int = 0
    skipped: int = 0
    """Examples that were left out or cut when they were encoded."""

    def add(self, other: StreamCounts) -> None:
        self.windows += other.windows
        self.examples += other.examples
        self.unreadable += other.unreadable
        self.blocks += other.blocks
        self.skipped += other.skipped


@dataclass(frozen=True)
class _Window:
    """A window that was read and encoded."""

    epoch: EpochBlocks
    blocks: list[TextBlock]
    table: TextsRead
    """Of all that this attempt has read of the stream."""
    counts: StreamCounts


class StreamSource:
    """Windows of one expert's streamed text, scored by the expert when they are trained on.

    A thread reads and encodes the next window while the student trains on the current one.
    """

    def __init__(
        self,
        text: TextPieces,
        *,
        name: str,
        expert: ExpertSpec,
        config: RunConfig,
        accepts: Callable[[Example], bool],
        encoder: BlockEncoder,
        load_teacher: LoadTeacher,
        heartbeat: Callable[[str], None],
        emit: Callable[[TextsRead], None],
    ) -> None:
        """
        Args:
            name: of the source; part of the seed of the text's order.
            expert: the one that teaches the text.
            accepts: whether this expert teaches an example and it is not held out.
            encoder: used in the reading thread only (tokenizers cannot be shared between threads).
            emit: called with what became of the texts so far, where there is news.
        """
        self.text = text
        self.counts = StreamCounts()
        self._name = name
        self._expert = expert
        self._config = config
        self._accepts = accepts
        self._encoder = encoder
        self._load_teacher = load_teacher
        self._heartbeat = heartbeat
        self._emit = emit
        self._emitted: set[tuple[str, str]] | None = None
        self._examples = ShuffledText(text, [config.seed, *name.encode()])
        self._tally = TextTally()  # used in the reading thread only
        for left in text.files_left_out:
            self._tally.leave_out(left)
        self._windows: dict[int, _Window] = {}
        self._next: tuple[int, StreamPosition, Future[_Window]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"read {name}")

    def open_epoch(self, epoch: int, begins: StreamPosition) -> EpochBlocks:
        """The window with number `epoch`, which begins at `begins`.

        Starts reading the next window. Raises StreamReadError where the text cannot be read.
        """
        window = self._windows.get(epoch)
        if window is None or window.epoch.begins != begins:
            window = self._wait_for(epoch, begins)
            self._windows[epoch] = window
            self._report(window)
        if self._next is None:
            following = epoch + 1, window.epoch.ends
            self._next = *following, self._thread.submit(self._read, *following)
        return window.epoch

    def release_before(self, epoch: int) -> None:
        """Free the windows before this one."""
        for number in [n for n in self._windows if n < epoch]:
            del self._windows[number]

    def block(self, index: int, epoch: int = 0) -> EncodedBlock:
        return self._windows[epoch].blocks[index].for_student

    def soft_targets(
        self, blocks: Sequence[int], epoch: int, device: torch.device
    ) -> OnlineTargets:
        teacher, projector = self._load_teacher()
        text_blocks = [self._windows[epoch].blocks[n] for n in blocks]
        output = teacher_forward(teacher, text_blocks, self._heartbeat)
        return OnlineTargets(output, projector, self._config.loss.temperature, device)

    def _wait_for(self, number: int, begins: StreamPosition) -> _Window:
        """The window from the thread: the one that it is reading, or read now."""
        upcoming, self._next = self._next, None
        if upcoming is None or upcoming[:2] != (number, begins):
            if upcoming is not None:
                wait([upcoming[2]])  # the thread must finish before it reads elsewhere
            future = self._thread.submit(self._read, number, begins)
        else:
            future = upcoming[2]
        while not wait([future], timeout=1.0).done:
            self._heartbeat(f"reading {self.text.title}")
        try:
            return future.result()
        except GladiusError as error:
            raise StreamReadError(str(error)) from error

    def _report(self, window: _Window) -> None:
        """Add up the counts; emit the table for a new reason, and ever more rarely without one."""
        self.counts.add(window.counts)
        reasons = {(reason.outcome, reason.reason) for reason in window.table.reasons}
        windows = self.counts.windows
        if reasons != self._emitted or windows & (windows - 1) == 0:
            self._emitted = reasons
            self._emit(window.table)

    def _read(self, number: int, begins: StreamPosition) -> _Window:
        """Read and encode one window; runs in the thread."""
        counts, position = StreamCounts(windows=1), begins
        blocks: list[TextBlock] = []
        for _ in range(_MAX_EMPTY_WINDOWS):
            position = self._read_until_full(number, position, blocks, counts)
            if blocks:
                break
        else:
            raise UsageError(
                f"{self.text.title} has no text that {self._expert.title} can teach; "
                f"{describe_texts(self._tally.table())}"
            )
        counts.blocks = len(blocks)
        table = self._tally.table(self._expert.name, self._name)
        token_counts = np.array([len(b.student_ids) for b in blocks], dtype=np.int64)
        return _Window(EpochBlocks(token_counts, begins, position), blocks, table, counts)

    def _read_until_full(
        self,
        number: int,
        position: StreamPosition,
        blocks: list[TextBlock],
        counts: StreamCounts,
    ) -> StreamPosition:
        """Append blocks until the window is full or the pass ends; returns the position after."""
        limit = self._config.data.window * 2**20
        size = 0.0
        for item, after in self._examples.read(position, number):
            position = after
            counts.examples += 1
            if isinstance(item, LeftOut):
                counts.unreadable += 1
                self._tally.leave_out(item)
            elif self._accepts(item):
                size += text_bytes(item)
                for example in passages(item):
                    found = encode_text(self._encoder, example)
                    count_encoded(self._tally, example, found)
                    blocks += found.blocks
                    counts.skipped += bool(found.problem)
            else:
                size += text_bytes(item) / 16  # reading past an example takes time too
            if size >= limit:
                return position
        return StreamPosition(pass_number=position.pass_number + 1)


def text_bytes(example: Example) -> int:
    """Size of an example's text, in characters."""
    if example.messages is None:
        return len(example.text or "")
    return sum(len(message.content) for message in example.messages)
