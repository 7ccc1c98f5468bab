"""Format the answers to a question as lines of text: the prompt, then each model's answer."""

from __future__ import annotations

import textwrap

from engine.events import QuestionAnswered
from engine.foreign_text import shown
from gladius_tui.event_lines import Layout

_INDENT = "    "


def answer_lines(event: QuestionAnswered, layout: Layout) -> list[str]:
    """The prompt and every answer in full; line breaks of an answer are kept."""
    prompt = textwrap.shorten(shown(event.prompt), layout.width - 4, placeholder=" …")
    lines = [layout.style(f"  > {prompt}", "dim")]
    for answer in event.answers:
        cut = "" if answer.complete else " (cut at the token limit)"
        lines.append(layout.style(f"  {answer.title}{cut}", "bold"))
        lines += text_lines(answer.text or "(an empty answer)", layout.width - len(_INDENT))
    return [*lines, layout.style(f"  {event.note}", "yellow")] if event.note else lines


def text_lines(text: str, width: int) -> list[str]:
    """An answer wrapped to `width` columns, indented. Models write control characters too."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        wrapped = textwrap.wrap(
            shown(paragraph), width, drop_whitespace=False, break_on_hyphens=False
        )
        lines += [f"{_INDENT}{line}" for line in wrapped or [""]]
    return lines
