"""Owns which model is delivered: the finished one, else a checkpoint's weights, as a folder that
plain transformers loads. What is done with it is the exporter's and the validator's.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.checkpoint.layout import CONFIG, MODEL, STATE, parse_step
from engine.checkpoint.manifest import Broken, Manifest, read_manifest
from engine.checkpoint.model_record import (
    ModelRecord,
    describe_run,
    read_held_out,
    read_record,
)
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.tensor_files import hash_file
from engine.config import RunConfig, from_json
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.student import llama_config, load_tokenizer, save_tokenizer, tokenizer_path
from engine.errors import GladiusError, MissingError, UsageError
from engine.experts.registry import load_experts
from engine.workspace import Workspace, remove_entry


def _nothing() -> None:
    """The beat of a caller that has none."""


@dataclass(frozen=True)
class Source:
    """A model to deliver."""

    folder: Path
    """config.json, weights and tokenizer; gone at the end for a checkpoint's."""
    title: str
    """`the finished model`, or `the checkpoint of step 1,200`."""
    finished: bool
    """False for a checkpoint, whose folder is temporary."""
    record: ModelRecord | None
    """How it came about; None for a model that does not say."""
    notes: tuple[str, ...] = ()
    """What the user should be told about the choice."""

    @property
    def name(self) -> str:
        """Of what is made from it: `gladius-1b` for the preset 1b."""
        return f"gladius-{self.record.preset if self.record else 'model'}"


@contextmanager
def open_source(
    workspace: Workspace,
    job: str,
    checkpoint: str | None = None,
    beat: Callable[[], None] = _nothing,
) -> Iterator[Source]:
    """The model to deliver, while the block runs.

    checkpoint: `latest`, `best` or a step; None is the finished model and, where there is none,
    the newest checkpoint whose weights verify. A checkpoint's folder is made below tmp/ for `job`
    (one at a time) and removed at the end, or at the next start.

    Raises MissingError when it is not there, UsageError when `checkpoint` says nothing known, and
    GladiusError for a checkpoint that does not verify.
    """
    temporary = workspace.checkpoints_dir / f".{job}-tmp"
    remove_entry(temporary)
    if checkpoint is None and (workspace.model_dir / "config.json").is_file():
        yield Source(
            workspace.model_dir, "the finished model", True, read_record(workspace.model_dir)
        )
        return
    notes = []
    if checkpoint is None:
        notes.append("there is no finished model here: taking the newest checkpoint")
    path, manifest = _choose(workspace, checkpoint or "latest", notes, beat)
    try:
        record = _materialise(workspace, path, manifest, temporary, beat)
        title = f"the {'best ' if checkpoint == 'best' else ''}checkpoint of step {manifest.step:,}"
        yield Source(temporary, title, False, record, tuple(notes))
    finally:
        with suppress(OSError):  # removed at the next start, too
            remove_entry(temporary)


def _choose(
    workspace: Workspace, which: str, notes: list[str], beat: Callable[[], None]
) -> tuple[Path, Manifest]:
    """The folder of the checkpoint that is meant, its weights and config verified."""
    store = CheckpointStore(workspace.checkpoints_dir)
    if which == "latest":
        for info in reversed(store.list()):
            try:
                return info.path, _verify_weights(info.path, beat)
            except (Broken, OSError) as error:
                notes.append(f"the checkpoint of step {info.step:,} is not used: {error}")
        raise MissingError(
            f"there is no trained model in {workspace.model_dir} and no checkpoint that verifies "
            f"in {workspace.checkpoints_dir}; train one with: gladius_train train"
        )
    chosen = "best" if which == "best" else parse_step(which)
    if chosen is None:
        raise UsageError(f"--checkpoint {which}: give latest, best, or a step such as 1200")
    path = store.find(chosen)
    try:
        return path, _verify_weights(path, beat)
    except (Broken, OSError) as error:
        raise GladiusError(f"{path} is damaged ({error}); choose another checkpoint") from error


def _verify_weights(path: Path, beat: Callable[[], None]) -> Manifest:
    """The manifest of a checkpoint whose weights and config are as they were saved.

    The optimizer's two thirds of the bytes are nobody's concern here.
    """
    manifest = read_manifest(path)
    for name in (MODEL, CONFIG):
        if not (path / name).is_file():
            raise Broken(f"{name} is missing")
        if hash_file(path / name, beat) != manifest.files[name].sha256:
            raise Broken(f"{name} is damaged (its SHA-256 differs)")
    return manifest


def _materialise(
    workspace: Workspace, path: Path, manifest: Manifest, folder: Path, beat: Callable[[], None]
) -> ModelRecord:
    """Make `folder` a model that transformers loads, of a checkpoint's weights."""
    config = from_json((path / CONFIG).read_bytes())
    scalars = json.loads((path / STATE).read_bytes())["scalars"] if manifest.kind == "full" else {}
    where = tokenizer_path(workspace, config)
    try:
        tokenizer = load_tokenizer(where, config.student.vocab_size)
    except MissingError as error:
        raise MissingError(
            f"the tokenizer of {path.name} is not at {where} any more; put it back, or choose "
            "another checkpoint"
        ) from error
    if wanted := scalars.get("vocabulary"):
        vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, config.student.vocab_size)
        if vocabulary.digest != wanted:
            raise GladiusError(
                f"{path.name} was trained with another tokenizer than the one at {where}; put "
                "the former one back, or choose another checkpoint"
            )
    folder.mkdir(parents=True)
    beat()
    try:
        # A second name for the same bytes: it stays whole when training removes the checkpoint.
        os.link(path / MODEL, folder / MODEL)
    except OSError:
        shutil.copyfile(path / MODEL, folder / MODEL)
    beat()
    shape = llama_config(config.student, tokenizer)
    shape.architectures = ["LlamaForCausalLM"]
    shape.use_cache = True
    shape.dtype = torch.float32
    shape.save_pretrained(folder)
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
    """What was measured up to this checkpoint; the best weights carry their own score."""
    if manifest.kind == "weights":
        return [] if manifest.score is None else [(manifest.step, manifest.score)]
    return [(int(step), float(value)) for step, value in scalars.get("evaluations", [])]


def _known_experts(workspace: Workspace, config: RunConfig) -> list:
    known = load_experts(workspace)
    return [known[name] for name in config.experts.names if name in known]
