"""Checks before a training job starts: are its experts and its text available, and does it start,
resume or start over? Imports no torch, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from engine.budget import check_text
from engine.checkpoint.layout import CONFIG, RUN_CONFIG, SEAL, list_checkpoints
from engine.checkpoint.manifest import Broken, read_manifest, read_small_file
from engine.checkpoint.seal import decode_seal, read_seal
from engine.config import RunConfig, change_config, changed_fields, from_json, move_paths
from engine.errors import LockedError, MissingError, UsageError
from engine.events import describe_texts
from engine.experts.registry import (
    ExpertSpec,
    ExpertStatus,
    expert_path,
    expert_status,
    load_experts,
)
from engine.run.lock import lock_owner
from engine.run.state import read_state
from engine.small_files import Damaged, read_bytes
from engine.text.survey import Survey
from engine.workspace import Workspace


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A training job that is ready to start."""

    config: RunConfig
    resume: bool = False
    """Resume from the newest valid checkpoint."""
    fresh: bool = False
    """Move the files of the previous run aside (nothing is deleted) and start at step 0."""
    notes: tuple[str, ...] = ()
    """Lines for the user about how the run starts."""
    run_id: str = ""
    """Of the run that is resumed, as its seal has it; "" if that is not known."""


def launch_training(workspace: Workspace, config: RunConfig, *, fresh: bool = False) -> Launch:
    """How `train` starts: a new run, or an unfinished run of the same config is resumed.

    Raises UsageError if an unfinished run has another config (with the differences), MissingError
    if an expert is not ready, LockedError if a training job is running.
    """
    _refuse_while_running(workspace)
    text_notes = _text_notes(check_text(config))
    check_experts(workspace, config)
    stored = _stored_run(workspace)
    if stored is None:
        return Launch(config=config, notes=text_notes)
    step, old, run_id = stored
    if fresh or _is_completed(workspace, run_id):
        which = "previous" if fresh else "finished"
        note = f"the {which} run (step {step:,}) is moved aside in {workspace.checkpoints_dir}"
        return Launch(config=config, fresh=True, notes=(note, *text_notes))
    changes = changed_fields(old, config)
    fixed = [change for change in changes if not change[3]]
    if fixed and step == 0:
        return Launch(
            config=config, notes=text_notes
        )  # stopped before its first step: nothing is lost
    if fixed:
        raise UsageError(
            f"an unfinished run (step {step:,}) has another config: {_differences(fixed)}; "
            "resume it with: gladius_train resume; or start a new run (its checkpoints are moved "
            "aside) with: gladius_train train --fresh"
        )
    note = f"resuming the unfinished run of this config from step {step:,}"
    notes = (note, *_change_notes(changes), *text_notes)
    return Launch(config=config, resume=True, notes=notes, run_id=run_id)


def launch_resume(workspace: Workspace, overrides: Sequence[str], hours: float | None) -> Launch:
    """How `resume` starts: from the newest checkpoint, with the changes that are allowed.

    Raises MissingError without a checkpoint; UsageError if a change is not allowed within a run, or
    if the run is complete and no change makes it longer.
    """
    _refuse_while_running(workspace)
    notes: list[str] = []
    stored = _stored_run(workspace, notes)
    if stored is None:
        raise MissingError(
            f"no checkpoint in {workspace.checkpoints_dir}; start a run with: gladius_train train"
        )
    step, old, run_id = stored
    config = old
    if overrides or hours:
        config = change_config(workspace, old, overrides, hours, notes)
    changes = changed_fields(old, config)
    fixed = [change for change in changes if not change[3]]
    if fixed:
        raise UsageError(
            f"can't be changed within a run: {_differences(fixed)}; "
            "start a new run with these values: gladius_train train --fresh"
        )
    if _is_completed(workspace, run_id) and not changes:
        raise UsageError(
            f"the run is complete at step {step:,}; train longer with: gladius_train resume "
            "--hours N (or --set schedule.max_steps=N)"
        )
    text_notes = _text_notes(check_text(config))
    check_experts(workspace, config)
    notes += [f"resuming from step {step:,}", *_change_notes(changes), *text_notes]
    return Launch(config=config, resume=True, notes=tuple(notes), run_id=run_id)


def _is_completed(workspace: Workspace, run_id: str) -> bool:
    """Whether the state says that this run is complete; the state of another run says nothing."""
    state = read_state(workspace)
    return state.status == "completed" and run_id in ("", state.run_id)


def check_experts(workspace: Workspace, config: RunConfig) -> None:
    """MissingError unless the run's experts, and the expert whose tokenizer it uses, are ready.

    An expert that was only copied counts as ready: the job verifies it by hash.
    """
    registered = load_experts(workspace)
    names = config.experts.names
    unknown = [name for name in names if name not in registered]
    if unknown:
        raise MissingError(
            f"unknown expert {', '.join(unknown)}: it is no longer in the registry; "
            f"add it to {workspace.user_config}"
        )
    states = {name: expert_status(workspace, registered[name]) for name in names}
    ready = [name for name in names if states[name].usable]
    missing = [name for name in names if name not in ready]
    if missing:
        listed = ", ".join(f"{name} ({_state_text(states[name])})" for name in missing)
        remedy = _remedy(registered, missing)
        if not ready:
            raise MissingError(f"no expert is ready: {listed}; {remedy}")
        raise MissingError(
            f"not ready: {listed}; {remedy}; or train without: --experts {','.join(ready)}"
        )
    owner = registered.get(config.student.tokenizer)
    if owner is not None and not (expert_path(workspace, owner) / "tokenizer.json").is_file():
        raise MissingError(
            f"the student's tokenizer is {owner.name}'s, which is not downloaded; "
            f"{_remedy(registered, [owner.name])}; or choose another: "
            "--set student.tokenizer=PATH (or =train)"
        )


def _state_text(status: ExpertStatus) -> str:
    return status.state if status.state == "missing" else f"{status.state}: {status.detail}"


def _remedy(registered: dict[str, ExpertSpec], names: Sequence[str]) -> str:
    """How to make these experts ready: a download, or a corrected path for local ones."""
    local = [name for name in names if registered[name].source in ("folder", "gguf")]
    remote = [name for name in names if name not in local]
    parts = [f"download with: gladius_train download {' '.join(remote)}"] if remote else []
    parts += [f"correct the path {registered[name].repo} in gladius.toml" for name in local]
    return "; ".join(parts)


def stored_config(
    workspace: Workspace, notes: list[str] | None = None
) -> tuple[int, RunConfig] | None:
    """Step and config of the newest checkpoint, or step 0 and the config of a run without one; None
    if no run was started.

    Reads configs only: the rest of a checkpoint is verified when it is loaded. A damaged config
    counts as none. Paths are those of the root as it is now, if it was moved. One line for each
    former field name is appended to `notes`.
    """
    stored = _stored_run(workspace, notes)
    return None if stored is None else stored[:2]


def _stored_run(
    workspace: Workspace, notes: list[str] | None = None
) -> tuple[int, RunConfig, str] | None:
    """Step, config and id of the stored run, see `stored_config`; the id is "" without a seal."""
    folder = workspace.checkpoints_dir
    try:
        found = list_checkpoints(folder)
    except OSError:
        return None
    for info in reversed(found):
        try:
            manifest = read_manifest(info.path)
            config = from_json(read_small_file(info.path, CONFIG, manifest), notes)
            if SEAL not in manifest.files:
                return info.step, config, ""
            seal = decode_seal(read_small_file(info.path, SEAL, manifest))
            return info.step, move_paths(config, seal.root, workspace.root), seal.run_id
        except (OSError, Broken, Damaged):
            continue
    try:
        config = from_json(read_bytes(folder / RUN_CONFIG), notes)
    except (OSError, Damaged):
        return None
    try:
        seal = read_seal(folder / SEAL)
    except (OSError, Damaged):
        seal = None
    if seal is None:
        return 0, config, ""
    return 0, move_paths(config, seal.root, workspace.root), seal.run_id


def _refuse_while_running(workspace: Workspace) -> None:
    """The runner takes the lock; this check before it saves the checks of large files."""
    owner = lock_owner(workspace, "train")
    if owner is not None:
        raise LockedError(
            f"training is already running here (pid {owner.pid}); watch it with: gladius_train "
            "dashboard --follow; stop it with: gladius_train stop"
        )


def _text_notes(surveys: Sequence[Survey]) -> tuple[str, ...]:
    """What of the text can't be learnt, a line for each part of it."""
    return tuple(
        describe_texts(found.table) + (" (a sample)" if found.is_sample else "")
        for found in surveys
        if found.table.reasons
    )


def _differences(changes: Sequence[tuple[str, Any, Any, bool]]) -> str:
    return ", ".join(f"{name} is {old!r}, requested {new!r}" for name, old, new, _ in changes)


def _change_notes(changes: Sequence[tuple[str, Any, Any, bool]]) -> list[str]:
    return [f"{name} changes from {old!r} to {new!r}" for name, old, new, _ in changes]
