"""Owns what a run takes of its streamed text before the first step, and the feeds that it makes of
it: samples, what is held out, and a source of windows for each expert.

It does not own the order of reading (`streams`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from engine.config import RunConfig
from engine.distill.align.blocks import ChatEncoder, TextBlock, make_blocks
from engine.distill.align.projection import Projector
from engine.distill.data import corpus
from engine.distill.data.corpus import Tally
from engine.distill.data.streams import Stream, StreamSource, open_streams
from engine.distill.teacher.teacher import Teacher
from engine.experts.registry import ExpertSpec
from engine.text.examples import Example
from engine.workspace import Workspace

_BYTES_TO_SAMPLE = 6
"""Bytes read for each token that may be scored: more than a token has."""
_TOKENIZER_BYTES = 4 << 20
"""Of streamed text that the student's tokenizer is trained on."""
_HELD_OUT_BYTES = 64 << 20
"""Of a streamed text that is looked through for what is held out."""


class StreamedText:
    """The streamed text of a run's experts; opened when it is made, and read when it is asked."""

    def __init__(
        self,
        config: RunConfig,
        experts: Sequence[ExpertSpec],
        workspace: Workspace,
        beat: Callable[[str], None],
        say: Callable[[str], None],
    ) -> None:
        """UsageError or MissingError where a text can't be opened."""
        self._config = config
        self._experts = experts
        self._beat = beat
        self._say = say
        self._streams = open_streams(config, experts, workspace.cache_dir)

    def of(self, spec: ExpertSpec) -> list[Stream]:
        return self._streams[spec.name]

    def __bool__(self) -> bool:
        return any(self._streams.values())

    def _taught_by(self, spec: ExpertSpec, example: Example, stream: Stream) -> bool:
        return spec.name in corpus.takers(example, self._experts, stream.capabilities)

    def to_score(self, spec: ExpertSpec) -> list[Example]:
        """As much as `data.max_teacher_tokens` lets the expert score, where targets are cached."""
        most = (self._config.data.max_teacher_tokens or 0) * _BYTES_TO_SAMPLE
        return [
            example
            for stream in self.of(spec)
            for example in stream.sample(stream.share * most)
            if self._taught_by(spec, example, stream)
        ]

    def for_tokenizer(self) -> list[Example]:
        """What the student's tokenizer is trained on, besides the text that is all there."""
        streams = [stream for part in self._streams.values() for stream in part]
        return [e for s in streams for e in s.sample(_TOKENIZER_BYTES / len(streams))]

    def held_out(
        self,
        spec: ExpertSpec,
        student: ChatEncoder,
        reader: ChatEncoder,
        known: Collection[str],
        tally: Tally,
    ) -> list[TextBlock]:
        """Blocks to measure on, from the beginning of the expert's streams.

        Of a text the digest decides, so that none of it is ever trained on. `known`: keys of the
        text that is all there, which is not taken.
        """
        data, most = self._config.data, self._config.optimizer.max_seq_len
        streams, passed = self.of(spec), set(known)
        blocks: list[TextBlock] = []
        for place, stream in enumerate(streams, start=1):
            wanted = max(1, data.held_out_streamed * place // len(streams))
            for example in stream.sample(_HELD_OUT_BYTES):
                if len(blocks) >= wanted:
                    break
                self._beat(f"reading {stream.text.title}")
                key = corpus.example_key(example)
                if key in passed or not corpus.held_of_stream(example, data.held_out):
                    continue
                if not self._taught_by(spec, example, stream):
                    continue
                passed.add(key)  # another stream may have it too
                for block in make_blocks(
                    *(example, student, reader),
                    max_student_tokens=most,
                    max_teacher_tokens=max(most, 2048),
                    trust_end=spec.trust_end,
                ):
                    if block is not None and len(block.alignment) and len(blocks) < wanted:
                        tally.block(block)
                        blocks.append(block)
        return blocks

    def sources(
        self,
        spec: ExpertSpec,
        readers: tuple[ChatEncoder, ChatEncoder],
        teach: Callable[[], tuple[Teacher, Projector]],
        held: frozenset[str],
    ) -> list[tuple[str, StreamSource, float]]:
        """Each stream's feed, source and share of the expert's streamed rows.

        `held`: split keys of the other text that is held out: no stream teaches it either.
        """
        return [
            (s.name, self._source(spec, s, readers, teach, held), s.share) for s in self.of(spec)
        ]

    def _source(
        self,
        spec: ExpertSpec,
        stream: Stream,
        readers: tuple[ChatEncoder, ChatEncoder],
        teach: Callable[[], tuple[Teacher, Projector]],
        held: frozenset[str],
    ) -> StreamSource:
        share = self._config.data.held_out

        def takes(example: Example) -> bool:
            if not self._taught_by(spec, example, stream):
                return False
            if corpus.held_of_stream(example, share):
                return False
            return corpus.split_key(example) not in held

        size = "" if stream.text.size is None else f", {stream.text.size / 2**20:,.0f} MiB"
        self._say(f"{spec.title} streams {stream.text.title}{size}, {stream.share:.0%} of its text")
        return StreamSource(
            stream.text,
            name=stream.name,
            spec=spec,
            config=self._config,
            takes=takes,
            readers=(readers[0].twin(), readers[1].twin()),
            teacher=teach,
            beat=self._beat,
            say=self._say,
        )

    def fingerprint(self, spec: ExpertSpec) -> str:
        """What held-out blocks depend on, besides the text that is all there; "" without any."""
        data = self._config.data
        settings = data.held_out, data.held_out_streamed
        parts = [f"{s.name} {s.text.fingerprint} {s.share} {settings}" for s in self.of(spec)]
        return " ".join(["", *parts])
