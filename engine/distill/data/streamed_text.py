"""The streamed text of a run's experts: opened, sampled before the first step, and turned into
sources of training blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.budget import corpora_in_use, streamed_files
from engine.config import RunConfig
from engine.distill.align.blocks import BlockEncoder, TextBlock
from engine.distill.data import corpus
from engine.distill.data.cursors import StreamPosition
from engine.distill.data.shuffled_text import ShuffledText, open_texts
from engine.distill.data.sources import LoadTeacher
from engine.distill.data.streams import StreamSource, text_bytes
from engine.errors import UsageError
from engine.events import TextsRead, describe_texts
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example, LeftOut
from engine.text.forms import passages
from engine.text.pieces import TextPieces
from engine.text.sources import HUB
from engine.text.tally import TextTally, require_learnable

_BYTES_PER_SCORED_TOKEN = 6
"""Bytes sampled for each token that may be scored: more than a token has."""
_TOKENIZER_BYTES = 4 << 20
"""Streamed text that the student's tokenizer is trained on."""
_HELD_OUT_BYTES = 64 << 20
"""Beginning of a streamed text that is searched for held-out examples."""
_TRIED_EXAMPLES, _TRIED_BYTES = 64, 1 << 17
"""Examples of a stream that are encoded before the first step, to see whether they can be, at most;
and their bytes."""
_KEPT_EXAMPLES = 8
"""Examples with the smallest digests that are kept, to hold one out where none is by its digest."""
_LEFT_OUT_BYTES = 64
"""Counted for what can't be read, so that a sample ends."""
_MAX_SAMPLE_BYTES = 2.0**26
"""Text that one sample reads, at most."""


@dataclass(frozen=True)
class Stream:
    """A text that one expert teaches, opened but not read.

    Attributes:
        name: of its source, `expert/text`; part of the seed of its order.
        share: of the expert's streamed rows.
        capabilities: of the complete text; an example's own capability takes precedence.
    """

    name: str
    text: TextPieces
    share: float
    capabilities: tuple[str, ...] = ()
    seed: int = 0

    def sample(self, max_bytes: float, tally: TextTally | None = None) -> Iterator[Example]:
        """Examples from the beginning of the first pass, about `max_bytes` of text.

        tally: counts what can't be read.
        """
        items = ShuffledText(self.text, [self.seed, *self.name.encode()])
        size = 0.0
        for item, _ in items.read(StreamPosition(), 0):
            if isinstance(item, LeftOut):
                size += _LEFT_OUT_BYTES
                if tally is not None:
                    tally.leave_out(item)
            else:
                size += text_bytes(item)
                yield item
            if size >= min(max_bytes, _MAX_SAMPLE_BYTES):
                return


def open_streams(
    config: RunConfig,
    experts: Sequence[ExpertSpec],
    cache_dir: Path,
    original: Callable[[Path], str] = str,
) -> dict[str, list[Stream]]:
    """The streamed texts of each expert, opened but not read.

    original: the path of a file that is part of its text's fingerprint.

    UsageError or MissingError where one cannot be opened.
    """
    opened = [
        (open_texts([c.source], cache_dir, original)[0], c) for c in corpora_in_use(config.data)
    ]
    files = open_texts(streamed_files(config.data), cache_dir, original)
    streams: dict[str, list[Stream]] = {spec.name: [] for spec in experts}
    for spec in experts:
        parts: list[tuple[TextPieces, float, tuple[str, ...]]]
        parts = [(text, 1.0 / len(files), ()) for text in files]
        for text, public in opened:
            capable = [s.name for s in experts if set(public.capabilities) & set(s.capabilities)]
            if spec.name in capable or not capable:
                parts.append((text, public.share, tuple(public.capabilities)))
        total = sum(share for _, share, _ in parts)
        for text, share, capabilities in parts:
            name = f"{spec.name}/{_short_name(text.title)}"
            while any(name == s.name for s in streams[spec.name]):
                name += "+"
            streams[spec.name].append(Stream(name, text, share / total, capabilities, config.seed))
    return streams


def _short_name(title: str) -> str:
    """The last part of a path or of a data set's name."""
    return title.removeprefix(HUB).partition(":")[0].rstrip("/").rpartition("/")[2]


class StreamedText:
    """The streamed text of all experts of a run."""

    def __init__(
        self,
        config: RunConfig,
        experts: Sequence[ExpertSpec],
        streams: dict[str, list[Stream]],
        heartbeat: Callable[[str], None],
        log: Callable[[str], None],
        emit: Callable[[TextsRead], None],
    ) -> None:
        self._config = config
        self._experts = experts
        self._streams = streams
        self._heartbeat = heartbeat
        self._log = log
        self._emit = emit

    def streams_of(self, spec: ExpertSpec) -> list[Stream]:
        return self._streams[spec.name]

    def __bool__(self) -> bool:
        return any(self._streams.values())

    def _teaches(self, spec: ExpertSpec, example: Example, stream: Stream) -> bool:
        return spec.name in corpus.experts_for(example, self._experts, stream.capabilities)

    def sample_to_score(self, spec: ExpertSpec) -> list[Example]:
        """Enough text for `data.max_teacher_tokens`, where targets are cached.

        Raises UsageError where more than a tenth of it can't be read.
        """
        data = self._config.data
        total = (data.max_teacher_tokens or 0) * _BYTES_PER_SCORED_TOKEN
        found: list[Example] = []
        for stream in self.streams_of(spec):
            tally = TextTally()
            for left in stream.text.files_left_out:
                tally.leave_out(left)
            for example in stream.sample(stream.share * total, tally):
                if self._teaches(spec, example, stream):
                    for passage in passages(example):
                        tally.add(passage, "learnt")
                        found.append(passage)
            table = tally.table(spec.name, stream.name)
            what = f"{spec.title}, {stream.name}"
            require_learnable(table, lenient=data.lenient, is_sample=True, what=what)
            if table.reasons:
                self._emit(table)
        return found

    def sample_for_tokenizer(self) -> list[Example]:
        """Streamed text that the student's tokenizer is trained on."""
        streams = [stream for part in self._streams.values() for stream in part]
        return [e for s in streams for e in s.sample(_TOKENIZER_BYTES / len(streams))]

    def held_out_blocks(
        self, spec: ExpertSpec, encoder: BlockEncoder, fixed_text: Collection[str], required: bool
    ) -> tuple[list[TextBlock], frozenset[str]]:
        """Held-out blocks from the beginning of the expert's streams; split keys of further text.

        The digest of a text decides, so that no held-out text is ever trained on. Where a block is
        required and the digests of a small text hold nothing out, the text with the smallest one is
        held out; its split key is returned.

        fixed_text: keys of the text that is not streamed; none of it is taken.

        Raises UsageError where more than a tenth of what it reads can't be learnt.
        """
        data = self._config.data
        streams, seen = self.streams_of(spec), set(fixed_text)
        blocks: list[TextBlock] = []
        others: dict[str, Example] = {}
        for number, stream in enumerate(streams, start=1):
            target = max(1, data.held_out_streamed * number // len(streams))
            tally = TextTally()
            tried = size = 0
            for example in stream.sample(_HELD_OUT_BYTES, tally):
                if len(blocks) >= target:
                    break
                self._heartbeat(f"reading {stream.text.title}")
                if not self._teaches(spec, example, stream):
                    continue
                key = corpus.example_key(example)
                if key not in seen and not blocks:
                    others[corpus.split_key(example)] = example
                    if len(others) > _KEPT_EXAMPLES:
                        del others[max(others)]
                held_out = corpus.is_held_out_of_stream(example, data.held_out)
                if key in seen or not held_out:
                    if tried < _TRIED_EXAMPLES and size < _TRIED_BYTES:
                        tried, size = tried + 1, size + text_bytes(example)
                        self._encode(encoder, example, tally)
                    continue
                seen.add(key)  # another stream may have the same text
                blocks += self._encode(encoder, example, tally)[: target - len(blocks)]
            table = tally.table()
            require_learnable(
                table, lenient=data.lenient, is_sample=True, what=f"{spec.title}, {stream.name}"
            )
            if table.left_out and not table.learnt:
                raise UsageError(
                    f"{stream.text.title}: none of its text can be learnt: {describe_texts(table)}"
                )
        if not blocks and required and len(others) > 1:
            for key in sorted(others):
                if blocks := self._encode(encoder, others[key], TextTally()):
                    return blocks, frozenset({key})
        return blocks, frozenset()

    def _encode(self, encoder: BlockEncoder, example: Example, tally: TextTally) -> list[TextBlock]:
        """The blocks of an example, counted."""
        blocks: list[TextBlock] = []
        for passage in passages(example):
            found = corpus.encode_text(encoder, passage)
            corpus.count_encoded(tally, passage, found)
            blocks += found.blocks
        return blocks

    def sources(
        self,
        spec: ExpertSpec,
        encoder: BlockEncoder,
        load_teacher: LoadTeacher,
        held_out: frozenset[str],
    ) -> list[tuple[str, StreamSource, float]]:
        """Name, source and share of the expert's streamed rows, of each stream.

        held_out: split keys of the held-out text that is not streamed; no stream teaches it.
        """
        return [
            (s.name, self._source(spec, s, encoder, load_teacher, held_out), s.share)
            for s in self.streams_of(spec)
        ]

    def _source(
        self,
        spec: ExpertSpec,
        stream: Stream,
        encoder: BlockEncoder,
        load_teacher: LoadTeacher,
        held_out: frozenset[str],
    ) -> StreamSource:
        held_out_share = self._config.data.held_out

        def accepts(example: Example) -> bool:
            if not self._teaches(spec, example, stream):
                return False
            if corpus.is_held_out_of_stream(example, held_out_share):
                return False
            return corpus.split_key(example) not in held_out

        size = "" if stream.text.size is None else f" ({stream.text.size / 2**20:,.0f} MiB)"
        self._log(
            f"{spec.title} streams {stream.text.title}{size}: {stream.share:.0%} of its "
            "streamed text"
        )
        return StreamSource(
            stream.text,
            name=stream.name,
            expert=spec,
            config=self._config,
            accepts=accepts,
            encoder=encoder.copy_for_thread(),
            load_teacher=load_teacher,
            heartbeat=self._heartbeat,
            emit=self._emit,
        )

    def fingerprint(self, spec: ExpertSpec) -> str:
        """Identity of the held-out blocks of the streamed text; "" without streams."""
        data = self._config.data
        settings = data.held_out, data.held_out_streamed
        streams = self.streams_of(spec)
        parts = [f"{s.name} {s.text.fingerprint} {s.share} {settings}" for s in streams]
        return " ".join(["", *parts])
