"""Write Ollama's Modelfile next to a GGUF file, with the chat template as a Go template.

A Jinja chat template that only puts text before and after each message is converted: the text is
found by rendering the template, and checked on another conversation. Other templates are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from engine.export.tokenizer import GgufTokenizer
from engine.workspace import write_bytes

_ROLES = ("system", "user", "assistant")
_PLACEHOLDER = "\u2402gladius\u2403"

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
        return chat_format if render(probe, True) == format_chat(chat_format, probe) else None
    except Exception:  # a template may raise anything for an unknown role
        return None


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
    """The format as a Go template; empty where its text contains a Go delimiter."""
    texts = [
        chat_format.generation_prompt,
        *(text for pair in chat_format.around.values() for text in pair),
    ]
    if any("{{" in text or '"""' in text or "}}" in text for text in texts):
        return ""
    branches = []
    for number, (role, (before, after)) in enumerate(chat_format.around.items()):
        keyword = "if" if number == 0 else "else if"
        branches.append(f'{{{{ {keyword} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
    body = "".join(branches) + "{{ end }}"
    return "{{ range .Messages }}" + body + "{{ end }}" + chat_format.generation_prompt
