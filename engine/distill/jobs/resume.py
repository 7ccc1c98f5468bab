"""Find the starting point of a training run: a checkpoint that fits the request, or step 0."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.hashing import record_of, write_file
from engine.checkpoint.layout import (
    JOURNAL,
    RUN_CONFIG,
    SEAL,
    TEMPORARY,
    TOKENIZER,
    has_rejected,
    is_of_run,
    old_run_folder,
)
from engine.checkpoint.manifest import Manifest
from engine.checkpoint.seal import Seal, decode_seal, files_problem, read_seal
from engine.checkpoint.train_state import TrainState
from engine.config import changed_fields, digest, from_json, move_paths
from engine.distill.jobs.sealing import tokenizer_records
from engine.distill.jobs.training_run import TrainingRun
from engine.distill.train.phases import Decision
from engine.errors import MissingError, UsageError
from engine.events import CheckpointRejected
from engine.small_files import Damaged, read_bytes
from engine.workspace import publish_dir, remove_entry, write_bytes


@dataclass(frozen=True)
class StartingPoint:
    """The starting point of training.

    Attributes:
        state: of the checkpoint; None: at step 0.
        threads: CPU threads that the checkpoint was made with; None at step 0.
        decisions: of the journal.
        seal: of the run; None for a new run, and for one of an older version.
    """

    state: TrainState | None
    threads: int | None
    decisions: list[Decision]
    seal: Seal | None = None

    @property
    def step(self) -> int | None:
        """Step of the checkpoint; None without one."""
        return None if self.state is None else self.state.step


def find_starting_point(run: TrainingRun) -> StartingPoint:
    """The newest valid checkpoint on `resume`, else step 0 with an empty journal.

    `fresh` moves the files of the previous run aside. Raises UsageError if there is a run but
    neither was requested, or if its config differs; MissingError if no checkpoint is valid.
    """
    if run.request.fresh:
        _set_aside_previous_run(run.workspace.checkpoints_dir)
    run.checkpoints.remove_temporaries()
    loaded = _load_checkpoint(run)
    if loaded is None:
        run.journal.clear()
        seal = _stored_seal(run) if run.request.resume else None
        return StartingPoint(state=None, threads=None, decisions=[], seal=seal)
    state, manifest = loaded
    return StartingPoint(
        state=state,
        threads=manifest.threads,
        decisions=run.journal.read(),
        seal=seal_of(run, state),
    )


def check_tokenizer(run: TrainingRun, state: TrainState, vocabulary: str) -> None:
    """Raises UsageError if the checkpoint was trained with another tokenizer.

    vocabulary: digest of the student's tokenizer.
    """
    if state.scalars.get("vocabulary") != vocabulary:
        raise UsageError(
            "the checkpoint was trained with another tokenizer than the present one "
            f"({run.config.student.tokenizer}): restore it, or start a new run with `train --fresh`"
        )


def check_streamed_texts(state: TrainState, texts: dict[str, str]) -> None:
    """Raises UsageError if a streamed text has changed: the checkpoint's positions would be wrong.

    texts: fingerprints by source name.
    """
    former: dict[str, str] = state.scalars.get("texts", {})
    changed = [name for name in {**former, **texts} if former.get(name) != texts.get(name)]
    if changed:
        raise UsageError(
            f"the streamed text of {', '.join(changed)} has changed since the checkpoint (files "
            "were added or removed, or have another size): restore it, or start a new run with "
            "`train --fresh`"
        )


def _set_aside_previous_run(folder: Path) -> None:
    """Move everything of the previous run to old-<time>/; nothing is deleted."""
    target = folder / old_run_folder()
    for item in sorted(folder.iterdir()):
        if is_of_run(item.name):
            target.mkdir(exist_ok=True)
            item.rename(target / item.name)


def _load_checkpoint(run: TrainingRun) -> tuple[TrainState, Manifest] | None:
    """The checkpoint to resume from, checked against the config; None: start at step 0."""
    folder = run.workspace.checkpoints_dir
    if not run.request.resume:
        if run.checkpoints.list():
            raise UsageError(
                f"{folder} holds checkpoints of a run; continue it with `resume`, or start a new "
                "run with `train --fresh` (they are moved aside)"
            )
        # such as the tokenizer of a run with another config that never took a step
        _set_aside_previous_run(folder)
        return None
    loaded = _load_newest(run)
    if loaded is None:
        # A run that was stopped before its first checkpoint continues with what it prepared.
        if (folder / RUN_CONFIG).is_file() and not has_rejected(folder):
            return None
        raise MissingError(
            f"no checkpoint in {folder} can be resumed (none was deleted); "
            "start a new run with: gladius_train train --fresh"
        )
    _check_config(run, loaded[0])
    restore_run_files(run, loaded[0])
    return _before_decay(run, loaded)


def seal_of(run: TrainingRun, state: TrainState) -> Seal | None:
    """The run's seal from its checkpoint; one that an older version saved has none."""
    data = state.files.get(SEAL)
    return decode_seal(data, SEAL) if data is not None else _stored_seal(run)


def _stored_seal(run: TrainingRun) -> Seal | None:
    """The seal next to the checkpoints, if it is valid and belongs to this run."""
    path = run.workspace.checkpoints_dir / SEAL
    try:
        seal = read_seal(path)
    except (OSError, Damaged) as error:
        run.ctx.log(f"{error}; the run has no checkpoint that needs it, it is sealed again")
        return None
    if seal is None:
        return None
    config = move_paths(run.config, run.workspace.root, seal.root)
    if seal.config_digest != digest(config):
        run.ctx.log(f"{path} belongs to another run; this one is sealed again", "warning")
        return None
    return seal


def restore_run_files(run: TrainingRun, state: TrainState) -> None:
    """Restore the run's small files that differ from the checkpoint's copies, with a warning."""
    folder = run.workspace.checkpoints_dir
    if JOURNAL in state.files and (problem := run.journal.restore(state.files[JOURNAL])):
        run.ctx.log(problem, "warning")
    if SEAL in state.files:
        _restore(run, folder / SEAL, state.files[SEAL])
    files = {
        name.removeprefix(f"{TOKENIZER}/"): data
        for name, data in state.files.items()
        if name.startswith(f"{TOKENIZER}/")
    }
    target = folder / TOKENIZER
    records = {name: record_of(data) for name, data in files.items()}
    problem = files_problem(records, tokenizer_records(target)) if files else None
    if problem is None:
        return
    temporary = folder / f"{TEMPORARY}{TOKENIZER}"
    remove_entry(temporary)
    temporary.mkdir()
    for name, data in files.items():
        write_file(temporary / name, [data])
    remove_entry(target)
    publish_dir(temporary, target)
    run.ctx.log(
        f"the student's tokenizer was restored from the checkpoint of step {state.step}: {problem}",
        "warning",
    )


def _restore(run: TrainingRun, path: Path, data: bytes) -> None:
    try:
        if read_bytes(path) == data:
            return
    except (OSError, Damaged):
        pass
    if path.is_dir():
        remove_entry(path)
    write_bytes(path, data)
    run.ctx.log(f"{path} was restored from the checkpoint", "warning")


def _load_newest(run: TrainingRun, up_to: int | None = None) -> tuple[TrainState, Manifest] | None:
    def report_rejected(path: Path, reason: str, moved_to: Path | None) -> None:
        moved = "" if moved_to is None else str(moved_to)
        run.ctx.emit(CheckpointRejected(path=str(path), reason=reason, moved_to=moved))

    return run.checkpoints.load_newest(report_rejected, up_to=up_to)


def _check_config(run: TrainingRun, state: TrainState) -> None:
    """Raises UsageError if a field differs that may not change within a run.

    Values are compared, not digests: a checkpoint with former field names is the same config.
    """
    step = state.step
    stored = from_json(run.checkpoints.read_config(step))
    if (seal := seal_of(run, state)) is not None:
        stored = move_paths(stored, seal.root, run.workspace.root)
    differences = [
        f"{name} was {before!r}, now {after!r}"
        for name, before, after, mutable in changed_fields(stored, run.config)
        if not mutable
    ]
    if differences:
        raise UsageError(
            f"the checkpoint of step {step} belongs to another config ({'; '.join(differences)}): "
            "use the former values, or start a new run with `train --fresh`"
        )


def _before_decay(
    run: TrainingRun, loaded: tuple[TrainState, Manifest]
) -> tuple[TrainState, Manifest]:
    """The checkpoint from before the decay, if a finished run is given more steps or hours."""
    state = loaded[0]
    schedule = run.schedule(run.journal.read())
    decay, end = schedule.decay_begun, schedule.end_step
    limit, hours = run.config.schedule.max_steps, run.config.schedule.hours
    more_steps = limit is not None and end is not None and limit > end
    seconds = float(state.scalars.get("training_seconds", 0.0))
    more_hours = limit is None and hours is not None and hours * 3600 > seconds + 60
    finished = decay is not None and end is not None and state.step >= end
    if not finished or not (more_steps or more_hours):
        return loaded
    earlier = _load_newest(run, up_to=decay)
    if earlier is None:
        return loaded
    step = earlier[0].step
    run.checkpoints.supersede_after(step)
    run.journal.truncate(step)
    run.ctx.log(f"resuming from step {step}, before the learning rate decayed")
    return earlier
