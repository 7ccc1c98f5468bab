"""Owns text that is read while the student trains, larger than memory: its order, by seed and
place, and the windows of blocks that it is cut into.

A window is to a stream what an epoch is to text that is all there: blocks that are shuffled and
packed together. Which examples it has follows from the seed and the place where it begins; the
place is part of the cursor, so that a resumed run reads the same windows. It does not own how the
text is stored (`textsources`, `hubtext`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from engine.budget import corpora_in_use, streamed_files
from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder, EncodedBlock, TextBlock, make_blocks
from engine.distill.align.projection import Projector
from engine.distill.data.packing import StreamPosition, StreamWindow
from engine.distill.teacher.scoring import OnlineTargets, teacher_forward
from engine.distill.teacher.teacher import Teacher
from engine.errors import GladiusError, UsageError
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example
from engine.text.hub import HubPieces
from engine.text.sources import HUB, FileText, Text, parse_hub, source_files

LANES = 8
"""Pieces that are read side by side, so that neighbours of one piece do not stand together."""
_MOST_EMPTY = 64
"""Windows in a row without a block, after which the text is taken for unreadable."""
_TOLD = 5
"""Warnings of unreadable text that are passed on, one by one."""

Takes = Callable[[Example], bool]


def open_texts(sources: Sequence[str], cache_dir: Path) -> list[Text]:
    """The sources' text in pieces, all files together as one; UsageError or MissingError."""
    files = [source for source in sources if not source.startswith(HUB)]
    texts: list[Text] = []
    if files:
        found = dict.fromkeys(file for source in files for file in source_files(source))
        texts.append(FileText(list(found), files[0] if len(files) == 1 else ""))
    hub = [source for source in sources if source.startswith(HUB)]
    return texts + [HubPieces(parse_hub(source), source, cache_dir) for source in hub]


class StreamReadError(GladiusError):
    """The text can't be read any further; what was trained is whole and worth a checkpoint."""


class Order:
    """A text's examples in an order that the seed decides, from any place on.

    Pieces come in a shuffled order, another one each pass; LANES of them are read side by side,
    and the next example is from one of them at random.
    """

    def __init__(self, text: Text, seed: Sequence[int], warn: Callable[[str], None]) -> None:
        self.text = text
        self._seed = list(seed)
        self._warn = warn
        self._live: tuple[StreamPosition, list[_Lane]] | None = None

    def read(
        self, place: StreamPosition, number: int
    ) -> Iterator[tuple[Example | None, StreamPosition]]:
        """Examples from `place` on, to the end of its pass, each with the place after it.

        `number` (a window's) decides which lane is next; None is what can't be read.
        """
        rng = np.random.default_rng([*self._seed, 1, number])
        order = self._order(place.turn)
        lanes = self._resume(place, order)
        upcoming = place.upcoming
        while True:
            while len(lanes) < LANES and upcoming < len(order):
                lanes.append(_Lane(self.text, order[upcoming], self._warn))
                upcoming += 1
            if not lanes:
                return
            lane = lanes[int(rng.integers(len(lanes)))]
            example = next(lane, _END)
            if example is _END:
                lanes.remove(lane)
                continue
            now = StreamPosition(place.turn, upcoming, tuple(lane.at for lane in lanes))
            self._live = now, lanes
            yield example, now  # type: ignore[misc]

    def _order(self, turn: int) -> list[int]:
        rng = np.random.default_rng([*self._seed, 0, turn])
        return rng.permutation(self.text.pieces).tolist()

    def _resume(self, place: StreamPosition, order: Sequence[int]) -> list[_Lane]:
        """The lanes as they stood at `place`: those at hand, or opened anew."""
        if self._live is not None and self._live[0] == place:
            return self._live[1]
        return [_Lane(self.text, p, self._warn, part, passed) for p, part, passed in place.lanes]


_END = object()


class _Lane:
    """One piece that is being read."""

    def __init__(
        self, text: Text, piece: int, warn: Callable[[str], None], part: int = 0, passed: int = 0
    ) -> None:
        self.at = (piece, part, passed)
        self._rows = text.read(piece, part, passed, warn)

    def __iter__(self) -> _Lane:
        return self

    def __next__(self) -> Example | None:
        part, example = next(self._rows)
        piece, former, passed = self.at
        self.at = (piece, part, passed + 1 if part == former else 1)
        return example


@dataclass
class StreamCounts:
    """What has been read of a stream in this attempt."""

    windows: int = 0
    examples: int = 0
    unreadable: int = 0
    blocks: int = 0
    skipped: int = 0
    """Blocks left out: their tokens' bytes do not give their text back."""


@dataclass(frozen=True)
class _Read:
    """A window as the reading thread hands it over."""

    window: StreamWindow
    blocks: list[TextBlock]
    warnings: list[str]
    counts: StreamCounts


class StreamSource:
    """Windows of blocks of one expert's streamed text, scored by the expert as they are trained on.

    The next window is read and tokenised in a thread while the student trains on this one.
    """

    own = False

    def __init__(
        self,
        text: Text,
        *,
        name: str,
        spec: ExpertSpec,
        config: RunConfig,
        takes: Takes,
        readers: tuple[ChatEncoder, ChatEncoder],
        teacher: Callable[[], tuple[Teacher, Projector]],
        beat: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """
        Args:
            takes: whether an example is this expert's to teach, and not held out.
            readers: the student's and the expert's, for this source alone (tokenizers are not to
                be shared between threads).
        """
        self.text = text
        self.counts = StreamCounts()
        self._spec = spec
        self._config = config
        self._takes = takes
        self._readers = readers
        self._teacher = teacher
        self._beat = beat
        self._say = say
        self._warnings: list[str] = []
        self._order = Order(text, [config.seed, *name.encode()], self._warnings.append)
        self._windows: dict[int, _Read] = {}
        self._coming: tuple[int, StreamPosition, Future[_Read]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"read {name}")

    # What the mixer asks

    def forget(self, before: int) -> None:
        for number in [n for n in self._windows if n < before]:
            del self._windows[number]

    def window(self, number: int, place: StreamPosition) -> StreamWindow:
        """The window that begins at `place`."""
        held = self._windows.get(number)
        if held is None or held.window.begins != place:
            held = self._wait_for(number, place)
            self._windows[number] = held
            self._tell(held)
        if self._coming is None:
            after = number + 1, held.window.ends
            self._coming = *after, self._thread.submit(self._read, *after)
        return held.window

    def _wait_for(self, number: int, place: StreamPosition) -> _Read:
        coming, self._coming = self._coming, None
        if coming is None or coming[:2] != (number, place):
            if coming is not None:
                wait([coming[2]])  # the thread's reading is over before it begins elsewhere
            future = self._thread.submit(self._read, number, place)
        else:
            future = coming[2]
        while not wait([future], timeout=1.0).done:
            self._beat(f"reading {self.text.title}")
        try:
            return future.result()
        except GladiusError as error:
            raise StreamReadError(str(error)) from error

    def _tell(self, read: _Read) -> None:
        self.counts.windows += 1
        for name in ("examples", "unreadable", "blocks", "skipped"):
            setattr(self.counts, name, getattr(self.counts, name) + getattr(read.counts, name))
        told = self.counts.unreadable - read.counts.unreadable
        for problem in read.warnings[: max(0, _TOLD - told)]:
            self._say(f"left out: {problem}")
        if told < _TOLD <= self.counts.unreadable:
            self._say(f"more of {self.text.title} can't be read; the rest is not told one by one")

    def _read(self, number: int, place: StreamPosition) -> _Read:
        """Runs in the thread."""
        begins, blocks, counts = place, list[TextBlock](), StreamCounts()
        wanted = self._config.data.window * 2**20
        for _ in range(_MOST_EMPTY):
            size = 0.0
            ended = True
            for example, after in self._order.read(place, number):
                place = after
                counts.examples += 1
                if example is None:
                    counts.unreadable += 1
                elif self._takes(example):
                    size += _text_bytes(example)
                    found = list(self._blocks(example))
                    blocks += [b for b in found if b is not None]
                    counts.skipped += found.count(None)
                else:
                    size += _text_bytes(example) / 16  # passing over is work too
                if size >= wanted:
                    ended = False
                    break
            if ended:
                place = StreamPosition(turn=place.turn + 1)
            if blocks:
                break
        else:
            raise UsageError(
                f"{self.text.title} has nothing that {self._spec.title} can teach "
                f"({counts.examples:,} examples looked at, {counts.unreadable:,} unreadable, "
                f"{counts.skipped:,} skipped)"
            )
        counts.blocks = len(blocks)
        warnings = self._warnings[:]
        self._warnings.clear()
        lengths = np.array([len(b.student_ids) for b in blocks], dtype=np.int64)
        return _Read(StreamWindow(begins, place, lengths), blocks, warnings, counts)

    def _blocks(self, example: Example) -> Iterator[TextBlock | None]:
        most = self._config.optimizer.max_seq_len
        for block in make_blocks(
            example,
            *self._readers,
            max_student_tokens=most,
            max_teacher_tokens=max(most, 2048),
            trust_end=self._spec.trust_end,
        ):
            yield block if block is not None and len(block.alignment) else None

    # What the trainer asks

    def row(self, block: int, epoch: int = 0) -> EncodedBlock:
        b = self._windows[epoch].blocks[block]
        return EncodedBlock(b.student_ids, b.student_scored, b.is_end, b.text_bytes)

    def soft(self, blocks: Sequence[int], epoch: int, device: torch.device) -> OnlineTargets:
        teacher, projector = self._teacher()
        output = teacher_forward(
            teacher, [self._windows[epoch].blocks[n] for n in blocks], self._beat
        )
        return OnlineTargets(output, projector, self._config.loss.temperature, device)


@dataclass(frozen=True)
class Stream:
    """A text that an expert teaches, before anything of it is tokenised."""

    name: str
    """Of its feed: `expert/text`."""
    text: Text
    share: float
    """Of the expert's streamed rows."""
    capabilities: tuple[str, ...] = ()
    """Of the text as a whole; an example's own goes before it."""
    seed: int = 0
    warnings: list[str] = field(default_factory=list)

    def sample(self, most_bytes: float, most_read: float = 2.0**26) -> Iterator[Example]:
        """Examples from the beginning of its first pass, up to about `most_bytes`; `most_read`
        bounds what a choosy caller makes it read."""
        order = Order(self.text, [self.seed, *self.name.encode()], self.warnings.append)
        size = 0
        for example, _ in order.read(StreamPosition(), 0):
            if example is not None:
                size += _text_bytes(example)
                yield example
            if size >= min(most_bytes, most_read):
                return


def _text_bytes(example: Example) -> int:
    if example.messages is None:
        return len(example.text or "")
    return sum(len(message.content) for message in example.messages)


def open_streams(
    config: RunConfig, experts: Sequence[ExpertSpec], cache_dir: Path
) -> dict[str, list[Stream]]:
    """The streamed texts of each expert: opened, and nothing of them read.

    UsageError or MissingError where one can't be opened.
    """
    opened = [(open_texts([c.source], cache_dir)[0], c) for c in corpora_in_use(config.data)]
    files = open_texts(streamed_files(config.data), cache_dir)
    streams: dict[str, list[Stream]] = {spec.name: [] for spec in experts}
    for spec in experts:
        parts: list[tuple[Text, float, tuple[str, ...]]]
        parts = [(text, 1.0 / len(files), ()) for text in files]
        for text, corpus in opened:
            able = [s.name for s in experts if set(corpus.capabilities) & set(s.capabilities)]
            if spec.name in able or not able:
                parts.append((text, corpus.share, tuple(corpus.capabilities)))
        total = sum(share for _, share, _ in parts)
        for text, share, capabilities in parts:
            name = f"{spec.name}/{_short(text.title)}"
            while any(name == s.name for s in streams[spec.name]):
                name += "+"
            streams[spec.name].append(Stream(name, text, share / total, capabilities, config.seed))
    return streams


def _short(title: str) -> str:
    """The last name in a path or a data set."""
    return title.removeprefix(HUB).partition(":")[0].rstrip("/").rpartition("/")[2]
