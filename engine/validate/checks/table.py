"""The structural checks, in the order in which they run."""

from __future__ import annotations

from engine.validate.checks import (
    chat_template,
    chat_tools,
    determinism,
    files,
    finite,
    gguf_parity,
    loads,
    parameters,
    special_tokens,
    tokenizer,
)

STRUCTURAL_CHECKS = (
    files.CHECK,
    finite.CHECK,
    parameters.CHECK,
    loads.CHECK,
    tokenizer.CHECK,
    special_tokens.CHECK,
    chat_template.CHECK,
    chat_tools.CHECK,
    determinism.CHECK,
    gguf_parity.CHECK,
)
