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
from engine.distill.data.cursors import StreamPosition
from engine.distill.data.shuffled_text import ShuffledText
from engine.distill.data.sources import EpochBlocks, LoadTeacher
from engine.distill.teacher.scoring import OnlineTargets, teacher_forward
from engine.errors import GladiusError, UsageError
from engine.text.examples import Example
from engine.text.pieces import TextPieces

_MAX_EMPTY_WINDOWS = 64
"""Windows in a row without a block after which the text counts as unusable."""
_MAX_WARNINGS = 5
"""Warnings of unreadable text that are logged; the rest is only counted."""


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
    """Blocks that were left out because their tokens lose bytes of the text."""

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
    warnings: list[str]
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
        title: str,
        config: RunConfig,
        accepts: Callable[[Example], bool],
        encoder: BlockEncoder,
        load_teacher: LoadTeacher,
        heartbeat: Callable[[str], None],
        log: Callable[[str], None],
    ) -> None:
        """
        Args:
            name: of the source; part of the seed of the text's order.
            title: the expert's, for messages.
            accepts: whether this expert teaches an example and it is not held out.
            encoder: used in the reading thread only (tokenizers cannot be shared between threads).
        """
        self.text = text
        self.counts = StreamCounts()
        self._title = title
        self._config = config
        self._accepts = accepts
        self._encoder = encoder
        self._load_teacher = load_teacher
        self._heartbeat = heartbeat
        self._log = log
        self._warnings: list[str] = []
        self._examples = ShuffledText(text, [config.seed, *name.encode()], self._warnings.append)
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
        """Add up the counts, and log the first few warnings."""
        logged = self.counts.unreadable
        self.counts.add(window.counts)
        for problem in window.warnings[: max(0, _MAX_WARNINGS - logged)]:
            self._log(f"skipped: {problem}")
        if logged < _MAX_WARNINGS <= self.counts.unreadable:
            self._log(f"{self.text.title}: further unreadable examples are skipped without a log")

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
                f"{self.text.title} has no text that {self._title} can teach: "
                f"{counts.examples:,} examples read, {counts.unreadable:,} unreadable, "
                f"{counts.skipped:,} skipped"
            )
        counts.blocks = len(blocks)
        warnings = self._warnings[:]
        self._warnings.clear()
        token_counts = np.array([len(b.student_ids) for b in blocks], dtype=np.int64)
        return _Window(EpochBlocks(token_counts, begins, position), blocks, warnings, counts)

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
        for example, after in self._examples.read(position, number):
            position = after
            counts.examples += 1
            if example is None:
                counts.unreadable += 1
            elif self._accepts(example):
                size += text_bytes(example)
                found = self._encoder.encode(example)
                blocks += found.blocks
                counts.skipped += bool(found.problem)
            else:
                size += text_bytes(example) / 16  # reading past an example takes time too
            if size >= limit:
                return position
        return StreamPosition(pass_number=position.pass_number + 1)


def text_bytes(example: Example) -> int:
    """Size of an example's text, in characters."""
    if example.messages is None:
        return len(example.text or "")
    return sum(len(message.content) for message in example.messages)
