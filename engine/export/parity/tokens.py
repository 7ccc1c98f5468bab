"""Compare the token ids of a GGUF file's tokenizer with those of tokenizer.json."""

from __future__ import annotations

import unicodedata

from gguf import TokenType
from msgspec.structs import replace
from tokenizers import Tokenizer

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.export import llama_runtime
from engine.export.llama_runtime import LlamaCppFailed
from engine.export.parity.comparison import Comparison, fail_check, shorten, skip_check
from engine.export.parity.gguf_tokenizer import load_encoder
from engine.export.parity.texts import difficult_texts
from engine.export.tokenizer import GgufTokenizer

NUM_TEXTS = 600
"""Strings that are compared, each with and without beginning and end tokens."""

# llama.cpp always takes tokens with these texts for end tokens, for any type in the file.
_END_TOKENS = frozenset(
    (
        *("</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|eot_id|>", "<|eom_id|>", "<|im_end|>"),
        *("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>"),
        *("<end_of_turn>", "<end_of_utterance>"),
    )
)


def check_tokens(comparison: Comparison) -> CheckDone:
    """Check token ids, as read by llama.cpp or, without it, by `gguf_tokenizer`."""
    backend = Tokenizer.from_file(str(comparison.folder / "tokenizer.json"))
    # tokenizer.json keeps the truncation and padding that were set when it was saved.
    backend.no_truncation()
    backend.no_padding()
    texts, left_out = _texts(comparison.tokenizer)
    check = CheckDone(
        group="structural",
        name="gguf_tokens",
        title="GGUF token ids",
        value="",
        bound="equal on every string",
        verdict="skip",
        meaning="The file splits text into the tokens that the model was trained on.",
    )
    try:
        tokenized_by, found = _tokenize(comparison, texts)
    except LlamaCppFailed as error:
        # A crash does not show that the file is wrong.
        return skip_check(check, str(error)) if error.crashed else fail_check(check, str(error))
    except GladiusError as error:
        return skip_check(check, str(error))
    comparison.report("comparing token ids", 0, None)
    differences = [
        f"{text!r}: {shorten(ids)} instead of {shorten(expected)}"
        for add_special_tokens, encoded in found.items()
        for text, ids in zip(texts, encoded, strict=True)
        if ids != (expected := backend.encode(text, add_special_tokens=add_special_tokens).ids)
    ]
    notes = [f"not compared: {token!r}, always an end token in llama.cpp" for token in left_out]
    return replace(
        check,
        verdict="fail" if differences else "pass",
        value=f"{len(differences)} of {len(found) * len(texts):,} differ, tokenized by "
        f"{tokenized_by}",
        detail="\n".join([*differences[:20], *notes]),
        number=float(len(differences)),
    )


def _texts(tokenizer: GgufTokenizer) -> tuple[list[str], list[str]]:
    """The strings to compare, and the ordinary tokens that llama.cpp takes for end tokens: strings
    that contain one are left out."""
    typed = list(zip(tokenizer.tokens, tokenizer.types, strict=True))
    special = [t for t, kind in typed if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    left_out = [t for t, kind in typed if kind == TokenType.NORMAL and t in _END_TOKENS]
    texts = difficult_texts(NUM_TEXTS, special)
    texts = [text for text in texts if not any(token in text for token in left_out)]
    if tokenizer.needs_nfc:
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    return texts, left_out


def _tokenize(comparison: Comparison, texts: list[str]) -> tuple[str, dict[bool, list[list[int]]]]:
    """The name of the tokenizer, and the ids by whether special tokens are added."""
    python = llama_runtime.find_python()
    comparison.report("comparing token ids", 0, None)
    if python is None:
        encode = load_encoder(comparison.path, comparison.reader)
        ids = {added: [encode(text, added) for text in texts] for added in (True, False)}
        return "GLADIUS (llama.cpp is not installed)", ids
    ids = {
        added: llama_runtime.token_ids(
            python,
            comparison.path,
            texts,
            add_special_tokens=added,
            tick=lambda: comparison.report("tokenizing with llama.cpp", 0, None),
        )
        for added in (True, False)
    }
    return "llama.cpp", ids
