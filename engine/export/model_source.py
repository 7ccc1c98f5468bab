"""Open the model to export or validate: the finished model, or a checkpoint's weights as a folder
that plain transformers loads.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.checkpoint.hashing import hash_file
from engine.checkpoint.layout import CONFIG, MODEL, STATE, TOKENIZER, parse_step
from engine.checkpoint.manifest import Broken, Manifest, read_manifest
from engine.checkpoint.model_record import (
    ModelRecord,
    describe_run,
    read_held_out,
    read_record,
)
from engine.checkpoint.store import CheckpointStore
from engine.config import RunConfig, from_json
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.student import llama_config, load_tokenizer, save_tokenizer, tokenizer_path
from engine.errors import GladiusError, MissingError, UsageError
from engine.experts.registry import ExpertSpec, load_experts
from engine.small_files import read_bytes, read_json
from engine.workspace import Workspace, remove_entry


def _no_tick() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class ModelSource:
    """A model folder and where it comes from."""

    folder: Path
    """config.json, weights and tokenizer; for a checkpoint a temporary folder."""
    title: str
    """`the finished model`, or `the checkpoint of step 1,200`."""
    finished: bool
    """False for a checkpoint."""
    record: ModelRecord | None
    """How the model was trained; None for a model without gladius.json."""
    warnings: tuple[str, ...] = ()
    """Warnings about the choice of model."""

    @property
    def name(self) -> str:
        """The name for files made from it: `gladius-1b` for the preset 1b."""
        return f"gladius-{self.record.preset if self.record else 'model'}"


@contextmanager
def open_model_source(
    workspace: Workspace,
    job: str,
    checkpoint: str | None = None,
    tick: Callable[[], None] = _no_tick,
) -> Iterator[ModelSource]:
    """The model, available while the block runs.

    checkpoint: `latest`, `best` or a step; None is the finished model or, without one, the newest
    checkpoint whose weights are intact. For a checkpoint a temporary folder is made below tmp/ for
    `job` (one at a time) and removed at the end, or at the next start. `tick` is called while files
    are read.

    Raises MissingError when there is no such model, UsageError for an invalid `checkpoint`, and
    GladiusError for a damaged checkpoint.
    """
    temporary = workspace.checkpoints_dir / f".{job}-tmp"
    remove_entry(temporary)
    if checkpoint is None and (workspace.model_dir / "config.json").is_file():
        yield ModelSource(
            folder=workspace.model_dir,
            title="the finished model",
            finished=True,
            record=read_record(workspace.model_dir),
        )
        return
    warnings: list[str] = []
    if checkpoint is None:
        warnings.append(
            f"there is no finished model in {workspace.model_dir}; using the newest checkpoint"
        )
    path, manifest = _choose(workspace, checkpoint or "latest", warnings, tick)
    try:
        record = _write_model_folder(workspace, path, manifest, temporary, tick)
        title = f"the {'best ' if checkpoint == 'best' else ''}checkpoint of step {manifest.step:,}"
        yield ModelSource(
            folder=temporary,
            title=title,
            finished=False,
            record=record,
            warnings=tuple(warnings),
        )
    finally:
        with suppress(OSError):  # the next start removes it
            remove_entry(temporary)


def _choose(
    workspace: Workspace, which: str, warnings: list[str], tick: Callable[[], None]
) -> tuple[Path, Manifest]:
    """The folder and manifest of the chosen checkpoint, its weights and config verified."""
    store = CheckpointStore(workspace.checkpoints_dir)
    if which == "latest":
        for info in reversed(store.list()):
            try:
                return info.path, _verify_weights(info.path, tick)
            except (Broken, OSError) as error:
                warnings.append(f"skipping the checkpoint of step {info.step:,}: {error}")
        raise MissingError(
            f"there is no trained model in {workspace.model_dir} and no intact checkpoint "
            f"in {workspace.checkpoints_dir}; train one with: gladius_train train"
        )
    chosen = "best" if which == "best" else parse_step(which)
    if chosen is None:
        raise UsageError(f"--checkpoint {which}: give latest, best, or a step such as 1200")
    path = store.find(chosen)
    try:
        return path, _verify_weights(path, tick)
    except (Broken, OSError) as error:
        raise GladiusError(f"{path} is damaged ({error}); choose another checkpoint") from error


def _verify_weights(path: Path, tick: Callable[[], None]) -> Manifest:
    """The manifest of a checkpoint, after checking the SHA-256 of its weights and config.

    The optimizer state, two thirds of the bytes, is not needed and not read.
    """
    manifest = read_manifest(path)
    copies = [name for name in manifest.files if name.startswith(f"{TOKENIZER}/")]
    for name in (MODEL, CONFIG, *copies):
        if not (path / name).is_file():
            raise Broken(f"{name} is missing")
        if hash_file(path / name, tick) != manifest.files[name].sha256:
            raise Broken(f"{name} is damaged (its SHA-256 differs)")
    return manifest


def _write_model_folder(
    workspace: Workspace, path: Path, manifest: Manifest, folder: Path, tick: Callable[[], None]
) -> ModelRecord:
    """Write a checkpoint's weights, config and tokenizer to `folder` as transformers loads them."""
    config = from_json(read_bytes(path / CONFIG))
    scalars = read_json(path / STATE)["scalars"] if manifest.kind == "full" else {}
    tokenizer_folder = path / TOKENIZER
    if f"{TOKENIZER}/tokenizer.json" not in manifest.files:
        tokenizer_folder = tokenizer_path(workspace, config)
    try:
        tokenizer = load_tokenizer(tokenizer_folder, config.student.vocab_size)
    except MissingError as error:
        raise MissingError(
            f"the tokenizer of {path.name} is no longer at {tokenizer_folder}; put it back, or "
            "choose another checkpoint"
        ) from error
    if trained_with := scalars.get("vocabulary"):
        vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, config.student.vocab_size)
        if vocabulary.digest != trained_with:
            raise GladiusError(
                f"{path.name} was trained with another tokenizer than the one at "
                f"{tokenizer_folder}; restore the original, or choose another checkpoint"
            )
    folder.mkdir(parents=True)
    tick()
    try:
        # A hard link survives when training removes the checkpoint.
        os.link(path / MODEL, folder / MODEL)
    except OSError:
        shutil.copyfile(path / MODEL, folder / MODEL)
    tick()
    model_config = llama_config(config.student, tokenizer)
    model_config.architectures = ["LlamaForCausalLM"]
    model_config.use_cache = True
    model_config.dtype = torch.float32
    model_config.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return describe_run(
        config,
        _known_experts(workspace, config),
        step=manifest.step,
        tokens_seen=manifest.tokens_seen,
        training_seconds=float(scalars.get("training_seconds", 0.0)),
        evaluations=_evaluations(manifest, scalars),
        held_out=read_held_out(workspace.checkpoints_dir, config),
    )


def _evaluations(manifest: Manifest, scalars: dict) -> list[tuple[int, float]]:
    """(step, bits per byte) up to this checkpoint; a best-weights checkpoint has its own score."""
    if manifest.kind == "weights":
        return [] if manifest.score is None else [(manifest.step, manifest.score)]
    return [(int(step), float(value)) for step, value in scalars.get("evaluations", [])]


def _known_experts(workspace: Workspace, config: RunConfig) -> list[ExpertSpec]:
    known = load_experts(workspace)
    return [known[name] for name in config.experts.names if name in known]
