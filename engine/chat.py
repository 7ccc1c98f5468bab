"""Turn conversations into prompts for a language model: by its chat template or phi's format.

A template that refuses a conversation, or that drops a part of it, gets it in another form: system
turns in the first user turn, user turns in a row as one, tools and reasoning as text.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise, product
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from engine.chat_forms import (
    PLAIN,
    ChatForm,
    Tools,
    as_dicts,
    fold_system,
    missing_part,
    opening_turn,
)
from engine.chat_tools import (
    THINK_END,
    THINK_START,
    call_text,
    reasoning_as_text,
    tools_as_text,
    uses_tools,
)
from engine.errors import GladiusError
from engine.text.examples import Message, ToolCall

ChatFormat = Literal["template", "phi"]

_PHI_ROLES = {"user": "Instruct", "assistant": "Output"}
_MARK, _MARK_2 = "\u2402gladius\u2403", "\u2402gladius-2\u2403"
_PROBE_CALL = ToolCall("gladius_probe", {"x": "probe-value"}, "call00001")
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "gladius_probe",
        "description": "A probe.",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "string", "description": "A text."}},
            "required": ["x"],
        },
    },
}
REFUSES, DROPS = "refuses it", "drops a part of it"
_MAX_FORMS = 4096
_MAX_OPENING = 64
"""Characters that a template may write between the generation prompt and the answer."""


class ChatRefused(GladiusError):
    """A chat template refuses a conversation, or drops a part of it.

    Attributes:
        reason: a few words, the same for all conversations.
        words: the template's own.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(f"the chat template {reason}: {words}" if words else reason)
        self.reason = reason
        self.words = words


class ChatRenderer:
    """Renders conversations with one tokenizer's chat template, or in phi's format.

    Attributes:
        tokenizer: its chat template is read at each call.
        is_phi: whether phi's format is used, also where there is no template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        chat_format: ChatFormat = "template",
        *,
        as_learnt: bool = False,
    ) -> None:
        """as_learnt: tools and reasoning are text where the template has another form for them than
        the one that a student learns."""
        self.tokenizer = tokenizer
        self._as_learnt = as_learnt
        self.chat_format: ChatFormat = chat_format
        self.is_phi = chat_format == "phi" or not tokenizer.chat_template
        self._forms: dict[tuple[str, ...], ChatForm | str] = {}
        """By the roles of a conversation: its form, or the words of the refusal."""
        self._openings: dict[Any, tuple[int, str, str]] = {}

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> ChatRenderer:
        """The same renderer with a copy of the tokenizer, for another thread."""
        return ChatRenderer(tokenizer, self.chat_format, as_learnt=self._as_learnt)

    def form(self, messages: Sequence[Message], tools: Tools | None = None) -> ChatForm:
        """The form in which the template renders every part of the conversation.

        Raises ChatRefused where there is none, with the template's words on the first form.
        """
        if any(m.reasoning_content for m in messages) or uses_tools(messages, tools):
            return self._find_form(messages, tools)[0]
        # Without tools and reasoning, the order of the roles decides.
        key = tuple(m.role for m in messages)
        found = self._forms.get(key)
        if isinstance(found, str):
            raise ChatRefused(REFUSES, found)
        if found is not None:
            return found
        remember = len(self._forms) < _MAX_FORMS
        try:
            form, by_roles = self._find_form(messages, tools)
        except ChatRefused as refused:
            if refused.reason == REFUSES and remember:
                self._forms[key] = refused.words
            raise
        if by_roles and remember:
            self._forms[key] = form
        return form

    def render(
        self,
        form: ChatForm,
        messages: Sequence[Message],
        tools: Tools | None = None,
        generation_prompt: bool = True,
    ) -> str:
        """The conversation as text; with `generation_prompt`, up to where the next answer begins.

        Raises ChatRefused with whatever the template raises.
        """
        turns = form.apply(messages, tools)
        if self.is_phi:
            turns = tools_as_text(reasoning_as_text(fold_system(turns)), None)
            text = "".join(f"{_PHI_ROLES[m.role]}: {m.content}\n" for m in turns)
            return text + "Output: " if generation_prompt else text
        try:
            text = self.tokenizer.apply_chat_template(
                as_dicts(turns),
                tools=None if form.text_tools or not tools else list(tools),
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program: it may raise anything
            kind = "" if type(error).__name__ == "TemplateError" else f"{type(error).__name__}: "
            raise ChatRefused(REFUSES, f"{kind}{error}") from error
        assert isinstance(text, str)
        return text

    def opening(
        self,
        form: ChatForm,
        messages: Sequence[Message],
        tools: Tools | None,
        prompt: str,
        thinks: bool,
    ) -> tuple[str, str]:
        """The text before an answer to `messages`, as the template writes it with the answer; and
        the white space that it writes between the answer and its end token.

        It differs from the generation prompt: Mistral's templates write a space before the answer,
        Qwen 3's an empty thought before an answer without one.

        Args:
            prompt: the generation prompt after these messages.
            thinks: whether the answer begins with a thought.
        """
        if self.is_phi:
            return prompt, ""
        last = messages[-1].role if messages else ""
        first = not any(m.role == "assistant" for m in messages)
        key = form, last, first, bool(tools), thinks
        if key not in self._openings:
            self._openings[key] = self._find_opening(form, messages, tools, prompt, thinks)
        drop, suffix, closing = self._openings[key]
        return prompt[: len(prompt) - drop] + suffix, closing

    @cached_property
    def has_tools(self) -> bool:
        """Whether the template renders tools, calls and results."""
        text = self._probe_tools
        return (
            text.count(_PROBE_CALL.name) > 1
            and "probe-value" in text
            and "probe-result" in text
            and "A probe." in text
        )

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes calls as a student does."""
        return self.has_tools and call_text(_PROBE_CALL) in self._probe_tools

    @cached_property
    def _probe_tools(self) -> str:
        if self.is_phi:
            return ""
        chat = [
            Message("user", "Hi."),
            Message("assistant", "", tool_calls=(_PROBE_CALL,)),
            Message("tool", "probe-result", name=_PROBE_CALL.name, tool_call_id=_PROBE_CALL.id),
        ]
        try:
            return self.render(PLAIN, chat, [_PROBE_TOOL])
        except ChatRefused:
            return ""

    @cached_property
    def has_reasoning(self) -> bool:
        """Whether the template renders the reasoning of the last turn."""
        return _MARK in self._probe_reasoning

    @cached_property
    def writes_reasoning(self) -> bool:
        """Whether the template writes reasoning as a student does."""
        return f"{THINK_START}{_MARK}{THINK_END}{_MARK_2}" in self._probe_reasoning

    @property
    def writes_as_learnt(self) -> bool:
        """Whether the template writes calls and reasoning as a student does."""
        return self.writes_calls and self.writes_reasoning

    @cached_property
    def _probe_reasoning(self) -> str:
        if self.is_phi:
            return ""
        chat = [Message("user", "Hi."), Message("assistant", _MARK_2, reasoning_content=_MARK)]
        try:
            return self.render(PLAIN, chat, generation_prompt=False)
        except ChatRefused:
            return ""

    def _find_form(self, messages: Sequence[Message], tools: Tools | None) -> tuple[ChatForm, bool]:
        """The first form that is rendered completely, and whether no other one lost a part."""
        refused: ChatRefused | None = None
        by_roles = True
        for form in self._candidates(messages, tools):
            try:
                text = self.render(form, messages, tools, generation_prompt=False)
            except ChatRefused as error:
                refused = refused or error
                continue
            turns = form.apply(messages, tools)
            dropped = missing_part(text, turns, None if form.text_tools else tools)
            if not dropped:
                return form, by_roles
            by_roles = False
            refused = refused or ChatRefused(DROPS, dropped)
        assert refused is not None
        raise refused

    def _candidates(self, messages: Sequence[Message], tools: Tools | None) -> Iterator[ChatForm]:
        """Forms, those that change the least first."""
        as_text = self._as_learnt and not self.writes_as_learnt
        text_tools = [False]
        if uses_tools(messages, tools):
            text_tools = [False, True] if self.has_tools and not as_text else [True]
        thinks = any(m.reasoning_content for m in messages)
        text_reasoning = thinks and (as_text or not self.has_reasoning)
        for one in text_tools:
            base = ChatForm(text_tools=one, text_reasoning=text_reasoning)
            turns = base.apply(messages, tools)
            system = {"system", "user"} <= {m.role for m in turns}
            folds = [False, True][: 1 + system]
            opens = [False, True][: 1 + (opening_turn(turns) is not None)]
            roles = [m.role for m in turns if m.role != "system"]
            joins = [False, True][: 1 + (("user", "user") in pairwise(roles))]
            for opening, join, fold in product(opens, joins, folds):
                yield replace(base, fold_system=fold, join_users=join, drop_opening=opening)

    def _find_opening(
        self,
        form: ChatForm,
        messages: Sequence[Message],
        tools: Tools | None,
        prompt: str,
        thinks: bool,
    ) -> tuple[int, str, str]:
        """(characters to drop from the generation prompt, text to add, space before the end)."""
        marks = Message("assistant", _MARK_2, reasoning_content=_MARK if thinks else None)
        try:
            text = self.render(form, [*messages, marks], tools, generation_prompt=False)
        except ChatRefused:
            return 0, "", ""
        before, found, after = text.partition(_MARK_2)
        if not found:
            return 0, "", ""
        rest = after.lstrip(" \n")
        ends = tuple(str(t) for t in self.tokenizer.all_special_tokens)
        closing = after[: len(after) - len(rest)] if rest.startswith(ends) else ""
        if thinks:
            start, thought, _ = before.partition(_MARK)
            if thought and not start.endswith(THINK_START):
                return 0, "", closing  # the template has a form of its own for reasoning
            before = start.removesuffix(THINK_START) if thought else before
        same = len(os.path.commonprefix([before, prompt]))  # noqa: RUF071
        drop, suffix = len(prompt) - same, before[same:]
        if max(drop, len(suffix)) > _MAX_OPENING:
            return 0, "", closing  # the template writes the turns before it in another way too
        return drop, suffix, closing


def render_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    chat_format: ChatFormat = "template",
    tools: Tools | None = None,
) -> str:
    """The conversation as text, up to where the next answer begins.

    Uses the tokenizer's chat template, or phi's "Instruct: ...\\nOutput: " where there is none.
    Raises ChatRefused where the template renders it in no form.
    """
    renderer = ChatRenderer(tokenizer, chat_format)
    try:
        form = renderer.form(messages, tools)
    except ChatRefused as refused:
        if refused.reason == REFUSES:
            raise
        form = PLAIN  # the template rewrites a turn, as Qwen 3's does with an earlier thought
    return renderer.render(form, messages, tools)


def encode_chat(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Message],
    chat_format: ChatFormat = "template",
    tools: Tools | None = None,
) -> list[int]:
    """Token ids of the prompt for the next answer.

    They begin with exactly one BOS where the tokenizer adds one: some templates write it
    themselves, others leave it to the tokenizer. Nothing is added at the end. A space at the end is
    left out: it belongs to the token of the answer's first word.
    """
    text = render_chat(tokenizer, messages, chat_format, tools).removesuffix(" ")
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    bos: Any = tokenizer.bos_token_id
    added = tokenizer.encode("", add_special_tokens=True)
    if bos is not None and added[:1] == [bos] and ids[:1] != [bos]:
        ids.insert(0, bos)
    return ids
