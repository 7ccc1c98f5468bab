"""Names in the checkpoints folder, and the checkpoints on disk. Imports no torch.

step-000012000/    a full checkpoint: the state after that optimizer step
step-.../protected an empty file: this checkpoint is kept until another one is protected
best-000012000/    the weights of the best evaluation, without optimizer
rejected-...       did not verify; never deleted
superseded-...     its steps are trained again; deleted after the next save
old-<time>/        everything of an earlier run, set aside by `train --fresh`
.tmp-...           unfinished; deleted at the next start
config.json journal.jsonl tokenizer/ held_out.json    files of the run
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

# Files of a run, next to its checkpoints
RUN_CONFIG = "config.json"
JOURNAL = "journal.jsonl"
TOKENIZER = "tokenizer"
HELD_OUT = "held_out.json"
RUN_DATE = "run_date.json"

# Files of a checkpoint
MODEL, OPTIMIZER, RNG = "model.safetensors", "optimizer.safetensors", "rng.safetensors"
STATE, CONFIG, MANIFEST = "state.json", "run_config.json", "manifest.json"
PROTECTED = "protected"

REJECTED = "rejected"
SUPERSEDED = "superseded"
TEMPORARY = ".tmp-"

_STEP = re.compile(r"step-(\d{9,})")
_BEST = re.compile(r"best-(\d{9,})(?:-\d+)?")


class CheckpointInfo(msgspec.Struct, frozen=True):
    """A checkpoint on disk (not verified)."""

    step: int
    path: Path
    protected: bool


def step_folder(step: int) -> str:
    """Folder name of the full checkpoint of a step."""
    return f"step-{step:09d}"


def best_folder(step: int) -> str:
    """Folder name of the best weights, taken at a step."""
    return f"best-{step:09d}"


def old_run_folder() -> str:
    """Folder name for the files of an earlier run, from the local time."""
    return time.strftime("old-%Y%m%d-%H%M%S")


def parse_step(text: str) -> int | None:
    """The step in `1200`, `1,200`, `1_200` or `step-000001200`; None for anything else."""
    digits = text.removeprefix("step-").replace(",", "").replace("_", "")
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def list_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """The full checkpoints on disk, by step, the oldest first; not verified."""
    found = (
        CheckpointInfo(int(match[1]), path, (path / PROTECTED).exists())
        for path, match in _folders(folder, _STEP)
    )
    return sorted(found, key=lambda info: info.step)


def best_checkpoints(folder: Path) -> list[Path]:
    """Folders of best weights; two after a crash between writing one and deleting the other."""
    return [path for path, _ in _folders(folder, _BEST)]


def is_full_checkpoint(path: str | Path) -> bool:
    """Whether a path names a full checkpoint, not best weights."""
    return _STEP.fullmatch(Path(path).name) is not None


def has_rejected(folder: Path) -> bool:
    """Whether a checkpoint was set aside because it did not verify."""
    return any(folder.glob(f"{REJECTED}-*"))


def is_of_run(name: str) -> bool:
    """Whether an entry of the checkpoints folder belongs to the current run."""
    prefixes = ("step-", "best-", f"{SUPERSEDED}-", f"{REJECTED}-")
    return name.startswith(prefixes) or name in (JOURNAL, TOKENIZER, RUN_CONFIG, HELD_OUT, RUN_DATE)


def _folders(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """Folders whose full name matches, without links to folders."""
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                yield path, match
