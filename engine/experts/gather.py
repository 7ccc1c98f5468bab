"""Owns getting experts' repositories onto the disk: what is here already is adopted, the rest comes
in transfers side by side, and a folder is published when all of it is verified.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import GladiusError
from engine.events import Progress
from engine.experts import folder as folders
from engine.experts.hub import Listing, RemoteFile
from engine.experts.meter import Meter
from engine.experts.publish import publish_expert, write_manifest
from engine.experts.ranges import Transfer, has_content
from engine.experts.refusals import told
from engine.experts.registry import ExpertSpec
from engine.run.job import JobContext
from engine.workspace import Workspace, fsync_dir, remove_entry

CONNECTIONS = 4
"""Files that come at the same time, of one expert or of several."""
_LARGE = 1 << 20
"""Files of so many bytes are told of before they begin."""
_TELL_SECONDS = 0.5
_LET_GO_SECONDS = 2.0


def bytes_lacking(workspace: Workspace, spec: ExpertSpec, listing: Listing, force: bool) -> int:
    """Bytes that a download of the expert still has to write, by sizes alone."""
    lacking = 0
    parts = workspace.downloads_dir / spec.name
    for file in listing.files:
        places = [parts / "files" / file.name]
        if not force:
            places.append(workspace.expert_dir(spec.name) / file.name)
        if not any(_size(place) == file.size for place in places):
            lacking += file.size - min(_size(parts / f"{file.key}.part"), file.size)
    return lacking


def gather(
    workspace: Workspace,
    listings: Sequence[tuple[ExpertSpec, Listing]],
    force: bool,
    ctx: JobContext,
    ended: Callable[[ExpertSpec, Path | GladiusError], None],
) -> None:
    """Fetch, verify and publish experts, several files at a time, in the order of the experts.

    `ended` is called for each with its folder, or with why it failed; the others go on. What has
    come stays below tmp/downloads/NAME until it is published. Raises JobStopped.
    """
    pending = deque(_Gathering(workspace, *pair, force, ctx) for pair in listings)
    active: list[_Gathering] = []

    def step(gathering: _Gathering, work: Callable[[], Path | None]) -> None:
        """Do a piece of work for one expert; its end, good or bad, is told."""
        outcome: Path | GladiusError | None
        try:
            outcome = work()
        except GladiusError as error:
            outcome = error
        except OSError as error:
            error.filename = error.filename or str(workspace.downloads_dir)
            refusal = told(gathering.spec, error)
            outcome = refusal if isinstance(refusal, GladiusError) else GladiusError(str(refusal))
        if outcome is not None:
            gathering.halt()
            active.remove(gathering)
            ended(gathering.spec, outcome)

    def halt() -> None:
        for gathering in active:
            gathering.halt()

    try:
        with ctx.on_pause(halt):
            while pending or active:
                for gathering in list(active):
                    step(gathering, lambda g=gathering: g.start(_free(active)))
                while pending and _free(active):
                    gathering = pending.popleft()
                    active.append(gathering)
                    step(gathering, gathering.prepare)
                    if gathering in active:
                        step(gathering, lambda g=gathering: g.start(_free(active)))
                ctx.checkpoint_point("downloading")
                time.sleep(0.05)
                for gathering in list(active):
                    step(gathering, gathering.attend)
    except BaseException:
        halt()
        deadline = time.monotonic() + _LET_GO_SECONDS
        for gathering in active:
            gathering.let_go(deadline)
        raise


def _free(active: list[_Gathering]) -> int:
    """Connections that may still be opened."""
    return CONNECTIONS - sum(gathering.connections for gathering in active)


class _Gathering:
    """One expert on its way."""

    def __init__(
        self, workspace: Workspace, spec: ExpertSpec, listing: Listing, force: bool, ctx: JobContext
    ) -> None:
        self.spec = spec
        self._workspace = workspace
        self._listing = listing
        self._force = force
        self._ctx = ctx
        self._parts = workspace.downloads_dir / spec.name
        self._files = self._parts / "files"
        self._waiting: list[RemoteFile] = list(listing.files)
        self._running: list[Transfer] = []
        self._done: dict[str, int] = {}
        """Bytes of each file that are here, by name."""
        self._complete: set[str] = set()
        self._meters = {file.name: Meter() for file in listing.files}
        self._meter = Meter()
        self._received = 0
        """Bytes that came over the wire: what is hashed of an earlier part is no speed."""
        self._told_at = 0.0

    @property
    def connections(self) -> int:
        """Transfers that go on, or have not let go yet."""
        return len(self._running)

    def prepare(self) -> None:
        """Find out what is here already."""
        self._make_room()
        self._tell(force=True)
        self._adopt()
        self._meter.restart(0)
        for file in self._waiting:
            if file.size >= _LARGE:
                self._tell_file(file)

    def attend(self) -> Path | None:
        """See how the transfers do; publishes when all is here, and returns the folder then."""
        self._collect()
        self._tell()
        return None if self._waiting or self._running else self._publish()

    def halt(self) -> None:
        """Let the transfers leave off; at once, but they may take a moment."""
        for transfer in self._running:
            transfer.halt()

    def let_go(self, deadline: float) -> None:
        """Wait for their end until `deadline` (monotonic)."""
        for transfer in self._running:
            transfer.join(max(0.0, deadline - time.monotonic()))

    # What is here already

    def _make_room(self) -> None:
        """The folders of this download, with nothing in them but what belongs to it."""
        final = self._workspace.expert_dir(self.spec.name)
        for path in (final, self._parts, self._files):
            if path.is_symlink():  # said before the first byte, not when all has come
                raise GladiusError(
                    f"{self.spec.name}: {path} is a link; remove it, then download again"
                )
        for path in (self._parts, self._files):
            path.mkdir(parents=True, exist_ok=True)
        keep = {f"{file.key}{end}" for file in self._listing.files for end in (".part", ".etag")}
        for entry in list(self._parts.iterdir()):
            if entry != self._files and entry.name not in keep:
                remove_entry(entry)
        names = {file.name for file in self._listing.files}
        for entry in list(self._files.iterdir()):
            if entry.name not in names:
                remove_entry(entry)

    def _adopt(self) -> None:
        """Take over the files that are here: of an earlier call, or of a damaged expert."""
        published = self._workspace.expert_dir(self.spec.name)
        for file in list(self._waiting):
            place = self._files / file.name
            if not has_content(place, file, self._tick):
                former = published / file.name
                if self._force or not has_content(former, file, self._tick):
                    part = self._parts / f"{file.key}.part"
                    self._done[file.name] = min(_size(part), file.size)
                    continue
                _link(former, place)
            self._finish(file)

    def _tick(self) -> None:
        self._ctx.checkpoint_point(f"verifying {self.spec.name}")

    # The transfers

    def start(self, free: int) -> None:
        """Begin transfers, `free` of them at most."""
        busy = {transfer.file.key for transfer in self._running}
        most = len(self._running) + free
        for file in list(self._waiting):
            if len(self._running) >= most:
                return
            if file.key in busy:
                continue  # the same content under another name, or a transfer that still lets go
            twin = next((f for f in self._listing.files if self._is_twin(f, file)), None)
            if twin is not None:
                _link(self._files / twin.name, self._files / file.name)
                self._finish(file)
                continue
            self._waiting.remove(file)
            busy.add(file.key)
            target = self._files / file.name
            self._meters[file.name].restart(0)
            self._running.append(
                Transfer(self.spec, self._listing, file, self._parts, target, self._say)
            )

    def _is_twin(self, other: RemoteFile, file: RemoteFile) -> bool:
        return other.key == file.key and other.name in self._complete and other.name != file.name

    def _collect(self) -> None:
        for transfer in list(self._running):
            name = transfer.file.name
            self._done[name] = transfer.done
            self._meters[name].update(transfer.received)
            if transfer.alive:
                continue
            self._running.remove(transfer)
            self._received += transfer.received
            if transfer.complete:
                self._finish(transfer.file)
            elif transfer.error is not None:
                raise transfer.error
            else:
                self._waiting.insert(0, transfer.file)  # halted by a pause
                self._meter.restart(self._received)

    def _finish(self, file: RemoteFile) -> None:
        if file in self._waiting:
            self._waiting.remove(file)
        self._done[file.name] = file.size
        self._complete.add(file.name)
        self._tell_file(file, finished=True)

    # What is told

    def _say(self, text: str) -> None:
        self._ctx.log(f"{self.spec.name}: {text}", "warning")

    def _total_done(self) -> int:
        return sum(self._done.values())

    def _tell(self, force: bool = False) -> None:
        now = time.monotonic()
        if now - self._told_at < _TELL_SECONDS and not force:
            return
        self._told_at = now
        for transfer in self._running:
            self._tell_file(transfer.file)
        done, total = self._total_done(), self._listing.total
        self._meter.update(self._received + sum(t.received for t in self._running))
        self._ctx.emit(
            Progress(
                task=f"download:{self.spec.name}",
                label=self.spec.title,
                done=done,
                total=total,
                unit="B",
                rate=self._meter.rate,
                eta=self._meter.eta(total - done),
            )
        )

    def _tell_file(self, file: RemoteFile, finished: bool = False) -> None:
        meter = self._meters[file.name]
        self._ctx.emit(
            Progress(
                task=f"download:{self.spec.name}:{file.name}",
                label=f"{self.spec.title}: {file.name}",
                done=self._done.get(file.name, 0),
                total=file.size,
                unit="B",
                rate=meter.rate,
                eta=None if finished else meter.eta(file.size - self._done.get(file.name, 0)),
                finished=finished,
            )
        )

    # The end

    def _publish(self) -> Path:
        spec = self.spec
        problem = folders.lacking(self._files)
        if problem is not None:
            shutil.rmtree(self._parts, ignore_errors=True)
            raise GladiusError(
                f"{spec.name}: {problem}; it is as the Hub has it and is not kept; choose another "
                "repository or revision"
            )
        self._ctx.run_in_thread(self._check_loadable, f"loading the tokenizer of {spec.name}")
        self._ctx.checkpoint_point(f"publishing {spec.name}")
        # A file of the Hub's that is verified by its sha256 has it; small ones are hashed here.
        known = {file.name: file.sha256 for file in self._listing.files if file.sha256}
        write_manifest(self._files, spec, self._listing.commit, known)
        with self._ctx.busy(f"publishing {spec.name}"):
            folder = publish_expert(self._workspace, spec, self._files)
        shutil.rmtree(self._parts, ignore_errors=True)
        return folder

    def _check_loadable(self) -> None:
        # Imported here: it brings transformers and torch, which take seconds.
        from engine.experts.loadable import check_loadable

        check_loadable(self._workspace, self.spec, self._files)


def _link(source: Path, target: Path) -> None:
    """Another name for the same bytes; a copy where the file system has no such thing."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    fsync_dir(target.parent)


def _size(path: Path) -> int:
    """Bytes of a plain file; 0 for what is none."""
    try:
        return path.stat(follow_symlinks=False).st_size if not path.is_symlink() else 0
    except OSError:
        return 0
