"""Owns the Modelfile: what Ollama needs beside a GGUF file, its chat template above all.

Ollama's templates are Go's, not Jinja. Where a template only puts something before and after each
message, what it puts there is found by rendering it, and checked on another conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from engine.export.tokenizer import GgufTokenizer
from engine.workspace import write_bytes

_ROLES = ("system", "user", "assistant")
_MARK = "\u2402gladius\u2403"


@dataclass(frozen=True)
class Modelfile:
    """What was written."""

    path: Path
    template: str
    """In Go's words; empty where the model has none, or one that can't be put so."""
    why: str = ""


def write_modelfile(gguf: Path, folder: Path, tokenizer: GgufTokenizer) -> Modelfile:
    """Write `Modelfile` beside the GGUF file."""
    path = gguf.with_name("Modelfile")
    template, why = "", "the model has no chat template"
    if tokenizer.chat_template:
        turns = turn_format(PreTrainedTokenizerFast.from_pretrained(folder))
        template = go_template(turns) if turns else ""
        why = "" if template else "its chat template does more than frame each message"
    lines = [
        f"# ollama create {gguf.stem} -f Modelfile && ollama run {gguf.stem}",
        f"FROM ./{gguf.name}",
    ]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append(f"# No TEMPLATE: {why}.")
    if "eos" in tokenizer.special:
        end = tokenizer.tokens[tokenizer.special["eos"]].replace('"', '\\"')
        lines.append(f'PARAMETER stop "{end}"')
    write_bytes(path, ("\n".join(lines) + "\n").encode())
    return Modelfile(path, template, why)


@dataclass(frozen=True)
class Turns:
    """A chat format that frames messages: what stands around each, and what begins an answer."""

    around: dict[str, tuple[str, str]]
    answer: str
    begin: str = ""
    """What stands before the first message (a beginning-of-text token is left to the runtime)."""


def turn_format(tokenizer: PreTrainedTokenizerFast) -> Turns | None:
    """How the tokenizer's chat template frames messages; None where it does anything else."""

    def render(messages: list[dict[str, str]], answer: bool = False) -> str:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
        )

    try:
        bos = str(tokenizer.bos_token or "")
        empty = render([{"role": "user", "content": _MARK}])
        begin = bos if bos and empty.startswith(bos) and not _is_frame(render, bos) else ""
        around: dict[str, tuple[str, str]] = {}
        former: list[dict[str, str]] = []
        for role in _ROLES:
            messages = [*former, {"role": role, "content": _MARK}]
            added = render(messages).removeprefix(render(former) if former else begin)
            before, mark, after = added.partition(_MARK)
            if not mark:
                return None
            around[role] = (before, after)
            former = [{**m, "content": "x"} for m in messages]
        answer = render(former, True).removeprefix(render(former))
        turns = Turns(around, answer, begin)
        probe = [
            {"role": "user", "content": "How are you?"},
            {"role": "assistant", "content": " Well.\n"},
            {"role": "user", "content": "{}"},
        ]
        return turns if render(probe, True) == framed(turns, probe) else None
    except Exception:  # a template may raise whatever it likes for roles it doesn't know
        return None


def _is_frame(render, bos: str) -> bool:
    """Whether the beginning token stands before every message, not before the first alone."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
    return render(messages).count(bos) > 1


def framed(turns: Turns, messages: list[dict[str, str]]) -> str:
    """A conversation with the beginning of an answer, as the frames put it."""
    parts = [turns.begin]
    for message in messages:
        before, after = turns.around[message["role"]]
        parts.append(before + message["content"] + after)
    return "".join(parts) + turns.answer


def go_template(turns: Turns) -> str:
    """The frames as a template of Go's; empty where their text can't stand in one."""
    texts = [turns.answer, *(text for pair in turns.around.values() for text in pair)]
    if any("{{" in text or '"""' in text or "}}" in text for text in texts):
        return ""
    branches = []
    for number, (role, (before, after)) in enumerate(turns.around.items()):
        word = "if" if number == 0 else "else if"
        branches.append(f'{{{{ {word} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}')
    body = "".join(branches) + "{{ end }}"
    return "{{ range .Messages }}" + body + "{{ end }}" + turns.answer
