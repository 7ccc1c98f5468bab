"""The structural checks, in the order in which they run."""

from __future__ import annotations

from engine.validate.check import Check
from engine.validate.checks.chat_template import check_chat_template
from engine.validate.checks.determinism import check_determinism
from engine.validate.checks.files import check_files
from engine.validate.checks.gguf_parity import check_gguf_parity
from engine.validate.checks.loads import check_loads
from engine.validate.checks.tensors import check_finite, check_parameters
from engine.validate.checks.tokenizer import check_round_trip, check_special_tokens

STRUCTURAL_CHECKS = (
    Check("files", "file integrity", check_files),
    Check("tensors_finite", "finite weights", check_finite, needs="files"),
    Check("parameters", "parameter count", check_parameters, needs="files"),
    Check("loads", "loads in transformers", check_loads, needs="files"),
    Check("tokenizer", "tokenizer round trip", check_round_trip, needs="model"),
    Check("special_tokens", "special tokens", check_special_tokens, needs="model"),
    Check("chat_template", "chat template", check_chat_template, needs="model"),
    Check("greedy", "deterministic generation", check_determinism, needs="model"),
    Check("gguf_parity", "GGUF parity", check_gguf_parity, needs="files"),
)
