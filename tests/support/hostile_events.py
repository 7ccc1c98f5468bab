"""Events of every type whose texts hold what a terminal or a markup parser would obey."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from engine.events import AnyEvent, Job, PhaseStarted, RunEnded, RunStarted

HOSTILE = "a\x1b[31m\x1b]0;x\x07[/] [b]\x9b2J\u202etxt.exe\u200b\u2066 \r\n\x00\udcff[/b"
"""ESC, OSC and C1 sequences, unbalanced markup, bidi and zero-width marks, a byte not UTF-8."""


def is_clean(text: str) -> bool:
    """Whether nothing in the text of several lines is obeyed by a terminal."""
    return all(line.isprintable() for line in text.split("\n"))


def hostile_events(text: str = HOSTILE, job: Job = "train") -> Iterator[AnyEvent]:
    """One event of every type, with `text` in each of its texts, in an order that a run has."""
    kinds = sorted(
        typing.get_args(AnyEvent),
        key=lambda kind: (kind is not RunStarted, kind is not PhaseStarted, kind is RunEnded),
    )
    for number, kind in enumerate(kinds, 1):
        event = _filled(kind, text)
        assert isinstance(event, AnyEvent)
        changes: dict[str, Any] = {"seq": number, "step": number, "time": 1.7e9 + number}
        if isinstance(event, RunStarted):
            changes |= {"job": job, "config": {text: text}, "max_steps": 99}
        yield msgspec.structs.replace(event, **changes)


def _filled(annotation: Any, text: str) -> Any:
    origin = typing.get_origin(annotation)
    if annotation is str:
        return text
    if annotation in (int, float):
        return annotation(1)
    if annotation is bool:
        return True
    if annotation is dict or origin is dict:
        return {text: text}
    if origin is typing.Literal:
        return typing.get_args(annotation)[0]
    if origin in (types.UnionType, typing.Union):
        return _filled(typing.get_args(annotation)[0], text)
    if origin is tuple:
        return (_filled(typing.get_args(annotation)[0], text),)
    fields = msgspec.structs.fields(annotation)
    index = {"follows": 0, "probe": 0}
    values = {field.name: _filled(field.type, text) for field in fields}
    return annotation(**values | {name: n for name, n in index.items() if name in values})
