"""Owns what every generator hands over: a drafted prompt, not yet numbered."""

from __future__ import annotations

from typing import NamedTuple

from engine.prompts.prompt import AnyCheck


class Draft(NamedTuple):
    """A prompt as a generator makes it."""

    family: str
    """The template it comes from: what it shares with its other variants."""
    user: str
    check: AnyCheck | None = None
    system: str = ""
    then: tuple[str, ...] = ()
