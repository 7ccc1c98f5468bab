"""Find the tokens that end an expert's answers: registered, named by its files, or written by its
template.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from engine.errors import GladiusError
from engine.experts.registry import ExpertSpec

_ANSWER = "Answer 7261"
"""An answer that no template contains."""


def end_tokens(
    tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec, configured: Any
) -> tuple[int, ...]:
    """Ids of the tokens that end an expert's turn; the first is the one that encoding writes.

    The registered ones that its vocabulary has; else the token that its chat template writes after
    an answer, its tokenizer's EOS, and `configured`, the eos_token_id of its generation config.
    Raises GladiusError where there is none.
    """
    vocabulary = tokenizer.get_vocab()
    ids: list[Any] = [vocabulary[t] for t in spec.end_tokens if t in vocabulary]
    if not ids:
        ids = [template_end(tokenizer, spec), *files_end(tokenizer, configured)]
        ids = [i for i in ids if i is not None]
    if not ids:
        raise GladiusError(
            f"expert {spec.name} has no end-of-turn token: neither its files nor its chat template "
            f"name one; set end_tokens in [experts.{spec.name}] of gladius.toml"
        )
    return tuple(dict.fromkeys(ids))


def files_end(tokenizer: PreTrainedTokenizerFast, configured: Any) -> list[int]:
    """The end tokens that the expert's files name and its vocabulary has."""
    more = configured if isinstance(configured, list | tuple) else [configured]
    known = set(tokenizer.get_vocab().values())
    return [i for i in (tokenizer.eos_token_id, *more) if i in known]


def template_end(tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> int | None:
    """The special token that the chat template writes directly after an answer.

    None without a template, with one that fails, or where it writes text or nothing there.
    """
    if spec.chat != "template" or not tokenizer.chat_template:
        return None
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.apply_chat_template(chat, tokenize=False)
    except Exception:  # reported where the template is checked
        return None
    if not isinstance(text, str) or _ANSWER not in text:
        return None
    rest = text[text.rindex(_ANSWER) + len(_ANSWER) :].lstrip()
    special = set(tokenizer.all_special_ids) | _control_ids(tokenizer)
    ids = tokenizer.encode(rest, add_special_tokens=False) if rest else []
    return next((i for i in ids[:1] if i in special), None)


def _control_ids(tokenizer: PreTrainedTokenizerFast) -> set[int]:
    """Ids of added tokens; some files do not mark their end of turn as special."""
    return set(tokenizer.added_tokens_decoder)
