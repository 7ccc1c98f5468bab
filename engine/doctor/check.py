"""The result of one doctor check: a row of its report."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.sizing import GIB

Status = Literal["ok", "note", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the report; `doctor --json` prints the same fields."""

    topic: str
    """The subject of the check: `gpu`, `disk`, the name of an expert."""
    status: Status
    figure: str
    """The finding, with its value and unit."""
    remedy: str = ""
    """The remedy; empty if none is needed."""


def gib(count: float) -> str:
    """Bytes as text in GiB: `1.5 GiB`."""
    return f"{count / GIB:.1f} GiB"
