"""Write the model card: README.md with the training facts, the experts, what their licences
require, and the evaluation results. Facts that the model's record does not have are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine.checkpoint.model_record import ModelRecord, TaughtBy
from engine.events import CheckDone
from engine.export.licences import hub_licence, licence_notices, licence_of, model_name
from engine.export.model_source import ModelSource
from engine.export.tensors import count_parameters
from engine.export.weights import Weights, head_dim
from engine.gguf_types import GgufType
from engine.small_files import Damaged, read_json
from engine.workspace import write_bytes

# Also found in the cards of earlier versions: do not change it.
_MARK = "<!-- written by GLADIUS's export; it is replaced by the next one -->"
_FEW_STEPS = 2000
"""Below this many steps the card warns that the model is barely trained."""


@dataclass(frozen=True)
class Card:
    """A model card that was written."""

    path: Path
    notices: list[str]
    """Warnings about distributing the model."""


def write_card(
    gguf: Path, source: ModelSource, file_type: GgufType, checks: Sequence[CheckDone]
) -> Card:
    """Write README.md next to the GGUF file, or README.gladius.md if README.md is the user's own.

    Raises OSError.
    """
    path = gguf.with_name("README.md")
    if path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        path = gguf.with_name("README.gladius.md")
    write_bytes(path, card_text(gguf, source, file_type, checks).encode())
    experts = source.record.experts if source.record else ()
    return Card(path, licence_notices(experts))


def card_text(
    gguf: Path, source: ModelSource, file_type: GgufType, checks: Sequence[CheckDone]
) -> str:
    """The model card as Markdown."""
    record = source.record
    weights = Weights(source.folder)
    parameters = count_parameters(weights)
    name = model_name(source.name, record)
    sections = [
        _metadata(record, name),
        _MARK,
        f"# {name}",
        _introduction(record, parameters),
        _experts(record),
        _licences(record),
        _training(record),
        _architecture(weights.config, parameters),
        _evaluation(gguf.parent, record),
        _files(gguf, file_type, checks),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _metadata(record: ModelRecord | None, name: str) -> str:
    """The YAML metadata that the Hub reads."""
    experts = record.experts if record else ()
    licence = hub_licence(experts)
    lines = ["---", f"license: {licence}"]
    if licence == "other":
        lines += [f"license_name: {name.lower()}", "license_link: README.md"]
    lines += ["library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["tags:", "- distillation", "- gguf", "- gladius"]
    repos = [expert.repo for expert in experts if _is_hub_repo(expert)]
    if repos:
        lines += ["base_model:", *(f"- {repo}" for repo in repos)]
    return "\n".join([*lines, "---"])


def _is_hub_repo(expert: TaughtBy) -> bool:
    """Whether the expert comes from the Hub, not from a folder or a package."""
    return expert.repo.count("/") == 1 and not expert.repo.startswith(("/", "."))


def _introduction(record: ModelRecord | None, parameters: int) -> str:
    text = (
        f"A language model with {parameters:,} parameters (Llama architecture), made with GLADIUS"
    )
    if record is None:
        return text + ". How it was trained is not recorded."
    titles = [expert.title for expert in record.experts]
    listed = " and ".join([", ".join(titles[:-1]), titles[-1]] if len(titles) > 1 else titles)
    text += f" by distilling {listed} into a student with randomly initialized weights."
    if any(expert.license.lower().startswith("llama3") for expert in record.experts):
        text += "\n\n**Built with Llama.**"
    return text


def _experts(record: ModelRecord | None) -> str:
    if record is None or not record.experts:
        return ""
    rows = []
    for expert in record.experts:
        licence = licence_of(expert)
        title = f"[{licence.title}]({licence.url})" if licence else expert.license or "unknown"
        size = f"{expert.parameters:,}" if expert.parameters else "–"
        rows.append((expert.title, expert.repo, size, title))
    return "## Experts\n\n" + _table(("expert", "source", "parameters", "licence"), rows)


def _licences(record: ModelRecord | None) -> str:
    if record is None or not record.experts:
        return ""
    lines = ["## Distribution", ""]
    for expert in record.experts:
        licence = licence_of(expert)
        if licence is None:
            identifier = expert.license or "not given"
            lines.append(
                f"- **{expert.title}** ({identifier}): this licence is unknown to GLADIUS; read it "
                "before you distribute the model."
            )
            continue
        requirements = "; ".join(licence.requirements)
        lines.append(f"- **{expert.title}** ([{licence.title}]({licence.url})): {requirements}.")
    lines += ["", "This is a summary, not legal advice; the licences are authoritative."]
    return "\n".join(lines)


def _training(record: ModelRecord | None) -> str:
    if record is None:
        return ""
    config = record.config
    files = ", ".join(Path(file).name for file in config.data.files)
    facts = [
        ("preset", record.preset),
        ("optimizer steps", f"{record.step:,}"),
        ("tokens seen", f"{record.tokens_seen:,}"),
        ("training time", f"{record.training_seconds / 3600:.2f} h"),
        (
            "loss",
            f"KL and cross-entropy, alpha {config.loss.alpha:g}, "
            f"temperature {config.loss.temperature:g}",
        ),
        ("learning rate", f"{config.optimizer.lr:g}"),
        ("training text", files or "answers written by the experts"),
        ("seed", str(config.seed)),
        ("date", datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d")),
        ("software", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
    return "## Training\n\n" + _table(("", ""), facts)


def _architecture(config: dict[str, Any], parameters: int) -> str:
    facts = [
        ("parameters", f"{parameters:,}"),
        ("layers", config["num_hidden_layers"]),
        ("hidden size", config["hidden_size"]),
        ("attention heads", f"{config['num_attention_heads']} × {head_dim(config)}"),
        ("key and value heads", config.get("num_key_value_heads")),
        ("vocabulary size", f"{config['vocab_size']:,}"),
        ("context length", f"{config['max_position_embeddings']:,} tokens"),
    ]
    return "## Architecture\n\n" + _table(("", ""), facts)


def _evaluation(folder: Path, record: ModelRecord | None) -> str:
    """Held-out bits per byte of the training run, and the results of `folder`/validation.json."""
    parts = []
    if record is not None and record.evaluations:
        (first, before), (last, after) = record.evaluations[0], record.evaluations[-1]
        text = f"{after:.3f} at step {last:,}"
        if len(record.evaluations) > 1:
            text = f"{before:.3f} at step {first:,}, {text}"
        parts.append(f"Bits per byte on held-out text (lower is better): {text}.")
    if rows := _validation_rows(folder):
        parts.append(_table(("check", "value", "bound", "verdict"), rows))
    if not parts:
        return ""
    parts.append(
        f"After only {record.step:,} training steps the output is mostly gibberish."
        if record is not None and record.step < _FEW_STEPS
        else "The output may be wrong or harmful; check it before you rely on it."
    )
    return "\n\n".join(["## Evaluation", *parts])


def _validation_rows(folder: Path) -> list[tuple[str, ...]]:
    """(title, value, bound, verdict) of the checks in validation.json that were not skipped; none
    where the file is missing or cannot be read."""
    try:
        checks = read_json(folder / "validation.json")["checks"]
        return [
            tuple(
                str(check[key]).replace("|", "/").replace("\n", " ")
                for key in ("title", "value", "bound", "verdict")
            )
            for check in checks
            if check["verdict"] != "skip"
        ]
    except (OSError, Damaged, KeyError, TypeError):
        return []


def _files(gguf: Path, file_type: GgufType, checks: Sequence[CheckDone]) -> str:
    lines = [
        "## Files",
        "",
        f"`{gguf.name}` is a GGUF file of type {file_type.name} for llama.cpp and compatible "
        f"programs (`llama-cli -m {gguf.name}`); `Modelfile` is for Ollama. The safetensors load "
        "with plain transformers (`AutoModelForCausalLM.from_pretrained`).",
        "",
        "Comparison of the GGUF file with the safetensors:",
        "",
    ]
    for check in checks:
        result = check.value if check.verdict != "skip" else check.meaning
        lines.append(f"- {check.title.removeprefix('GGUF ')}: {result}")
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)
