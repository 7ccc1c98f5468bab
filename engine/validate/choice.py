"""Choose the model to validate, and where its report is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from engine.checkpoint.model_record import RECORD, read_record
from engine.errors import MissingError, UsageError
from engine.export.model_source import ModelSource, open_model_source
from engine.gguf_types import refuse_other_file
from engine.workspace import Workspace


class ValidateConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to validate; by default the finished model of the workspace."""

    model: str | None = None
    """A model folder."""
    gguf: str | None = None
    """A GGUF file; `model` is then the folder that it is compared with."""
    checkpoint: str | None = None
    """`latest`, `best` or a step."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness."""
    tasks_path: str | None = None
    """A folder with additional tasks."""


@contextmanager
def choose_model(
    workspace: Workspace, config: ValidateConfig, tick: Callable[[], None]
) -> Iterator[ModelSource]:
    """The chosen model, available while the block runs; it may be damaged, but it exists.

    `tick` is called while a checkpoint is read. Raises MissingError when there is no such model,
    UsageError for options that exclude each other.
    """
    default = workspace.model_dir
    if config.checkpoint is not None and (config.model or config.gguf):
        raise UsageError("--checkpoint cannot be combined with --model or --gguf")
    if config.gguf is not None:
        gguf = Path(config.gguf)
        if not gguf.is_file():
            raise MissingError(f"there is no file {gguf}; create one with: gladius_train export")
        refuse_other_file(gguf)
        folder = Path(config.model) if config.model else gguf.parent
        yield ModelSource(
            folder=folder,
            title=f"the GGUF file {gguf.name}",
            finished=True,
            record=read_record(folder),
        )
    elif config.model is not None or (config.checkpoint is None and _contains_model(default)):
        folder = Path(config.model or default)
        if not _contains_model(folder):
            raise MissingError(
                f"{folder} contains no model (config.json and safetensors); give the folder of "
                "one, or train one with: gladius_train train"
            )
        title = "the finished model" if folder == default else f"the model in {folder}"
        yield ModelSource(folder=folder, title=title, finished=True, record=read_record(folder))
    else:
        with open_model_source(workspace, "validate", config.checkpoint, tick) as source:
            yield source


def report_path(workspace: Workspace, config: ValidateConfig, source: ModelSource) -> Path:
    """Path of the report: next to the model, or for a checkpoint next to the checkpoints."""
    if config.gguf is not None:
        return Path(config.gguf).with_suffix(".validation.json")
    if source.finished:
        return source.folder / "validation.json"
    step = source.record.step if source.record else 0
    return workspace.checkpoints_dir / f"validation-step-{step:09d}.json"


def _contains_model(folder: Path) -> bool:
    """Whether the folder has any file of a model; the model may be incomplete."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if RECORD in names or any(name.endswith(".safetensors") for name in names):
        return True
    return "config.json" in names and _describes_model(folder / "config.json")


def _describes_model(path: Path) -> bool:
    """Whether a config.json is of a model: programs of all kinds have a file of that name."""
    try:
        config = msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return False
    return isinstance(config, dict) and ("model_type" in config or "architectures" in config)
