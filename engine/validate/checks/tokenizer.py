"""Check that the tokenizer encodes as tokenizer.json does, and decodes every text unchanged."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.events import CheckDone
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext

_NAME, _TITLE = "tokenizer", "tokenizer round trip"
TEXTS = (
    "plain words, nothing more",
    "",
    "x",
    " ",
    "  two spaces before, two after  ",
    "\n",
    "\n\n\n",
    "\t\ttabs\tand \t mixed",
    "line one\r\nline two\r\n\r\nline four\r",
    "runs   of    spaces        here ",
    "trailing space ",
    "é è ñ ü ß ø ç Ł ő",
    "e\u0301 a\u0308\u0323 combining marks \u0301",
    "漢字かな交じり文、全角！",
    "한국어 텍스트와 조합",
    "العربية من اليمين إلى اليسار",
    "עברית עם ניקוד שָׁלוֹם",
    "हिन्दी में संयुक्ताक्षर",
    "ภาษาไทยไม่มีช่องว่าง",
    "Ελληνικά και Кириллица",
    "🙂 and 👩‍👩‍👧 and 🏳️‍🌈 and 👍🏽!",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010fffd",
    "\u00a0no-break\u2003em space\u200bzero width\ufeffmark",
    "\u202eright to left override\u202c",
    "\x00\x01\x02 control \x1b[31mred\x7f",
    "don't we'll I'm they've it's O'Neill’s",
    "1234567890 3.14159 -0.5e-10 1,000,000 0x1F ½ ²",
    "def f(x):\n    return {'a': [1, 2, (x,)]}  # comment\n",
    '{"tool": "search", "arguments": {"query": "gold \\"spot\\" price\\n"}}',
    "<html><body class='x'>&nbsp;</body></html>",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\path\\file",
    "!!!???...---___===+++***///\\\\\\|||",
    "«quotes» “curly” ‘single’ „low“ … – —",
    "a" * 300,
    "ab" * 150 + " " + "\u00e9" * 100,
    "CamelCaseAndsnake_case_and-kebab-case SHOUTING",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β → γ",
    "one\u2028line separator\u2029paragraph",
    "tab\tnewline\nreturn\rvertical\x0bform\x0c",
)
"""Texts that tokenizers often change; each must be decoded as it was encoded."""

_TOKEN_LIKE_TEXTS = (
    "Ġ ▁ <0x0A> Ċ are text here",
    "<|im_end|> and </s> and <s>[INST] <|endoftext|><unk>",
)
"""Texts that look like tokens. Only their ids are compared: SentencePiece cannot decode a ▁, and
special tokens may strip the spaces around them."""


def check_round_trip(context: CheckContext) -> CheckDone:
    """Check the loaded tokenizer against tokenizer.json (a GGUF file has none)."""
    context.heartbeat("checking the tokenizer")
    file = context.folder / "tokenizer.json" if context.gguf is None else None
    return compare_tokenizer(context.model.tokenizer, file, context.model.vocab_size)


def compare_tokenizer(
    tokenizer: PreTrainedTokenizerFast, file: Path | None, vocab_size: int
) -> CheckDone:
    """Every text is decoded unchanged, with the ids of tokenizer.json, all below `vocab_size`.

    file: tokenizer.json; None where there is none.
    """
    reference = Tokenizer.from_file(str(file)) if file is not None else None
    normalizer = tokenizer.backend_tokenizer.normalizer
    uses_nfc = normalizer is not None and "NFC" in repr(normalizer)
    findings = []
    for text in (*TEXTS, *_TOKEN_LIKE_TEXTS):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        decoded = tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        expected = unicodedata.normalize("NFC", text) if uses_nfc else text
        if decoded != expected and text not in _TOKEN_LIKE_TEXTS:
            findings.append(f"{text[:40]!r} is decoded as {str(decoded)[:40]!r}")
        if reference is not None:
            reference_ids = reference.encode(text, add_special_tokens=False).ids
            if reference_ids != ids:
                findings.append(f"{text[:40]!r} gets other ids than with tokenizer.json")
        if ids and max(ids) >= vocab_size:
            findings.append(
                f"{text[:40]!r} gets id {max(ids)}, but the embedding has {vocab_size:,} rows"
            )
    return structural_row(
        _NAME,
        _TITLE,
        passed=not findings,
        value=f"{len(TEXTS) + len(_TOKEN_LIKE_TEXTS)} texts, {len(findings)} problems",
        meaning="Difficult texts (scripts, emoji, control characters, spaces) are decoded byte for "
        "byte, with the ids that tokenizer.json gives.",
        bound="no problems",
        detail=one_per_line(findings),
        number=float(len(findings)),
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_round_trip)
