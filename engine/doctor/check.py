"""Owns what a check says: one row of the doctor's report."""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.sizing import GIB

Status = Literal["ok", "note", "warn", "fail"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One row: what was looked at, how it stands, the figure, and what helps."""

    topic: str
    status: Status
    figure: str
    remedy: str = ""


def gib(count: float) -> str:
    """Bytes in GiB, as the checks tell them."""
    return f"{count / GIB:.1f} GiB"
