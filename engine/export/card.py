"""Owns the model card: README.md beside what is exported, with the facts of the training, the
experts, what their licences ask, and what was measured. Nothing in it is made up: what the model
does not say of itself is left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.checkpoint.model_record import ModelRecord
from engine.events import CheckDone
from engine.export.licences import binding_lines, hub_licence, licence_of, model_name
from engine.export.model_source import Source
from engine.export.tensors import Weights, head_dim
from engine.gguf_types import GgufType
from engine.workspace import write_bytes

_HEADER_MARK = "<!-- written by GLADIUS's export; it is replaced by the next one -->"


@dataclass(frozen=True)
class Card:
    """What was written."""

    path: Path
    asks: list[str]
    """What the user should know before distributing the model."""


def write_card(gguf: Path, source: Source, kind: GgufType, checks: Sequence[CheckDone]) -> Card:
    """Write README.md beside the GGUF file; one that a person has rewritten is left alone, and
    README.gladius.md is written instead."""
    path = gguf.with_name("README.md")
    if path.exists() and _HEADER_MARK not in path.read_text(encoding="utf-8", errors="replace"):
        path = gguf.with_name("README.gladius.md")
    experts = source.record.experts if source.record else ()
    text = card_text(gguf, source, kind, checks)
    write_bytes(path, text.encode())
    return Card(path, binding_lines(experts))


def card_text(gguf: Path, source: Source, kind: GgufType, checks: Sequence[CheckDone]) -> str:
    """The card."""
    record = source.record
    weights = Weights(source.folder)
    count = 0
    for tensor in weights.placed():
        size = 1
        for extent in tensor.shape:
            size *= extent
        count += size
    name = model_name(source.name, record)
    parts = [
        _header(record, name),
        _HEADER_MARK,
        f"# {name}",
        _introduction(record, count),
        _experts(record),
        _licences(record),
        _training(record),
        _shape(weights.config, count),
        _evaluation(gguf.parent, record),
        _files(gguf, kind, checks),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _header(record: ModelRecord | None, name: str) -> str:
    experts = record.experts if record else ()
    lines = ["---", f"license: {hub_licence(experts)}"]
    if lines[-1].endswith("other"):
        lines += [f"license_name: {name.lower()}", "license_link: README.md"]
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", "- distillation", "- gguf", "- gladius"]
    # Only what is a repository on the Hub; an expert may be a folder or a package.
    repos = [
        e.repo for e in experts if e.repo.count("/") == 1 and not e.repo.startswith(("/", "."))
    ]
    if repos:
        lines += ["base_model:", *(f"- {repo}" for repo in repos)]
    return "\n".join([*lines, "---"])


def _introduction(record: ModelRecord | None, count: int) -> str:
    text = f"A language model of {count:,} parameters (Llama architecture), made with GLADIUS"
    if record is None:
        return text + ". It does not say how it was trained."
    titles = [expert.title for expert in record.experts]
    taught = " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
    text += f" by distilling {taught} into a student that began at random weights."
    if any(e.license.lower().startswith("llama3") for e in record.experts):
        text += "\n\n**Built with Llama.**"
    return text


def _experts(record: ModelRecord | None) -> str:
    if record is None or not record.experts:
        return ""
    rows = [
        "## Experts",
        "",
        "| expert | source | parameters | licence |",
        "| --- | --- | --- | --- |",
    ]
    for expert in record.experts:
        licence = licence_of(expert)
        title = f"[{licence.title}]({licence.url})" if licence else expert.license or "unknown"
        size = f"{expert.parameters:,}" if expert.parameters else "–"
        rows.append(f"| {expert.title} | {expert.repo} | {size} | {title} |")
    return "\n".join(rows)


def _licences(record: ModelRecord | None) -> str:
    if record is None or not record.experts:
        return ""
    lines = ["## If you distribute it", ""]
    for expert in record.experts:
        licence = licence_of(expert)
        if licence is None:
            given = expert.license or "none is given"
            lines.append(f"- **{expert.title}** ({given}): its licence isn't known here; read it.")
            continue
        asks = "; ".join(licence.asks)
        lines.append(f"- **{expert.title}** ([{licence.title}]({licence.url})): {asks}.")
    lines += ["", "This is a summary, not legal advice; the licences themselves count."]
    return "\n".join(lines)


def _training(record: ModelRecord | None) -> str:
    if record is None:
        return ""
    config = record.config
    facts = [
        ("preset", record.preset),
        ("optimizer steps", f"{record.step:,}"),
        ("tokens seen", f"{record.tokens_seen:,}"),
        ("training time", f"{record.training_seconds / 3600:.2f} h"),
        (
            "loss",
            f"KL and cross-entropy, alpha {config.loss.alpha:g}, T {config.loss.temperature:g}",
        ),
        ("learning rate", f"{config.optimizer.lr:g}"),
        ("text", ", ".join(Path(f).name for f in config.data.files) or "the experts' own answers"),
        ("seed", str(config.seed)),
        ("made", datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d")),
        ("with", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
    rows = [f"| {name} | {value} |" for name, value in facts]
    return "\n".join(["## Training", "", "| | |", "| --- | --- |", *rows])


def _shape(config: dict[str, Any], count: int) -> str:
    facts = [
        ("parameters", f"{count:,}"),
        ("layers", config["num_hidden_layers"]),
        ("hidden size", config["hidden_size"]),
        ("heads", f"{config['num_attention_heads']} × {head_dim(config)}"),
        ("key and value heads", config.get("num_key_value_heads")),
        ("vocabulary", f"{config['vocab_size']:,}"),
        ("context", f"{config['max_position_embeddings']:,} tokens"),
    ]
    rows = [f"| {name} | {value} |" for name, value in facts]
    return "\n".join(["## Shape", "", "| | |", "| --- | --- |", *rows])


def _evaluation(folder: Path, record: ModelRecord | None) -> str:
    """Held-out figures of the training, and the rows of a validation that lies beside."""
    lines = []
    if record is not None and record.evaluations:
        (first, before), (last, after) = record.evaluations[0], record.evaluations[-1]
        if len(record.evaluations) > 1:
            text = f"{before:.3f} at step {first:,}, {after:.3f} at step {last:,}"
        else:
            text = f"{after:.3f} at step {last:,}"
        lines.append(f"Held-out text, bits per byte (lower is better): {text}.")
    rows = [
        f"| {row['title']} | {row['value']} | {row['bound']} | {row['verdict']} |"
        for row in _validation(folder)
    ]
    if rows:
        lines.append(
            "| check | value | bound | verdict |\n| --- | --- | --- | --- |\n" + "\n".join(rows)
        )
    if not lines:
        return ""
    lines.append(
        "A student that was trained for minutes writes gibberish; these figures say how far it is."
        if record is not None and record.step < 2000
        else "What it writes may be wrong or harmful; check before you rely on it."
    )
    return "\n\n".join(["## Evaluation", *lines])


def _validation(folder: Path) -> list[dict[str, str]]:
    """The rows of validation.json; none where it is missing or of another form."""
    try:
        rows = json.loads((folder / "validation.json").read_bytes())["checks"]
        keys = ("title", "value", "bound", "verdict")
        cells = [
            {k: str(row[k]).replace("|", "/").replace("\n", " ") for k in keys} for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [row for row in cells if row["verdict"] != "skip"]


def _files(gguf: Path, kind: GgufType, checks: Sequence[CheckDone]) -> str:
    lines = [
        "## Files",
        "",
        f"`{gguf.name}` is a GGUF file of type {kind.name} for llama.cpp and its kin "
        f"(`llama-cli -m {gguf.name}`); `Modelfile` is for Ollama. The safetensors load with plain "
        "transformers (`AutoModelForCausalLM.from_pretrained`).",
        "",
        "Compared with the safetensors when it was written:",
        "",
    ]
    for check in checks:
        told = check.value if check.verdict != "skip" else check.meaning
        lines.append(f"- {check.title.removeprefix('GGUF ')}: {told}")
    return "\n".join(lines)
