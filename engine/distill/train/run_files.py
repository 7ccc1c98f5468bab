"""What a checkpoint stores of its run besides the state of training: seal, journal, tokenizer, and
the metrics of recent steps.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.layout import EVENTS, JOURNAL, SEAL, TOKENIZER
from engine.checkpoint.manifest import is_run_file
from engine.checkpoint.train_state import TrainState
from engine.config import RunConfig, digest, to_json
from engine.distill.train.journal import Journal
from engine.events import EarlierEvents, Event, encode, is_metric
from engine.run.job import JobContext

_KEPT = 1000
"""Events of earlier steps that a checkpoint has at least, if there were as many."""
_MAX_KEPT = 20_000


class RecentEvents:
    """The metrics that the worker has reported, from before the last checkpoint on.

    A machine that crashes may lose the last transactions of the history; a resumed run fills them
    in from its checkpoint.
    """

    def __init__(self, ctx: JobContext, state: TrainState | None) -> None:
        """state: of the checkpoint that the run resumes from; its events are reported first, so
        that the history has those that it lost."""
        stored = b"" if state is None else state.files.get(EVENTS, b"")
        self._lines: deque[bytes] = deque(stored.splitlines(), maxlen=_MAX_KEPT)
        if self._lines:
            ctx.link.emit(EarlierEvents(lines=tuple(line.decode() for line in self._lines)))
        ctx.watch = self._add

    def _add(self, event: Event) -> None:
        if is_metric(event):
            self._lines.append(encode(event))

    def data(self) -> bytes:
        """The events as JSON lines."""
        return b"".join(line + b"\n" for line in self._lines)

    def saved(self) -> None:
        """A checkpoint has the events: drop old ones."""
        while len(self._lines) > _KEPT:
            self._lines.popleft()


@dataclass(frozen=True)
class RunFiles:
    """The small files of a run that each checkpoint has a copy of.

    Attributes:
        folder: of the checkpoints.
        config: with the paths of when the run began.
        seal: the content of seal.json.
    """

    folder: Path
    config: RunConfig
    seal: bytes
    recent: RecentEvents

    @property
    def config_json(self) -> bytes:
        return to_json(self.config)

    @property
    def config_digest(self) -> str:
        return digest(self.config)

    def content(self) -> dict[str, bytes]:
        """The files by their names in a checkpoint."""
        tokenizer = self.folder / TOKENIZER
        found = sorted(tokenizer.iterdir()) if tokenizer.is_dir() else []
        names = {f"{TOKENIZER}/{path.name}": path for path in found if path.is_file()}
        return {
            SEAL: self.seal,
            JOURNAL: Journal(self.folder / JOURNAL).data(),
            EVENTS: self.recent.data(),
            **{name: path.read_bytes() for name, path in names.items() if is_run_file(name)},
        }
