"""Owns what is settled before a training job starts: that its experts and its text are there, and
whether it begins, goes on, or begins anew. No torch; nothing is written or moved here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.budget import check_text
from engine.checkpoint.layout import CONFIG, RUN_CONFIG, list_checkpoints
from engine.config import RunConfig, change_config, changed_fields, from_json
from engine.errors import LockedError, MissingError, UsageError
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.run.lock import lock_owner
from engine.run.state import read_state
from engine.workspace import Workspace


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A training job that may start."""

    config: RunConfig
    resume: bool = False
    """Go on from the newest checkpoint that verifies."""
    fresh: bool = False
    """Move what a former run left aside (never deleted) and begin at step 0."""
    notes: tuple[str, ...] = ()
    """What the user should know about that."""


def launch_training(workspace: Workspace, config: RunConfig, *, fresh: bool = False) -> Launch:
    """How `train` starts: anew, or on from an unfinished run of the same config.

    UsageError where an unfinished run has another config (what differs is named), MissingError
    where an expert is not ready, LockedError where a training job runs.
    """
    _refuse_while_running(workspace)
    check_data(config)
    check_experts(workspace, config)
    stored = stored_config(workspace)
    if stored is None:
        return Launch(config=config)
    step, old = stored
    if fresh or read_state(workspace).status == "completed":
        was = "former" if fresh else "finished"
        note = f"the {was} run (step {step:,}) is moved aside in {workspace.checkpoints_dir}"
        return Launch(config=config, fresh=True, notes=(note,))
    changes = changed_fields(old, config)
    fixed = [change for change in changes if not change[3]]
    if fixed and step == 0:
        return Launch(config=config)  # stopped before its first step: nothing of it is lost
    if fixed:
        raise UsageError(
            f"an unfinished run (step {step:,}) has another config: {_differences(fixed)}; "
            "go on with it: gladius_train resume; or begin anew and keep its checkpoints aside: "
            "train --fresh"
        )
    note = f"an unfinished run of this config is there: going on from step {step:,}"
    return Launch(config=config, resume=True, notes=(note, *_change_notes(changes)))


def launch_resume(workspace: Workspace, overrides: Sequence[str], hours: float | None) -> Launch:
    """How `resume` starts: from the newest checkpoint, its config changed where that may be.

    MissingError without a checkpoint; UsageError where a change may not be made on resume, or
    where the run is complete and nothing makes it longer.
    """
    _refuse_while_running(workspace)
    stored = stored_config(workspace)
    if stored is None:
        raise MissingError(
            f"no checkpoint in {workspace.checkpoints_dir}; begin with: gladius_train train"
        )
    step, old = stored
    config = change_config(workspace, old, overrides, hours) if overrides or hours else old
    changes = changed_fields(old, config)
    fixed = [change for change in changes if not change[3]]
    if fixed:
        raise UsageError(
            f"can't change within a run: {_differences(fixed)}; "
            "begin anew with these values: gladius_train train --fresh"
        )
    if read_state(workspace).status == "completed" and not changes:
        raise UsageError(
            f"the run is complete at step {step:,}; train longer with: gladius_train resume "
            "--hours N (or --set schedule.max_steps=N)"
        )
    check_data(config)
    check_experts(workspace, config)
    note = f"going on from step {step:,}"
    return Launch(config=config, resume=True, notes=(note, *_change_notes(changes)))


def check_data(config: RunConfig) -> None:
    """A look at the beginning of every text of the run; UsageError names file and line."""
    check_text(config)


def check_experts(workspace: Workspace, config: RunConfig) -> None:
    """MissingError unless all experts of the run, and the tokenizer it borrows, are ready."""
    registered = load_experts(workspace)
    names = config.experts.names
    unknown = [name for name in names if name not in registered]
    if unknown:
        raise MissingError(
            f"{', '.join(unknown)} is in no registry any more; "
            f"put it back into {workspace.user_config}"
        )
    states = {name: expert_status(workspace, registered[name]) for name in names}
    ready = [name for name in names if states[name].state == "ready"]
    lacking = [name for name in names if name not in ready]
    if lacking:
        told = ", ".join(f"{name} ({_why(states[name])})" for name in lacking)
        fetch = _remedy(registered, lacking)
        if not ready:
            raise MissingError(f"no expert is ready: {told}; {fetch}")
        raise MissingError(
            f"not ready: {told}; {fetch}; or go on without: --experts {','.join(ready)}"
        )
    lender = registered.get(config.student.tokenizer)
    if lender is not None and not (expert_path(workspace, lender) / "tokenizer.json").is_file():
        raise MissingError(
            f"the student's tokenizer is {lender.name}'s, which is not downloaded; "
            f"{_remedy(registered, [lender.name])}; or choose another: "
            "--set student.tokenizer=PATH (or =train)"
        )


def _why(status: Any) -> str:
    return status.state if status.state == "missing" else f"{status.state}: {status.detail}"


def _remedy(registered: dict[str, ExpertSpec], names: Sequence[str]) -> str:
    """What makes these experts ready: a download, or for the user's own, their path put right."""
    own = [name for name in names if registered[name].source in ("folder", "gguf")]
    ours = [name for name in names if name not in own]
    parts = [f"fetch with: gladius_train download {' '.join(ours)}"] if ours else []
    parts += [f"mend the path {registered[name].repo} in gladius.toml" for name in own]
    return "; ".join(parts)


def stored_config(workspace: Workspace) -> tuple[int, RunConfig] | None:
    """The newest checkpoint's step and config; for a run that has none yet, step 0 and its config;
    None where no run was begun.

    Only configs are read here: which checkpoint verifies is found when it is loaded.
    """
    folder = workspace.checkpoints_dir
    try:
        found = list_checkpoints(folder)
    except OSError:
        return None
    stored = [(info.step, info.path / CONFIG) for info in reversed(found)]
    for step, path in [*stored, (0, folder / RUN_CONFIG)]:
        try:
            return step, from_json(path.read_bytes())
        except (OSError, msgspec.MsgspecError):
            continue
    return None


def _refuse_while_running(workspace: Workspace) -> None:
    """The lock itself is taken by the runner; looking first spares the checks of large files."""
    owner = lock_owner(workspace, "train")
    if owner is not None:
        raise LockedError(
            f"training already runs here (pid {owner.pid}); watch it with: gladius_train "
            "dashboard --follow; end it with: gladius_train stop"
        )


def _differences(changes: Sequence[tuple[str, Any, Any, bool]]) -> str:
    return ", ".join(f"{name} is {old!r}, asked {new!r}" for name, old, new, _ in changes)


def _change_notes(changes: Sequence[tuple[str, Any, Any, bool]]) -> list[str]:
    return [f"{name}: {old!r} becomes {new!r}" for name, old, new, _ in changes]
