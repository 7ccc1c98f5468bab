"""Check that names, shapes and number of the stored parameters match the config and the preset."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.config import StudentConfig
from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.sizing import parameter_count
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext
from engine.validate.model_files import read_json

_NAME, _TITLE = "parameters", "parameter count"
_STUDENT_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)
"""Keys of config.json that StudentConfig has too."""


def check_parameters(context: CheckContext) -> CheckDone:
    """Names, shapes and number of parameters match config.json, the number also the preset."""
    survey, record = context.survey, context.record
    student = student_config(_model_config(context))
    by_config = None if student is None else parameter_count(student).total
    by_preset = None if record is None else parameter_count(record.config.student).total
    bounds = []
    if by_config is not None:
        bounds.append(f"config {by_config:,}")
    if record is not None and by_preset is not None:
        bounds.append(f"preset {record.preset} {by_preset:,}")
    detail = "" if student is None else one_per_line(_shape_findings(survey.shapes, student))
    expected = [count for count in (by_config, by_preset) if count is not None]
    equal = all(count == survey.parameters for count in expected)
    return structural_row(
        _NAME,
        _TITLE,
        passed=student is not None and equal and not detail,
        value=f"{survey.parameters:,}",
        meaning="The files contain exactly the parameters that the config describes."
        if student is not None
        else "Not a plain Llama config, so the expected number of parameters is unknown.",
        bound=", ".join(bounds),
        detail=detail,
        number=float(survey.parameters),
        warn_only=student is None,
    )


def _model_config(context: CheckContext) -> dict[str, Any]:
    if context.gguf is None:
        return read_json(context.folder / "config.json")
    with context.job.busy("reading the GGUF file"):
        return GGUFExpert(context.gguf).config().to_dict()


def student_config(config: dict[str, Any]) -> StudentConfig | None:
    """The shape that a config.json describes; None where it is not a plain Llama."""
    fields = {key: config[key] for key in _STUDENT_KEYS if config.get(key) is not None}
    fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
    fields.setdefault("tie_word_embeddings", False)
    try:
        student = msgspec.convert(fields, StudentConfig)
        plain = config.get("model_type") == "llama" and not config.get("attention_bias")
        head_dim = config.get("head_dim") or student.hidden_size // student.num_attention_heads
        if not plain or head_dim * student.num_attention_heads != student.hidden_size:
            return None
    except (msgspec.ValidationError, ZeroDivisionError):
        return None
    return student


def _shape_findings(shapes: dict[str, tuple[int, ...]], student: StudentConfig) -> list[str]:
    """Parameters that are missing, unexpected, or have the wrong shape."""
    expected = llama_shapes(student)
    findings = [f"{name} is missing" for name in expected if name not in shapes]
    findings += [
        f"{name} has shape {shape}, but the config requires {expected[name]}"
        for name, shape in shapes.items()
        if name in expected and expected[name] != shape
    ]
    findings += [
        f"{name} is not a parameter of this config" for name in shapes if name not in expected
    ]
    return findings


def llama_shapes(student: StudentConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a LlamaForCausalLM's parameters."""
    hidden, intermediate = student.hidden_size, student.intermediate_size
    kv_size = hidden // student.num_attention_heads * student.num_key_value_heads
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
            ("self_attn.k_proj", (kv_size, hidden)),
            ("self_attn.v_proj", (kv_size, hidden)),
            ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (intermediate, hidden)),
            ("mlp.up_proj", (intermediate, hidden)),
            ("mlp.down_proj", (hidden, intermediate)),
        ):
            shapes[f"{prefix}{name}.weight"] = shape
    return shapes


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_parameters, needs="files")
