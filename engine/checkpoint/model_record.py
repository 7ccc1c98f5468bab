"""gladius.json, next to a model's weights: how the model was trained, and hashes of its files.

Preset, config, steps, experts and held-out scores, and the SHA-256 of every file as it was saved.
Models from other programs have no such file.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
import torch
import transformers

from engine.checkpoint.hashing import FileRecord, hash_file
from engine.checkpoint.layout import HELD_OUT
from engine.config import RunConfig, digest, read_former_names
from engine.errors import UsageError
from engine.experts.registry import ExpertSpec
from engine.small_files import Damaged, read_json
from engine.workspace import write_json

RECORD = "gladius.json"
_FORMAT = 1


class _HeldOut(msgspec.Struct, frozen=True):
    config_digest: str
    folders: dict[str, str]


class TaughtBy(msgspec.Struct, frozen=True, kw_only=True):
    """An expert that the model was trained on."""

    name: str
    title: str
    repo: str
    license: str
    """From the registry; empty where unknown."""
    parameters: int = 0


class ModelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How a model was trained, and its files as they were saved."""

    format: int = _FORMAT
    preset: str
    step: int
    tokens_seen: int
    training_seconds: float
    evaluations: tuple[tuple[int, float], ...] = ()
    """(step, held-out bits per byte over all experts' text), in order."""
    experts: tuple[TaughtBy, ...] = ()
    config: RunConfig
    held_out: dict[str, str] = {}
    """Expert to the folder of its held-out targets, below tmp/experts_cache of the run's root."""
    versions: dict[str, str] = {}
    created: float = 0.0
    """Unix time in seconds."""
    files: dict[str, FileRecord] = {}
    """Size and SHA-256 by name; empty for a checkpoint, which has a manifest."""


def describe_run(
    config: RunConfig,
    experts: Iterable[ExpertSpec],
    *,
    step: int,
    tokens_seen: int,
    training_seconds: float,
    evaluations: Iterable[tuple[int, float]],
    held_out: Mapping[str, str] | None = None,
) -> ModelRecord:
    """The record of a run's model, without its files."""
    return ModelRecord(
        preset=config.preset,
        step=step,
        tokens_seen=tokens_seen,
        training_seconds=training_seconds,
        evaluations=tuple((int(at), float(value)) for at, value in evaluations),
        experts=tuple(
            TaughtBy(
                name=spec.name,
                title=spec.title,
                repo=spec.repo,
                license=spec.license,
                parameters=spec.parameters,
            )
            for spec in experts
        ),
        config=config,
        held_out=dict(held_out or {}),
        versions={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
        },
        created=time.time(),
    )


def write_record(folder: Path, record: ModelRecord) -> ModelRecord:
    """Write gladius.json into a complete model folder; returns the record with the file hashes.

    Absolute paths are reduced to file names, as a model may be published.
    """
    files = {
        path.name: FileRecord(path.stat().st_size, hash_file(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != RECORD and not path.name.startswith(".")
    }
    record = msgspec.structs.replace(_without_folders(record), files=files)
    write_json(folder / RECORD, record)
    return record


def _without_folders(record: ModelRecord) -> ModelRecord:
    def name(path: str) -> str:
        return Path(path).name if Path(path).is_absolute() else path

    replace = msgspec.structs.replace
    data = replace(record.config.data, files=[name(path) for path in record.config.data.files])
    student = replace(record.config.student, tokenizer=name(record.config.student.tokenizer))
    return replace(
        record,
        config=replace(record.config, data=data, student=student),
        experts=tuple(replace(expert, repo=name(expert.repo)) for expert in record.experts),
    )


def write_held_out(checkpoints: Path, config: RunConfig, folders: Mapping[str, str]) -> None:
    """Write the folders of the run's held-out targets to held_out.json, next to the checkpoints."""
    write_json(checkpoints / HELD_OUT, _HeldOut(digest(config), dict(folders)))


def read_held_out(checkpoints: Path, config: RunConfig) -> dict[str, str]:
    """Folder of each expert's held-out targets, if a run with this config wrote them; else {}."""
    try:
        noted = read_json(checkpoints / HELD_OUT, _HeldOut)
    except (OSError, Damaged):
        return {}
    return noted.folders if noted.config_digest == digest(config) else {}


def read_record(folder: Path) -> ModelRecord | None:
    """The record of a model folder; None where there is none, or it can't be parsed."""
    try:
        tables = read_json(folder / RECORD, dict)
        if isinstance(config := tables.get("config"), dict):
            read_former_names(config)
        record = msgspec.convert(tables, ModelRecord)
    except (OSError, Damaged, UsageError, msgspec.MsgspecError, RecursionError):
        return None
    return record if record.format == _FORMAT else None
