"""Owns what is checked of a tokenizer: it reads as its tokenizer.json says, gives every text back,
knows its special tokens, and writes conversations that end where a turn ends.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.events import CheckDone
from engine.validate.checks.check import listed, row, skipped

NASTY = (
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
"""Texts that break tokenizers; every one must come back as it was."""

_SIGNS = (
    "Ġ ▁ <0x0A> Ċ are text here",
    "<|im_end|> and </s> and <s>[INST] <|endoftext|><unk>",
)
"""Texts that look like the inside of a tokenizer. SentencePiece itself can't give a ▁ back, and
special tokens swallow space around them: only the ids are compared."""

_HOSTILE = "{{ 7 * 7 }} {% raw %} <b>&amp; \\n 'quoted' \"double\" é🙂"
"""A message that a template must pass on as it is."""


def check_round_trip(tokenizer: PreTrainedTokenizerFast, file: Path | None, rows: int) -> CheckDone:
    """Every text comes back, with the ids that tokenizer.json gives, all of them in the matrix.

    file: tokenizer.json, None where there is none (a GGUF file). rows: of the embedding matrix.
    """
    reference = Tokenizer.from_file(str(file)) if file is not None else None
    normalizer = tokenizer.backend_tokenizer.normalizer
    composes = normalizer is not None and "NFC" in repr(normalizer)
    findings = []
    for text in (*NASTY, *_SIGNS):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        wanted = unicodedata.normalize("NFC", text) if composes else text
        if back != wanted and text not in _SIGNS:
            findings.append(f"{text[:40]!r} comes back as {str(back)[:40]!r}")
        if reference is not None:
            own = reference.encode(text, add_special_tokens=False).ids
            if own != ids:
                findings.append(f"{text[:40]!r} has other ids than tokenizer.json gives it")
        if ids and max(ids) >= rows:
            findings.append(f"{text[:40]!r} has id {max(ids)}, the matrix has {rows:,} rows")
    value = f"{len(NASTY) + len(_SIGNS)} texts, {len(findings)} wrong"
    return row(
        "structural",
        "tokenizer",
        "tokenizer round trip",
        not findings,
        value,
        "Nasty texts (scripts, emoji, control characters, spaces) come back byte for byte, with "
        "the ids that tokenizer.json says.",
        bound="0 wrong",
        detail=listed(findings),
        number=float(len(findings)),
    )


def check_special_tokens(
    tokenizer: PreTrainedTokenizerFast, config: dict[str, Any], generation: dict[str, Any]
) -> CheckDone:
    """The end of text is one token, the same to tokenizer, config and generation config.

    config, generation: config.json and generation_config.json as plain data, {} for none.
    """
    findings = []
    vocabulary = tokenizer.get_vocab()
    told = []
    for role in ("bos", "eos", "pad"):
        token, index = getattr(tokenizer, f"{role}_token"), getattr(tokenizer, f"{role}_token_id")
        if token is None:
            if role == "eos":
                findings.append("there is no end-of-text token: generation would never stop")
            continue
        told.append(f"{role} {token} {index}")
        if vocabulary.get(token) != index:
            findings.append(f"{role}_token {token!r} is not in the vocabulary")
            continue
        if tokenizer(token, add_special_tokens=False).input_ids != [index]:
            findings.append(f"{role}_token {token!r} is read as more than one token")
        if tokenizer.decode([index], skip_special_tokens=True) != "":
            findings.append(f"{role}_token {token!r} is not special: it would show in answers")
        for name, data in (("config.json", config), ("generation_config.json", generation)):
            given = data.get(f"{role}_token_id")
            if given is not None and index not in (given if isinstance(given, list) else [given]):
                findings.append(f"{name} says {role} is {given}, the tokenizer {index}")
    eos_known = generation.get("eos_token_id", config.get("eos_token_id"))
    if (config or generation) and eos_known is None:
        findings.append("neither config.json nor generation_config.json names the end of text")
    return row(
        "structural",
        "special_tokens",
        "special tokens",
        not findings,
        findings[0] if findings else ", ".join(told),
        "The end-of-text token is one token, special, and the same everywhere: answers can end.",
        bound="tokenizer, config and generation config agree",
        detail=listed(findings) if findings[1:] else "",
    )


def check_template(tokenizer: PreTrainedTokenizerFast, own: bool) -> CheckDone:
    """Conversations can be written: all of their text, and an end of turn after each answer.

    own: the model is this program's, which always writes a template.
    """
    title = "chat template"
    if tokenizer.chat_template is None:
        if not own:
            why = "The tokenizer has no chat template: prompts are given as plain text."
            return skipped("structural", "chat_template", title, why)
        return row("structural", "chat_template", title, False, "there is none", _TEMPLATE_MEANING)
    findings = []
    user = {"role": "user", "content": f"One. {_HOSTILE}"}
    answer = {"role": "assistant", "content": "Two, the answer."}
    more = {"role": "user", "content": "Three?"}
    chats: Sequence[list[dict[str, str]]] = (
        [user],
        [{"role": "system", "content": "Be brief."}, user],
        [user, answer, more],
    )
    for chat in chats:
        text = _render(tokenizer, chat, True)
        roles = ", ".join(message["role"] for message in chat)
        findings += [
            f"{roles}: {message['content'][:30]!r} is not in what is written"
            for message in chat
            if message["content"] not in text
        ]
        if own and not text.startswith(_render(tokenizer, chat, False)):
            findings.append(f"{roles}: what opens the answer changes the text before it")
    if own:
        prompt = _render(tokenizer, [user], True)
        whole = _render(tokenizer, [user, answer], False)
        if not whole.startswith(prompt + answer["content"]):
            findings.append("an answer is not written where its prompt ends")
        elif not whole.removeprefix(prompt + answer["content"]).startswith(
            str(tokenizer.eos_token)
        ):
            findings.append(f"an answer is not followed by {tokenizer.eos_token!r}")
    return row(
        "structural",
        "chat_template",
        title,
        not findings,
        findings[0] if findings else f"{len(chats)} conversations written",
        _TEMPLATE_MEANING,
        bound="all text kept, answers end in the end-of-text token" if own else "all text kept",
        detail=listed(findings) if findings[1:] else "",
    )


_TEMPLATE_MEANING = "Conversations with and without a system turn reach the model whole."


def _render(tokenizer: Any, chat: list[dict[str, str]], prompt: bool) -> str:
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompt))
