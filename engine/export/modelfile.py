"""Write Ollama's Modelfile next to a GGUF file, with the chat template as a Go template.

A Jinja chat template that only puts text before and after each message is converted: the text is
found by rendering the template, and checked on other conversations. Other templates are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from engine.chat import ChatRefused, ChatRenderer
from engine.chat_forms import PLAIN
from engine.chat_tools import (
    CALL_END,
    CALL_START,
    RESULT_END,
    RESULT_START,
    THINK_END,
    THINK_START,
    TOOLS_AFTER,
    TOOLS_BEFORE,
    reasoning_as_text,
    tools_as_text,
)
from engine.export.tokenizer import GgufTokenizer
from engine.text.examples import Message, ToolCall
from engine.workspace import write_bytes

_ROLES = ("system", "user", "assistant")
_PLACEHOLDER = "\u2402gladius\u2403"

_GO_CONTENT = "{{ .Content }}"
_GO_TOOLS = (
    "{{ if .System }}{{ .System }}\n\n{{ end }}"
    + TOOLS_BEFORE
    + '{{ range .Tools }}\n{"type": "function", "function": {{ .Function }}}{{ end }}'
    + TOOLS_AFTER
)
_GO_ANSWER = (
    "{{ if .Thinking }}" + THINK_START + "{{ .Thinking }}" + THINK_END + "{{ end }}"
    "{{ $content := .Content }}{{ $content }}{{ range $n, $call := .ToolCalls }}"
    "{{ if or $content $n }}\n{{ end }}"
    + CALL_START
    + '{"name": "{{ $call.Function.Name }}", "arguments": {{ $call.Function.Arguments }}}'
    + CALL_END
    + "{{ end }}"
)

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile that was written."""

    path: Path
    template: str
    """The Go template; empty where the chat template is missing or cannot be converted."""
    reason: str = ""
    """Why there is no template."""


@dataclass(frozen=True)
class ChatFormat:
    """A chat format that puts fixed text before and after each message."""

    around: dict[str, tuple[str, str]]
    """(before, after) by role."""
    generation_prompt: str
    """Opens the assistant's answer."""
    prefix: str = ""
    """Before the first message: a beginning-of-text token, which Ollama adds by itself."""
    has_tools: bool = False
    """Whether tools, calls, results and reasoning are rendered in the form of `chat_tools`."""


def write_modelfile(gguf: Path, folder: Path, tokenizer: GgufTokenizer) -> Modelfile:
    """Write `Modelfile` next to the GGUF file. Raises OSError."""
    path = gguf.with_name("Modelfile")
    template, reason = "", "the model has no chat template"
    if tokenizer.chat_template:
        chat_format = detect_chat_format(PreTrainedTokenizerFast.from_pretrained(folder))
        template = go_template(chat_format) if chat_format else ""
        reason = "" if template else "the chat template does more than wrap each message"
    lines = [
        f"# ollama create {gguf.stem} -f Modelfile && ollama run {gguf.stem}",
        f"FROM ./{gguf.name}",
    ]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(f"# No TEMPLATE: {reason}.")
    if "eos" in tokenizer.special:
        stop = tokenizer.tokens[tokenizer.special["eos"]].replace('"', '\\"')
        lines.append(f'PARAMETER stop "{stop}"')
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return Modelfile(path, template, reason)


def detect_chat_format(tokenizer: PreTrainedTokenizerFast) -> ChatFormat | None:
    """The format of the tokenizer's chat template; None where it does more than wrap messages."""

    def render(messages: Messages, generation_prompt: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=generation_prompt
            )
        )

    try:
        bos = str(tokenizer.bos_token or "")
        first = render([{"role": "user", "content": _PLACEHOLDER}])
        prefix = bos if bos and first.startswith(bos) and not _repeats(render, bos) else ""
        around: dict[str, tuple[str, str]] = {}
        previous: Messages = []
        for role in _ROLES:
            messages = [*previous, {"role": role, "content": _PLACEHOLDER}]
            added = render(messages).removeprefix(render(previous) if previous else prefix)
            before, placeholder, after = added.partition(_PLACEHOLDER)
            if not placeholder:
                return None
            around[role] = (before, after)
            previous = [{**message, "content": "x"} for message in messages]
        generation_prompt = render(previous, True).removeprefix(render(previous))
        chat_format = ChatFormat(around, generation_prompt, prefix)
        probe = [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": " Well.\n"},
            {"role": "user", "content": "{}"},
        ]
        if render(probe, True) != format_chat(chat_format, probe):
            return None
        return replace(chat_format, has_tools=_renders_tools(tokenizer, chat_format))
    except Exception:  # a template may raise anything for an unknown role
        return None


def _renders_tools(tokenizer: PreTrainedTokenizerFast, chat_format: ChatFormat) -> bool:
    """Whether the template puts the same text around each message of a conversation with tools."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    calls = ToolCall("f", {"x": "é"}, "call00001"), ToolCall("f", {}, "call00002")
    probe = [
        Message("system", "Be brief."),
        Message("user", "How?"),
        Message("assistant", "So.", "A thought.", calls),
        Message("tool", "1", name="f", tool_call_id="call00001"),
        Message("assistant", "", tool_calls=calls[:1]),
        Message("tool", "2", name="f", tool_call_id="call00001"),
    ]
    as_text = reasoning_as_text(tools_as_text(probe, [tool]))
    expected = format_chat(chat_format, [{"role": m.role, "content": m.content} for m in as_text])
    try:
        return ChatRenderer(tokenizer).render(PLAIN, probe, [tool]) == expected
    except ChatRefused:
        return False


def _repeats(render: Callable[[Messages], str], bos: str) -> bool:
    """Whether the template puts the beginning token before every message, not only the first."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    return render(messages).count(bos) > 1


def format_chat(chat_format: ChatFormat, messages: Messages) -> str:
    """A conversation in this format, with the generation prompt."""
    parts = [chat_format.prefix]
    for message in messages:
        before, after = chat_format.around[message["role"]]
        parts.append(before + message["content"] + after)
    return "".join(parts) + chat_format.generation_prompt


def go_template(chat_format: ChatFormat) -> str:
    """The format as a Go template; empty where its text contains a Go delimiter.

    Ollama writes the JSON of tools and arguments without spaces after `,` and `:`, and each result
    in a user turn of its own; llama.cpp reads the Jinja template in the GGUF file instead.
    """
    texts = [
        chat_format.generation_prompt,
        *(text for pair in chat_format.around.values() for text in pair),
    ]
    if any("{{" in text or '"""' in text or "}}" in text for text in texts):
        return ""
    branches = {
        role: before
        + (_GO_ANSWER if role == "assistant" and chat_format.has_tools else _GO_CONTENT)
        + after
        for role, (before, after) in chat_format.around.items()
    }
    opening = ""
    if chat_format.has_tools:
        before, after = chat_format.around["system"]
        opening = "{{ if .Tools }}" + before + _GO_TOOLS + after + "{{ end }}"
        # The system turn stands before the list of tools, in one turn.
        branches["system"] = "{{ if not $.Tools }}" + branches["system"] + "{{ end }}"
        before, after = chat_format.around["user"]
        branches["tool"] = before + RESULT_START + _GO_CONTENT + RESULT_END + after
    body = "".join(
        f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{text}'
        for number, (role, text) in enumerate(branches.items())
    )
    messages = "{{ range .Messages }}" + body + "{{ end }}{{ end }}"
    return opening + messages + chat_format.generation_prompt
