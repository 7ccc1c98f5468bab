"""Owns which model a validation is about, and where its report lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.checkpoint.model_record import RECORD, read_record
from engine.errors import MissingError, UsageError
from engine.export.model_source import Source, open_source
from engine.workspace import Workspace


class ValidateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be validated; nothing given: the finished model of the root."""

    model: str | None = None
    """A folder."""
    gguf: str | None = None
    """A GGUF file; `model` is then the folder that it is held against."""
    checkpoint: str | None = None
    """`latest`, `best` or a step."""
    tasks: tuple[str, ...] = ()
    """Of lm-evaluation-harness."""
    tasks_path: str | None = None
    """A folder with tasks of one's own."""


@contextmanager
def choose_model(
    workspace: Workspace, config: ValidateConfig, beat: Callable[[], None]
) -> Iterator[Source]:
    """The model that is meant, while the block runs; a broken one too, as long as it is there.

    Raises MissingError when it is not, UsageError for options that exclude one another.
    """
    default = workspace.model_dir
    if config.checkpoint is not None and (config.model or config.gguf):
        raise UsageError("--checkpoint is one of this root: leave out --model and --gguf")
    if config.gguf is not None:
        gguf = Path(config.gguf)
        if not gguf.is_file():
            raise MissingError(f"there is no file {gguf}; make one with: gladius_train export")
        folder = Path(config.model) if config.model else gguf.parent
        yield Source(folder, f"the GGUF file {gguf.name}", True, read_record(folder))
    elif config.model is not None or (config.checkpoint is None and _holds_model(default)):
        folder = Path(config.model or default)
        if not _holds_model(folder):
            raise MissingError(
                f"{folder} holds no model (config.json and safetensors); give the folder of one, "
                "or train one with: gladius_train train"
            )
        title = "the finished model" if folder == default else f"the model in {folder}"
        yield Source(folder, title, True, read_record(folder))
    else:
        with open_source(workspace, "validate", config.checkpoint, beat) as source:
            yield source


def report_path(workspace: Workspace, config: ValidateConfig, source: Source) -> Path:
    """Where the report belongs: beside the model; a checkpoint's, beside the checkpoints."""
    if config.gguf is not None:
        return Path(config.gguf).with_suffix(".validation.json")
    if source.finished:
        return source.folder / "validation.json"
    step = source.record.step if source.record else 0
    return workspace.checkpoints_dir / f"validation-step-{step:09d}.json"


def _holds_model(folder: Path) -> bool:
    """Whether somebody meant this folder as a model, be it a broken one."""
    if not folder.is_dir():
        return False
    there = {path.name for path in folder.iterdir()}
    return bool(there & {"config.json", RECORD}) or any(n.endswith(".safetensors") for n in there)
