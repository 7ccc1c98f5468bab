"""The result of a prompt generator: a prompt without id and capability."""

from __future__ import annotations

from typing import NamedTuple

from engine.prompts.prompt import AnyCheck


class Draft(NamedTuple):
    """A generated prompt; `generate` completes it to a `Prompt`."""

    family: str
    """The template that it was made from; variants of one template share a family."""
    user: str
    check: AnyCheck | None = None
    system: str = ""
    then: tuple[str, ...] = ()
