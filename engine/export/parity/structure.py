"""Compare a GGUF file's metadata, tensor names and shapes with the model's config and tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.events import CheckDone
from engine.export.parity.comparison import Comparison, shorten
from engine.export.tensors import map_tensors
from engine.export.tokenizer import GgufTokenizer
from engine.export.weights import head_dim, num_kv_heads, rope_parameters
from engine.gguf_types import GgufType

_GGUF_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def check_structure(comparison: Comparison, expected_type: GgufType | None = None) -> CheckDone:
    """Check metadata, tensor names and shapes; `expected_type` None allows any type."""
    comparison.report("comparing structure", 0, None)
    expected = expected_metadata(comparison.weights.config, comparison.tokenizer)
    if expected_type is not None:
        expected["general.file_type"] = expected_type.file_type
    findings = [
        f"{key} is {shorten(found)}, expected {shorten(value)}"
        for key, value in expected.items()
        if not _equal(found := comparison.metadata(key), value)
    ]
    findings += _tensor_findings(comparison)
    type_name = comparison.type.name if comparison.type else "unknown type"
    value = f"{type_name}, {len(comparison.stored)} tensors, {len(comparison.reader.fields)} keys"
    return CheckDone(
        group="structural",
        name="gguf_structure",
        title="GGUF structure",
        value=value if not findings else f"{len(findings)} differences: {findings[0]}",
        bound="equal to config.json and tokenizer.json",
        verdict="fail" if findings else "pass",
        meaning="Metadata, tensor names and shapes in the file match the model.",
        detail="\n".join(findings[:20]),
        number=float(len(findings)),
    )


def _tensor_findings(comparison: Comparison) -> list[str]:
    stored = comparison.stored
    expected = {mapping.gguf_name: mapping for mapping in map_tensors(comparison.weights)}
    findings = [f"tensor {name} is missing" for name in expected if name not in stored]
    findings += [f"tensor {name} is unexpected" for name in stored if name not in expected]
    file_bytes = comparison.path.stat().st_size
    for name in expected.keys() & stored.keys():
        tensor = stored[name]
        shape = tuple(int(extent) for extent in reversed(tensor.shape))
        if shape != expected[name].shape:
            findings.append(f"tensor {name} has shape {shape}, expected {expected[name].shape}")
        elif int(tensor.data_offset) + int(tensor.n_bytes) > file_bytes:
            findings.append(f"tensor {name} extends past the end of the file")
    return findings


def expected_metadata(config: dict[str, Any], tokenizer: GgufTokenizer) -> dict[str, Any]:
    """The metadata that a file of this model must have, by key (None: the key must be absent)."""
    size = head_dim(config)
    special = {
        f"{_GGUF_ROLES[role]}_token_id": token_id for role, token_id in tokenizer.special.items()
    }
    tokenizer_values = {
        "model": tokenizer.model,
        "pre": tokenizer.pre,
        "tokens": tokenizer.tokens,
        "token_type": tokenizer.types,
        "scores": tokenizer.scores,
        "merges": tokenizer.merges,
        **special,
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": tokenizer.add_eos,
    }
    rope_theta = rope_parameters(config).get("rope_theta", 10000.0)
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": config["num_attention_heads"],
        "llama.attention.head_count_kv": num_kv_heads(config),
        "llama.attention.key_length": size,
        "llama.attention.value_length": size,
        "llama.rope.freq_base": float(np.float32(rope_theta)),
        "llama.rope.dimension_count": size,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(config["rms_norm_eps"])),
        "llama.vocab_size": config["vocab_size"],
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer_values.items()},
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _equal(found: Any, expected: Any) -> bool:
    """Equality that does not take True for 1."""
    if isinstance(expected, list):
        return isinstance(found, list) and found == expected
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)
