"""Compare a run with its seal, and write the seal of a new run.

Large files (text, experts) are hashed in a thread, while the job reads and loads them; each is
compared before it is used. What differs from the seal is named, never silently used.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import tokenizers
import torch
import transformers

from engine.budget import corpora_in_use, streamed_files
from engine.checkpoint.hashing import FileRecord, file_record
from engine.checkpoint.layout import SEAL, TOKENIZER
from engine.checkpoint.manifest import is_run_file
from engine.checkpoint.seal import (
    ExpertSeal,
    Seal,
    TextSeal,
    encode_seal,
    files_problem,
    seal_expert,
    seal_text,
    settings_problem,
    text_problem,
)
from engine.config import RunConfig, digest, move_paths
from engine.distill.teacher.loading import expert_digest
from engine.errors import GladiusError, UsageError
from engine.experts.registry import ExpertSpec, expert_path, read_manifest
from engine.run.job import JobContext
from engine.small_files import Damaged, read_bytes
from engine.text.sources import HUB, parse_hub, source_files
from engine.workspace import Workspace, moved_path, write_bytes

_POLL_SECONDS = 0.1
_FRESH = "or start a new run with: gladius_train train --fresh"
_SETTINGS = (
    "source",
    "weight",
    "capabilities",
    "chat",
    "end_tokens",
    "stop_strings",
    "trust_end",
)
"""Fields of an expert that the training depends on."""


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the numbers depend on."""
    return {
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "safetensors": safetensors.__version__,
    }


class Sealing:
    """The seal of one attempt at a run.

    Attributes:
        sealed: the seal of a resumed run; None for a new one, and for a run of an older version.
        began: Unix time at which the run began.
    """

    def __init__(
        self,
        workspace: Workspace,
        config: RunConfig,
        experts: Sequence[ExpertSpec],
        ctx: JobContext,
        run_id: str,
        sealed: Seal | None,
    ) -> None:
        self.sealed = sealed
        self.began = time.time() if sealed is None else sealed.created
        self.workspace = workspace
        self._config = config
        self._experts = experts
        self.ctx = ctx
        self._run_id = run_id
        # Two threads: an expert is not to wait for all of a large text.
        self._texts, self._hashing = _Hashing(ctx), _Hashing(ctx)
        self._text_files = _text_files(config)
        self._streamed = set(_local_files(streamed_files(config.data)))
        self._values: dict[str, dict[str, Any]] = {}

    @property
    def origin(self) -> str:
        """The root's path when the run began."""
        return self.sealed.root if self.sealed else str(self.workspace.root)

    @property
    def stored_config(self) -> RunConfig:
        """The config with paths as they were when the run began: what is stored and hashed."""
        return move_paths(self._config, self.workspace.root, self.origin)

    def original(self, path: str | Path) -> str:
        """The path as it was when the run began; it differs in a root that was moved."""
        return moved_path(str(path), self.workspace.root, self.origin)

    def begin(self) -> None:
        """Compare settings and versions, and start to hash the text."""
        for path in self._text_files:
            self._texts.submit(path, lambda p=path: seal_text(p, self._texts.heartbeat))
        if self.sealed is None:
            for spec in self._experts:
                self.begin_expert(spec)
            return
        for spec in self._experts:
            if spec.name not in self.sealed.experts:
                continue
            known = self.sealed.experts[spec.name].settings
            if problem := settings_problem(known, expert_settings(spec)):
                raise UsageError(
                    f"expert {spec.name} is not as it was when the run began: {problem}; put it "
                    f"back in {self.workspace.user_config}, {_FRESH}"
                )
        for name, version in library_versions().items():
            former = self.sealed.versions.get(name, version)
            if former != version:
                self.ctx.log(
                    f"the run began with {name} {former} and continues with {version}: results "
                    "may differ in the last digits",
                    "warning",
                )

    # Text

    def check_text(self, *, with_streamed: bool = True) -> None:
        """Wait until the text is hashed; raises UsageError if it has changed."""
        found: dict[str, TextSeal] = {}
        for path in self._text_files:
            if with_streamed or path not in self._streamed:
                found[self.original(path)] = self._texts.wait(path)
        self._values["text"] = found
        if self.sealed is None:
            return
        left_out = set() if with_streamed else set(map(self.original, self._streamed))
        problems = [
            text_problem(moved_path(path, self.origin, self.workspace.root), seal, found.get(path))
            for path, seal in self.sealed.text.items()
            if path not in left_out
        ]
        problems += [f"{path} was added" for path in found if path not in self.sealed.text]
        problems = [problem for problem in problems if problem]
        if problems:
            more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
            raise UsageError(
                f"the training text is not as it was when the run began: {problems[0]}{more}; "
                f"put the files of data.files back, {_FRESH}"
            )

    def compare(self, section: str, name: str, value: Any, what: str) -> None:
        """Compare a value with the seal, or add it to the seal of a new run.

        section: a field of Seal. what: names the value in the message of the UsageError.
        """
        self._values.setdefault(section, {})[name] = value
        if self.sealed is None:
            return
        known = getattr(self.sealed, section).get(name)
        if known is not None and known != value:
            self.check_text()  # if that is the reason, its message names the lines
            raise UsageError(
                f"{what} can't be restored to what the run began with: it comes out differently "
                f"now (other versions of libraries or another machine); {_FRESH[3:]}"
            )

    def sealed_value(self, section: str, name: str) -> Any:
        """A value of the seal; None in a new run."""
        return None if self.sealed is None else getattr(self.sealed, section).get(name)

    # Experts

    def identity(self, spec: ExpertSpec) -> str:
        """What names the expert's shards and answers: as when the run began, since its files are
        compared by hash."""
        if self.sealed is not None and spec.name in self.sealed.experts:
            return self.sealed.experts[spec.name].identity
        return expert_digest(expert_path(self.workspace, spec), spec)

    def checking_expert(self, spec: ExpertSpec) -> Callable[[], None]:
        """Start to hash the expert's files; the result compares them, once they are loaded."""
        self.begin_expert(spec)
        return lambda: self.check_expert(spec)

    def begin_expert(self, spec: ExpertSpec) -> None:
        """Start to hash the expert's files."""
        path = expert_path(self.workspace, spec)
        self._hashing.submit(path, lambda: seal_expert(path, self._hashing.heartbeat))

    def check_expert(self, spec: ExpertSpec) -> None:
        """Wait until the expert's files are hashed; raises GladiusError if they have changed."""
        path = expert_path(self.workspace, spec)
        self.begin_expert(spec)
        found: dict[str, FileRecord] = self._hashing.wait(path)
        remedy = f"put it back in {path}"
        if spec.source in ("hub", "wheel"):
            remedy = f"download it again: gladius_train download {spec.name} --force"
        sealed = None if self.sealed is None else self.sealed.experts.get(spec.name)
        if sealed is not None:
            if problem := files_problem(sealed.files, found):
                raise UsageError(
                    f"expert {spec.name} is not as it was when the run began: {problem}; "
                    f"{remedy}, {_FRESH}"
                )
        elif (manifest := read_manifest(path) if path.is_dir() else None) is not None:
            for name, file in manifest.files.items():
                if name in found and found[name].sha256 != file.sha256:
                    raise GladiusError(
                        f"expert {spec.name}: {name} is damaged (its SHA-256 is not that of the "
                        f"download); {remedy}"
                    )
        self._values.setdefault("experts", {})[spec.name] = ExpertSeal(
            identity=self.identity(spec), settings=expert_settings(spec), files=found
        )

    # The seal itself

    def tokenizer_problem(self, folder: Path) -> str | None:
        """What differs from the sealed tokenizer; None if nothing does."""
        if self.sealed is None:
            return None
        return files_problem(self.sealed.tokenizer, tokenizer_records(folder))

    def complete(self, vocabulary: str, streams: Mapping[str, str]) -> bytes:
        """Check what is not checked yet, and write the seal of a new run; returns its bytes.

        Called before the first step; raises UsageError or GladiusError if something has changed.
        """
        self.check_text()
        if self.sealed is None:
            for spec in self._experts:
                self.check_expert(spec)
        folder = self.workspace.checkpoints_dir
        tokenizer = tokenizer_records(folder / TOKENIZER)
        if self.sealed is not None:
            if problem := files_problem(self.sealed.tokenizer, tokenizer):
                raise UsageError(f"the student's tokenizer differs from the run's: {problem}")
            if self.sealed.vocabulary != vocabulary:
                raise UsageError(f"the student's vocabulary differs from the run's; {_FRESH[3:]}")
        values = self._values
        seal = self.sealed or Seal(
            run_id=self._run_id,
            root=self.origin,
            created=self.began,
            config_digest=digest(self.stored_config),
            versions=library_versions(),
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            text=values.get("text", {}),
            taken={},
            streams=dict(streams),
            experts={},
            answers={},
            shards={},
            projections={},
            probes={},
        )
        added = {
            section: {**values.get(section, {}), **getattr(seal, section)}
            for section in ("taken", "experts", "answers", "shards", "projections", "probes")
        }
        extended = msgspec.structs.replace(seal, **added)
        data = encode_seal(extended)
        if not _has_content(folder / SEAL, data):
            write_bytes(folder / SEAL, data)
        return data


def expert_settings(spec: ExpertSpec) -> dict[str, Any]:
    """The fields of an expert that the training depends on, as plain data."""
    fields = {name: getattr(spec, name) for name in _SETTINGS}
    return msgspec.json.decode(msgspec.json.encode(fields))


def tokenizer_records(folder: Path) -> dict[str, FileRecord]:
    """Size and SHA-256 of the files of the run's tokenizer."""
    if not folder.is_dir():
        return {}
    return {path.name: file_record(path) for path in _tokenizer_paths(folder)}


def _tokenizer_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.iterdir())
    return [p for p in paths if p.is_file() and is_run_file(f"{TOKENIZER}/{p.name}")]


def _has_content(path: Path, data: bytes) -> bool:
    try:
        return read_bytes(path) == data
    except (OSError, Damaged):
        return False


def _text_files(config: RunConfig) -> list[Path]:
    """The local files of the run's text."""
    return _local_files([*config.data.files, *(c.source for c in corpora_in_use(config.data))])


def _local_files(sources: Sequence[str]) -> list[Path]:
    found: dict[Path, None] = {}
    for source in sources:
        if not source.startswith(HUB):
            found |= dict.fromkeys(source_files(source))
            continue
        folder = Path(parse_hub(source).dataset)
        if folder.is_absolute() and folder.is_dir():
            hidden = (p for p in sorted(folder.rglob("*")) if p.is_file())
            found |= dict.fromkeys(p for p in hidden if not p.name.startswith("."))
    return list(found)


class _Hashing:
    """Hashes files in a thread, one after the other."""

    def __init__(self, ctx: JobContext) -> None:
        self.ctx = ctx
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._futures: dict[Path, Future[Any]] = {}
        self._thread: threading.Thread | None = None

    def heartbeat(self) -> None:
        """Called by the thread every few MiB."""
        self.ctx.heartbeat("checking files")

    def submit(self, path: Path, work: Callable[[], Any]) -> None:
        """Hash what is at `path`, unless that was submitted before."""
        if path in self._futures:
            return
        future = self._futures[path] = Future()
        self._tasks.put((future, work))
        if self._thread is None:
            # A daemon: a job that ends does not wait for it.
            self._thread = threading.Thread(target=self._run, name="hashing", daemon=True)
            self._thread.start()

    def wait(self, path: Path) -> Any:
        """The result, carrying out commands meanwhile. Raises JobStopped, or a GladiusError where
        a file can't be read."""
        future = self._futures[path]
        while not wait([future], timeout=_POLL_SECONDS).done:
            self.ctx.checkpoint_point(f"checking {path.name}")
            done = sum(other.done() for other in self._futures.values())
            self.ctx.progress(
                "seal", "comparing files with the seal", done, len(self._futures), after=2.0
            )
        try:
            return future.result()
        except OSError as error:
            name = error.filename or path
            raise GladiusError(f"{name}: {error.strerror or error}; make it readable") from error

    def _run(self) -> None:
        while True:
            future, work = self._tasks.get()
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)
