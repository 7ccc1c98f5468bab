"""Turn conversations into prompts for a language model: by its chat template or phi's format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jinja2
from transformers import PreTrainedTokenizerFast

from engine.text.examples import Message

ChatFormat = Literal["template", "phi"]

_PHI_ROLES = {"user": "Instruct", "assistant": "Output", "tool": "Tool"}


def render_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    chat_format: ChatFormat = "template",
) -> str:
    """The conversation as text, up to where the next answer begins.

    Uses the tokenizer's chat template, or phi's "Instruct: ...\\nOutput: " where there is none.
    Where a template refuses system turns, their text is put before the first user turn.
    """
    if _uses_phi_format(tokenizer, chat_format):
        turns = [f"{_PHI_ROLES[m.role]}: {m.content}\n" for m in _fold_system(messages)]
        return "".join(turns) + "Output: "
    try:
        return _render_template(tokenizer, messages)
    except jinja2.TemplateError:
        return _render_template(tokenizer, _fold_system(messages))


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    chat_format: ChatFormat = "template",
) -> list[int]:
    """Token ids of the prompt for the next answer.

    They begin with exactly one BOS where the tokenizer adds one: some templates write it
    themselves, others leave it to the tokenizer. Nothing is added at the end.
    """
    text = render_chat(tokenizer, messages, chat_format)
    if _uses_phi_format(tokenizer, chat_format):
        # In byte-level BPE the space belongs to the answer's first word.
        text = text.rstrip(" ")
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    bos: Any = tokenizer.bos_token_id
    added = tokenizer.encode("", add_special_tokens=True)
    if bos is not None and added[:1] == [bos] and ids[:1] != [bos]:
        ids.insert(0, bos)
    return ids


def _uses_phi_format(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat) -> bool:
    return chat_format == "phi" or not tokenizer.chat_template


def _render_template(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message]) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert isinstance(text, str)
    return text


def _fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system turns: their text is put before the first user turn."""
    system = [m.content for m in messages if m.role == "system"]
    others = [m for m in messages if m.role != "system"]
    for n, message in enumerate(others):
        if system and message.role == "user":
            others[n] = Message("user", "\n\n".join([*system, message.content]))
            break
    return others
