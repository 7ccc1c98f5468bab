"""Download experts from the Hub, several files in parallel, and install the verified folders."""

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
from engine.experts.hub_errors import translate_error
from engine.experts.install import install_expert, write_manifest
from engine.experts.meter import Meter
from engine.experts.registry import ExpertSpec
from engine.experts.transfer import Transfer, has_content
from engine.experts.verify import try_expert
from engine.run.job import JobContext
from engine.workspace import Workspace, expert_dir, fsync_dir, remove_entry

CONNECTIONS = 4
"""Files that are downloaded in parallel, over all experts."""
_LARGE = 1 << 20
"""Files of at least this many bytes appear in the progress before their transfer starts."""
_POLL_SECONDS = 0.05
_REPORT_SECONDS = 0.5
_STOP_SECONDS = 2.0
"""Seconds that a stopped job waits for its transfers to end."""


def missing_bytes(workspace: Workspace, spec: ExpertSpec, listing: Listing, force: bool) -> int:
    """Bytes that a download of the expert still has to write, judged by file sizes."""
    missing = 0
    parts = workspace.downloads_dir / spec.name
    for file in listing.files:
        paths = [parts / "files" / file.name]
        if not force:
            paths.append(expert_dir(workspace, spec.name) / file.name)
        if not any(_size(path) == file.size for path in paths):
            missing += file.size - min(_size(parts / f"{file.key}.part"), file.size)
    return missing


def download_experts(
    workspace: Workspace,
    listings: Sequence[tuple[ExpertSpec, Listing]],
    force: bool,
    ctx: JobContext,
    on_end: Callable[[ExpertSpec, Path | GladiusError], None],
) -> None:
    """Download, verify and install experts in their order, several files in parallel.

    `on_end` is called for each expert with its folder or its error; an error does not stop the
    others. Partial downloads stay in tmp/downloads/NAME. Raises JobStopped.
    """
    pending = deque(_ExpertDownload(workspace, *pair, force, ctx) for pair in listings)
    active: list[_ExpertDownload] = []

    def run(download: _ExpertDownload, work: Callable[[], Path | None]) -> None:
        """Do one piece of work of a download; end the download at its result or its error."""
        outcome: Path | GladiusError | None
        try:
            outcome = work()
        except GladiusError as error:
            outcome = error
        except OSError as error:
            error.filename = error.filename or str(workspace.downloads_dir)
            translated = translate_error(download.spec, error)
            if not isinstance(translated, GladiusError):
                translated = GladiusError(str(translated))
            outcome = translated
        if outcome is not None:
            download.stop_transfers()
            active.remove(download)
            on_end(download.spec, outcome)

    def stop_transfers() -> None:
        for download in active:
            download.stop_transfers()

    try:
        with ctx.on_pause(stop_transfers):
            while pending or active:
                for download in list(active):
                    run(download, lambda d=download: d.start_transfers(_free(active)))
                while pending and _free(active):
                    download = pending.popleft()
                    active.append(download)
                    run(download, download.prepare)
                    if download in active:
                        run(download, lambda d=download: d.start_transfers(_free(active)))
                ctx.checkpoint_point("downloading")
                time.sleep(_POLL_SECONDS)
                for download in list(active):
                    run(download, download.poll)
    except BaseException:
        stop_transfers()
        deadline = time.monotonic() + _STOP_SECONDS
        for download in active:
            download.join(deadline)
        raise


def _free(active: list[_ExpertDownload]) -> int:
    """The number of further connections that may be opened."""
    return CONNECTIONS - sum(download.connections for download in active)


class _ExpertDownload:
    """The download of one expert.

    Complete files are collected in tmp/downloads/NAME/files, part files are next to it.
    """

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
        self._complete: set[str] = set()
        self._progress = _DownloadProgress(ctx, spec, listing)

    @property
    def connections(self) -> int:
        """The number of transfers that have not ended."""
        return len(self._running)

    def prepare(self) -> None:
        """Create the folders and reuse files that are already here."""
        self._prepare_folders()
        self._progress.report((), force=True)
        self._reuse_files()
        self._progress.restart()
        for file in self._waiting:
            if file.size >= _LARGE:
                self._progress.report_file(file)

    def poll(self) -> Path | None:
        """Handle ended transfers and report progress; the installed folder once all is done."""
        self._collect()
        self._progress.report(self._running)
        return None if self._waiting or self._running else self._install()

    def stop_transfers(self) -> None:
        """Signal the transfers to stop; does not wait."""
        for transfer in self._running:
            transfer.stop()

    def join(self, deadline: float) -> None:
        """Wait until the transfers have ended, or until `deadline` (monotonic clock)."""
        for transfer in self._running:
            transfer.join(max(0.0, deadline - time.monotonic()))

    # Files that are already here

    def _prepare_folders(self) -> None:
        """Create the download folders and delete everything in them that is not of this listing."""
        final = expert_dir(self._workspace, self.spec.name)
        for path in (final, self._parts, self._files):
            if path.is_symlink():
                raise GladiusError(
                    f"{self.spec.name}: {path} is a symbolic link; remove it, then download again"
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

    def _reuse_files(self) -> None:
        """Reuse verified files of an earlier download, or of an installed expert."""
        installed = expert_dir(self._workspace, self.spec.name)
        for file in list(self._waiting):
            path = self._files / file.name
            if not has_content(path, file, self._checkpoint):
                installed_file = installed / file.name
                if self._force or not has_content(installed_file, file, self._checkpoint):
                    part = self._parts / f"{file.key}.part"
                    self._progress.done[file.name] = min(_size(part), file.size)
                    continue
                _link(installed_file, path)
            self._finish(file)

    def _checkpoint(self) -> None:
        self._ctx.checkpoint_point(f"verifying {self.spec.name}")

    # Transfers

    def start_transfers(self, free: int) -> None:
        """Start at most `free` further transfers."""
        busy = {transfer.file.key for transfer in self._running}
        limit = len(self._running) + free
        for file in list(self._waiting):
            if len(self._running) >= limit:
                return
            if file.key in busy:
                continue  # the same content is in transfer under another name, or still stopping
            same = next((f for f in self._listing.files if self._is_complete_copy(f, file)), None)
            if same is not None:
                _link(self._files / same.name, self._files / file.name)
                self._finish(file)
                continue
            self._waiting.remove(file)
            busy.add(file.key)
            self._progress.start_file(file)
            target = self._files / file.name
            self._running.append(
                Transfer(self.spec, self._listing, file, self._parts, target, self._warn)
            )

    def _is_complete_copy(self, other: RemoteFile, file: RemoteFile) -> bool:
        return other.key == file.key and other.name in self._complete and other.name != file.name

    def _collect(self) -> None:
        """Remove ended transfers; raises the error of a failed one."""
        for transfer in list(self._running):
            self._progress.update(transfer)
            if transfer.alive:
                continue
            self._running.remove(transfer)
            self._progress.add_received(transfer.received)
            if transfer.complete:
                self._finish(transfer.file)
            elif transfer.error is not None:
                raise transfer.error
            else:
                self._waiting.insert(0, transfer.file)  # stopped by a pause
                self._progress.restart()

    def _finish(self, file: RemoteFile) -> None:
        """Mark a file as complete."""
        if file in self._waiting:
            self._waiting.remove(file)
        self._complete.add(file.name)
        self._progress.done[file.name] = file.size
        self._progress.report_file(file, finished=True)

    def _warn(self, text: str) -> None:
        self._ctx.log(f"{self.spec.name}: {text}", "warning")

    def _install(self) -> Path:
        """Check the complete folder and move it to tmp/models; returns its new path."""
        spec = self.spec
        problem = folders.find_problem(self._files)
        if problem is not None:
            shutil.rmtree(self._parts, ignore_errors=True)
            raise GladiusError(
                f"{spec.name}: {problem}; the repository itself is incomplete, so the download was "
                "deleted; choose another repository or revision"
            )
        try_expert(spec, self._files, self._ctx, run_model=True)
        self._ctx.checkpoint_point(f"installing {spec.name}")
        # Large files were verified by their sha256; only small ones must be hashed for it.
        known = {file.name: file.sha256 for file in self._listing.files if file.sha256}
        write_manifest(self._files, spec, self._listing.commit, known)
        with self._ctx.busy(f"installing {spec.name}"):
            folder = install_expert(self._workspace, spec, self._files)
        shutil.rmtree(self._parts, ignore_errors=True)
        return folder


class _DownloadProgress:
    """Progress events of a download: one task for the expert and one for each of its files.

    Attributes:
        done: bytes of each file that are on the disk, by file name.
    """

    def __init__(self, ctx: JobContext, spec: ExpertSpec, listing: Listing) -> None:
        self.done: dict[str, int] = {}
        self._ctx = ctx
        self._spec = spec
        self._total = listing.total
        self._file_meters = {file.name: Meter() for file in listing.files}
        self._meter = Meter()
        self._received = 0  # bytes received by ended transfers
        self._reported_at = 0.0

    def restart(self) -> None:
        """Measure the expert's rate from now on, as after a pause."""
        self._meter.restart(self._received)

    def start_file(self, file: RemoteFile) -> None:
        """Measure the rate of a file from now on."""
        self._file_meters[file.name].restart(0)

    def update(self, transfer: Transfer) -> None:
        """Record the byte counts of a transfer."""
        self.done[transfer.file.name] = transfer.done
        self._file_meters[transfer.file.name].update(transfer.received)

    def add_received(self, count: int) -> None:
        """Add the bytes that an ended transfer has received."""
        self._received += count

    def report(self, running: Sequence[Transfer], force: bool = False) -> None:
        """Report the expert and its running transfers, at most every 0.5 s unless forced."""
        now = time.monotonic()
        if now - self._reported_at < _REPORT_SECONDS and not force:
            return
        self._reported_at = now
        for transfer in running:
            self.report_file(transfer.file)
        done = sum(self.done.values())
        self._meter.update(self._received + sum(transfer.received for transfer in running))
        self._ctx.emit(
            Progress(
                task=f"download:{self._spec.name}",
                label=self._spec.title,
                done=done,
                total=self._total,
                unit="B",
                rate=self._meter.rate,
                eta=self._meter.eta(self._total - done),
            )
        )

    def report_file(self, file: RemoteFile, finished: bool = False) -> None:
        """Report one file."""
        meter = self._file_meters[file.name]
        done = self.done.get(file.name, 0)
        self._ctx.emit(
            Progress(
                task=f"download:{self._spec.name}:{file.name}",
                label=f"{self._spec.title}: {file.name}",
                done=done,
                total=file.size,
                unit="B",
                rate=meter.rate,
                eta=None if finished else meter.eta(file.size - done),
                finished=finished,
            )
        )


def _link(source: Path, target: Path) -> None:
    """Hard-link the file; copy it if the file system has no hard links."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    fsync_dir(target.parent)


def _size(path: Path) -> int:
    """Bytes of a regular file; 0 for anything else."""
    try:
        return path.stat(follow_symlinks=False).st_size if not path.is_symlink() else 0
    except OSError:
        return 0
