"""Owns what is checked of a model folder's files without loading the model: all there and as they
were saved, every number finite, as many parameters as its config and its preset have.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open

from engine.checkpoint.model_record import RECORD, ModelRecord
from engine.checkpoint.tensor_files import first_non_finite, hash_file
from engine.config import StudentConfig
from engine.errors import GladiusError
from engine.events import CheckDone
from engine.sizing import parameter_count
from engine.validate.checks.check import listed, row

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
_SHARD = re.compile(r"[\w.-]+\.safetensors")

Beat = Callable[[str], None]


class BadFolder(Exception):
    """The folder can't be read as a model; the text says why."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, in order; BadFolder when the index names no such files."""
    if (folder / WEIGHTS).is_file() or not (folder / INDEX).is_file():
        return [folder / WEIGHTS]
    try:
        index = json.loads((folder / INDEX).read_bytes())
        names = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadFolder(f"{INDEX} can't be read ({error})") from error
    for name in names:
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise BadFolder(f"{INDEX} names {name!r}, which is no file of this folder")
    return [folder / name for name in names]


def check_files(
    folder: Path, record: ModelRecord | None, finished: bool, beat: Beat
) -> tuple[CheckDone, dict[str, str]]:
    """Everything is there, with the digests it was saved with; also the digests, by name.

    finished: False for a checkpoint, whose weights were verified against its own manifest when it
    was opened.
    """
    findings = []
    try:
        weights = weight_files(folder)
    except BadFolder as error:
        weights = []
        findings.append(str(error))
    needed = [folder / "config.json", *(folder / name for name in TOKENIZER), *weights]
    findings += [f"{path.name} is missing" for path in needed if not path.is_file()]
    known = record.files if record is not None else {}
    if record is None and (folder / RECORD).exists():
        findings.append(f"{RECORD} can't be read")
    digests: dict[str, str] = {}
    total = 0
    for name in dict.fromkeys([*(path.name for path in needed), *known]):
        path = folder / Path(name).name
        if not path.is_file():
            if name in known and path not in needed:
                findings.append(f"{name} is missing")
            continue
        beat(f"reading {name}")
        total += path.stat().st_size
        digests[name] = hash_file(path, lambda name=name: beat(f"reading {name}"))
        saved = known.get(name)
        if saved is None:
            continue
        if path.stat().st_size != saved.bytes:
            findings.append(f"{name} has {path.stat().st_size:,} bytes, saved were {saved.bytes:,}")
        elif digests[name] != saved.sha256:
            findings.append(f"{name} is not as it was saved (its SHA-256 differs)")
    unverified = finished and not known
    value = f"{len(digests)} files, {total / 2**20:.1f} MiB"
    if findings:
        value = f"{findings[0]}" + (f", and {len(findings) - 1} more" if findings[1:] else "")
    elif unverified:
        value += ", digests unknown"
    bound = f"SHA-256 as in {RECORD}" if known else "config, tokenizer, weights"
    if not finished:
        bound = "SHA-256 as in the checkpoint's manifest"
    done = row(
        "structural",
        "files",
        "files as saved",
        not findings and not unverified,
        value,
        f"There is no {RECORD}, so a changed file would not be noticed."
        if unverified and not findings
        else "Every file is there and byte for byte what was saved.",
        bound=bound,
        detail=listed(findings) if len(findings) > 1 else "",
        warn=unverified and not findings,
    )
    return done, digests


def weights_digest(folder: Path, digests: dict[str, str]) -> str:
    """One digest for all the weights; "" where there are none."""
    try:
        names = [path.name for path in weight_files(folder)]
    except BadFolder:
        return ""
    found = [digests[name] for name in names if name in digests]
    return hashlib.sha256(" ".join(found).encode()).hexdigest() if found else ""


def stored_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in the files, one at a time. Raises OSError, SafetensorError, BadFolder."""
    for path in weight_files(folder):
        # A handle for each tensor: one that is kept open keeps all of the mapped file in memory.
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                yield name, file.get_tensor(name)


class TensorSurvey(msgspec.Struct):
    """What one pass over the tensors tells."""

    tensors: int = 0
    parameters: int = 0
    bad: list[str] = []
    shapes: dict[str, tuple[int, ...]] = {}
    error: str = ""
    """Why the pass ended early; empty when it went through."""


def survey(tensors: Iterator[tuple[str, torch.Tensor]], beat: Beat) -> TensorSurvey:
    """Read every tensor once: shapes, and whether all numbers are finite."""
    found = TensorSurvey()
    try:
        for name, tensor in tensors:
            beat("reading tensors")
            found.tensors += 1
            found.parameters += tensor.numel()
            found.shapes[name] = tuple(tensor.shape)
            if first_non_finite({name: tensor}) is not None:
                count = int((~torch.isfinite(tensor)).sum())
                found.bad.append(f"{name}: {count:,} of {tensor.numel():,} numbers")
    except (OSError, SafetensorError, BadFolder, GladiusError, ValueError) as error:
        found.error = " ".join(str(error).split())
    return found


def check_finite(found: TensorSurvey) -> CheckDone:
    """No NaN, no infinity, in any tensor."""
    value = f"{found.tensors} tensors"
    if found.error:
        value = f"unreadable after {found.tensors} tensors: {found.error}"
    elif found.bad:
        value = f"not finite: {found.bad[0]}"
    elif not found.tensors:
        value = "no tensors"
    return row(
        "structural",
        "tensors_finite",
        "tensors finite",
        bool(found.tensors) and not found.bad and not found.error,
        value,
        "Every number in every tensor is finite; one NaN would make all output NaN.",
        bound="no NaN, no infinity",
        detail=listed(found.bad) if len(found.bad) > 1 else "",
        number=float(len(found.bad)),
    )


def check_parameters(found: TensorSurvey, config: dict, record: ModelRecord | None) -> CheckDone:
    """As many parameters as the config's shape has, and as the preset's."""
    student = student_of(config)
    by_config = None if student is None else parameter_count(student).total
    by_preset = None if record is None else parameter_count(record.config.student).total
    bounds = []
    if by_config is not None:
        bounds.append(f"config {by_config:,}")
    if record is not None and by_preset is not None:
        bounds.append(f"preset {record.preset} {by_preset:,}")
    detail = "" if student is None else listed(_wrong_shapes(found.shapes, student))
    wrong = [n for n in (by_config, by_preset) if n is not None and n != found.parameters]
    known = by_config is not None
    return row(
        "structural",
        "parameters",
        "parameter count",
        known and not wrong and not detail,
        f"{found.parameters:,}",
        "The files hold exactly the parameters of the model's shape."
        if known
        else "The config is not a Llama's of this program's kind: there is nothing to hold it to.",
        bound=", ".join(bounds),
        detail=detail,
        number=float(found.parameters),
        warn=not known,
    )


def student_of(config: dict) -> StudentConfig | None:
    """The shape in a config.json, as sizing counts it; None where it is no plain Llama."""
    fields = {
        name: config[name]
        for name in (
            *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
            *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
            "tie_word_embeddings",
        )
        if config.get(name) is not None
    }
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    fields.setdefault("tie_word_embeddings", False)
    try:
        student = msgspec.convert(fields, StudentConfig)
        plain = config.get("model_type") == "llama" and not config.get("attention_bias")
        head = config.get("head_dim") or student.hidden_size // student.num_attention_heads
        if not plain or head * student.num_attention_heads != student.hidden_size:
            return None
    except (msgspec.ValidationError, ZeroDivisionError):
        return None
    return student


def _wrong_shapes(shapes: dict[str, tuple[int, ...]], student: StudentConfig) -> list[str]:
    """What is missing, too much, or of another shape."""
    wanted = llama_shapes(student)
    lines = [f"{name} is missing" for name in wanted if name not in shapes]
    lines += [
        f"{name} has shape {shape}, the config says {wanted[name]}"
        for name, shape in shapes.items()
        if name in wanted and wanted[name] != shape
    ]
    lines += [f"{name} belongs to no layer of the config" for name in shapes if name not in wanted]
    return lines


def llama_shapes(student: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LlamaForCausalLM's parameters."""
    hidden, mlp = student.hidden_size, student.intermediate_size
    keys = hidden // student.num_attention_heads * student.num_key_value_heads
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (student.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not student.tie_word_embeddings:
        shapes["lm_head.weight"] = (student.vocab_size, hidden)
    for layer in range(student.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, shape in (
            ("input_layernorm", (hidden,)),
            ("post_attention_layernorm", (hidden,)),
            ("self_attn.q_proj", (hidden, hidden)),
            ("self_attn.k_proj", (keys, hidden)),
            ("self_attn.v_proj", (keys, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (mlp, hidden)),
            ("mlp.up_proj", (mlp, hidden)),
            ("mlp.down_proj", (hidden, mlp)),
        ):
            shapes[f"{prefix}{name}.weight"] = shape
    return shapes
