"""Check the chat template: it keeps all text, and each answer ends with the end-of-text token."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from engine.events import CheckDone
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext

_NAME, _TITLE = "chat_template", "chat template"
_MEANING = "Conversations with and without a system turn keep all of their text."
_DIFFICULT = "{{ 7 * 7 }} {% raw %} <b>&amp; \\n 'quoted' \"double\" é🙂"
"""Text that a template must not change."""

Chat = list[dict[str, str]]
_USER = {"role": "user", "content": f"One. {_DIFFICULT}"}
_ANSWER = {"role": "assistant", "content": "Two, the answer."}
_CHATS: tuple[Chat, ...] = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, _ANSWER, {"role": "user", "content": "Three?"}],
)


def check_chat_template(context: CheckContext) -> CheckDone:
    """Check the template. A model of this program must have one whose answers end in the
    end-of-text token; for other models, it only must keep all text."""
    context.heartbeat("checking the tokenizer")
    tokenizer = context.model.tokenizer
    is_student = context.record is not None
    if tokenizer.chat_template is None:
        if not is_student:
            reason = "The tokenizer has no chat template, so prompts are given as plain text."
            return CHECK.skipped(reason)
        return structural_row(_NAME, _TITLE, passed=False, value="there is none", meaning=_MEANING)
    findings: list[str] = []
    for chat in _CHATS:
        findings += _text_findings(tokenizer, chat, is_student)
    if is_student:
        findings += _answer_findings(tokenizer)
    bound = "all text is kept"
    return structural_row(
        _NAME,
        _TITLE,
        passed=not findings,
        value=findings[0] if findings else f"{len(_CHATS)} conversations rendered",
        meaning=_MEANING,
        bound=f"{bound}, answers end in the end-of-text token" if is_student else bound,
        detail=one_per_line(findings) if findings[1:] else "",
    )


def _text_findings(tokenizer: PreTrainedTokenizerFast, chat: Chat, is_student: bool) -> list[str]:
    text = _render(tokenizer, chat, generation_prompt=True)
    roles = ", ".join(message["role"] for message in chat)
    findings = [
        f"{roles}: {message['content'][:30]!r} is missing from the rendered text"
        for message in chat
        if message["content"] not in text
    ]
    if is_student and not text.startswith(_render(tokenizer, chat)):
        findings.append(f"{roles}: the generation prompt changes the text before it")
    return findings


def _answer_findings(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Whether training text, where an answer follows its prompt, matches what generation sees."""
    prompt = _render(tokenizer, [_USER], generation_prompt=True)
    rendered = _render(tokenizer, [_USER, _ANSWER])
    expected = prompt + _ANSWER["content"]
    if not rendered.startswith(expected):
        return ["an answer does not begin where its prompt ends"]
    if not rendered.removeprefix(expected).startswith(str(tokenizer.eos_token)):
        return [f"an answer is not followed by {tokenizer.eos_token!r}"]
    return []


def _render(tokenizer: Any, chat: Chat, generation_prompt: bool = False) -> str:
    return str(
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation_prompt)
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_chat_template)
