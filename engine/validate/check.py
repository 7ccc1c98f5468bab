"""Checks: run one, and turn its result or its exception into rows of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.run.job import JobStopped
from engine.validate.context import CheckContext

Group = Literal["structural", "quality"]


@dataclass(frozen=True)
class Check:
    """A check of a table of checks.

    Attributes:
        group: structural checks decide the exit code, quality checks only inform.
        name: the stable key in validation.json.
        title: the name that users see.
        run: makes the check; returns or yields rows.
        needs: what must be available. "files" checks are left out when the model's file cannot be
            read; "model" checks are skipped when the model cannot be loaded.
    """

    group: Group
    name: str
    title: str
    run: Callable[[CheckContext], CheckDone | Iterable[CheckDone]]
    needs: Literal["nothing", "files", "model"] = "model"

    def skipped(self, reason: str) -> CheckDone:
        """The row of this check when it is not made."""
        return skipped_row(self.group, self.name, self.title, reason)


def structural_row(
    name: str,
    title: str,
    *,
    passed: bool,
    value: str,
    meaning: str,
    bound: str = "",
    detail: str = "",
    number: float | None = None,
    warn_only: bool = False,
) -> CheckDone:
    """A structural row; it warns instead of failing with `warn_only`."""
    return CheckDone(
        group="structural",
        name=name,
        title=title,
        value=value,
        bound=bound,
        verdict="pass" if passed else "warn" if warn_only else "fail",
        meaning=meaning,
        detail=detail,
        number=number,
    )


def quality_row(
    name: str,
    title: str,
    *,
    value: str,
    meaning: str,
    passed: bool = True,
    bound: str = "",
    detail: str = "",
    number: float | None = None,
) -> CheckDone:
    """A quality row; outside its bound it warns. Without a bound it is information only."""
    return CheckDone(
        group="quality",
        name=name,
        title=title,
        value=value,
        bound=bound,
        verdict="pass" if passed else "warn",
        meaning=meaning,
        detail=detail,
        number=number,
    )


def skipped_row(group: Group, name: str, title: str, reason: str) -> CheckDone:
    """A check that was not made, and the reason."""
    return CheckDone(
        group=group, name=name, title=title, value="", bound="", verdict="skip", meaning=reason
    )


def run_check(check: Check, context: CheckContext) -> Iterator[CheckDone]:
    """The rows of a check. An exception becomes a failed (structural) or skipped (quality) row;
    JobStopped is raised."""
    try:
        result = check.run(context)
        if isinstance(result, CheckDone):
            yield result
        else:
            yield from result
    except JobStopped:
        raise
    except Exception as error:  # a broken file can make a library raise anything
        reason = one_line(error)
        if check.group == "quality":
            yield check.skipped(f"Not measured: {reason}")
        else:
            yield structural_row(
                check.name,
                check.title,
                passed=False,
                value=reason,
                meaning="The check stopped with an error.",
            )


def one_line(error: BaseException, limit: int = 240) -> str:
    """An error in one line, with its type unless it is a GladiusError."""
    name = "" if isinstance(error, GladiusError) else f"{type(error).__name__}: "
    text = " ".join(f"{name}{error}".split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def one_per_line(findings: Iterable[str], limit: int = 12) -> str:
    """Findings, one per line; beyond `limit` only how many more there are."""
    lines = list(findings)
    if len(lines) > limit:
        lines = [*lines[:limit], f"… and {len(lines) - limit} more"]
    return "\n".join(lines)
