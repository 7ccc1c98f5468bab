"""Owns how a check becomes a row, and what becomes of one that breaks: a structural check that
can't be made has failed, a measure that can't be taken is skipped with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.run.job import JobStopped

Group = Literal["structural", "quality"]


def row(
    group: Group,
    name: str,
    title: str,
    ok: bool,
    value: str,
    meaning: str,
    *,
    bound: str = "",
    detail: str = "",
    number: float | None = None,
    warn: bool = False,
) -> CheckDone:
    """A finished check. Quality never fails, it warns; `warn` softens a structural one too."""
    worse = "warn" if warn or group == "quality" else "fail"
    return CheckDone(
        group=group,
        name=name,
        title=title,
        value=value,
        bound=bound,
        verdict="pass" if ok else worse,
        meaning=meaning,
        detail=detail,
        number=number,
    )


def skipped(group: Group, name: str, title: str, why: str) -> CheckDone:
    """A check that was not made, and why."""
    return CheckDone(
        group=group, name=name, title=title, value="", bound="", verdict="skip", meaning=why
    )


def guarded(
    group: Group, name: str, title: str, check: Callable[[], CheckDone | Iterable[CheckDone]]
) -> Iterator[CheckDone]:
    """The rows of `check`; an error in it becomes a row as well. Being asked to stop passes on."""
    try:
        made = check()
        if isinstance(made, CheckDone):
            yield made
        else:
            yield from made
    except JobStopped:
        raise
    except Exception as error:  # whatever a broken file makes of a library
        why = short(error)
        if group == "quality":
            yield skipped(group, name, title, f"It could not be measured: {why}")
        else:
            yield row(group, name, title, False, why, "The check itself could not be made.")


def short(error: BaseException, most: int = 240) -> str:
    """An error in one line; ours need no name."""
    name = "" if isinstance(error, GladiusError) else f"{type(error).__name__}: "
    text = " ".join(f"{name}{error}".split())
    return text if len(text) <= most else text[: most - 1] + "…"


def listed(findings: Iterable[str], most: int = 12) -> str:
    """Findings a line each, and how many more there are."""
    lines = list(findings)
    if len(lines) > most:
        lines = [*lines[:most], f"… and {len(lines) - most} more"]
    return "\n".join(lines)
