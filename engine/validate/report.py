"""validation.json: the report's structs, the verdict, and the comparison with the previous report.

The verdict has two independent halves. The structure is `sound` when no structural check failed and
`broken` otherwise; it alone decides the exit code. The quality follows from the quality rows that
have a bound:

    good     all are within their bounds
    low      fewer than half are
    fair     in between
    unknown  none could be measured
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from engine import small_files
from engine.events import CheckDone
from engine.workspace import write_json

FORMAT = 1
Structure = Literal["sound", "broken"]
Quality = Literal["good", "fair", "low", "unknown"]

_NOISE = {"share": 0.02, "relative": 0.005}
"""Smaller changes are noise: absolute for shares, relative for other numbers."""
COMPARED_METRICS = {
    "bits_per_byte": ("lower", "relative"),
    "kl": ("lower", "relative"),
    "agreement": ("higher", "share"),
    "valid_json": ("higher", "share"),
    "valid_tool_calls": ("higher", "share"),
    "right_tool_calls": ("higher", "share"),
    "repetition": ("lower", "share"),
}
"""(better direction, kind of noise) by the part of a row's name before the colon. Other rows (such
as speeds) are not compared with the previous report."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A check in the report; the fields are those of CheckDone."""

    group: Literal["structural", "quality"]
    name: str
    title: str
    value: str
    bound: str
    verdict: Literal["pass", "warn", "fail", "skip"]
    meaning: str
    detail: str = ""
    number: float | None = None
    former: str = ""

    @classmethod
    def of(cls, event: CheckDone) -> Row:
        return cls(**{name: getattr(event, name) for name in cls.__struct_fields__})


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """An answer of the model, in full."""

    check: str
    """Name of the row that it belongs to."""
    prompt: str
    text: str
    tokens: int
    ended: bool
    """Whether the model ended the answer; False: it was cut off at the limit."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The model that was validated."""

    path: str
    title: str
    kind: Literal["model", "checkpoint", "gguf"]
    preset: str = ""
    step: int | None = None
    tokens_seen: int | None = None
    parameters: int = 0
    weights: str = ""
    """SHA-256 over the digests of the weight files."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine on which the model was validated."""

    device: str = ""
    precision: str = ""
    threads: int = 0
    versions: dict[str, str] = {}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A metric that is in the previous report as well."""

    name: str
    title: str
    before: str
    after: str
    change: Literal["better", "worse", "same"]


class PreviousReport(msgspec.Struct, frozen=True, kw_only=True):
    """A summary of the previous report, and what has changed since."""

    created: float
    same_weights: bool
    step: int | None
    structure: Structure
    quality: Quality
    changes: tuple[Change, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of validation.json."""

    format: int = FORMAT
    created: float
    """Unix time in seconds."""
    seconds: float
    structure: Structure
    quality: Quality
    verdict: str
    model: ModelFacts
    machine: Machine
    checks: tuple[Row, ...]
    generations: tuple[Generation, ...] = ()
    previous: PreviousReport | None = msgspec.field(name="former", default=None)


def structure_of(rows: Iterable[Row | CheckDone]) -> Structure:
    """`broken` when a structural check failed."""
    failed = any(row.verdict == "fail" for row in rows if row.group == "structural")
    return "broken" if failed else "sound"


def quality_of(rows: Iterable[Row | CheckDone]) -> Quality:
    """The quality half of the verdict; see the module's docstring."""
    within = [row.verdict == "pass" for row in _judged(rows)]
    if not within:
        return "unknown"
    if all(within):
        return "good"
    return "low" if sum(within) * 2 < len(within) else "fair"


def verdict_text(rows: Sequence[Row | CheckDone]) -> str:
    """Both halves of the verdict in one sentence."""
    failed = [row for row in rows if row.group == "structural" and row.verdict == "fail"]
    structure = "structurally sound"
    if failed:
        structure = f"structurally broken ({', '.join(row.title for row in failed)})"
    quality = quality_of(rows)
    if quality == "unknown":
        return f"{structure}, quality not measured"
    judged = _judged(rows)
    within = sum(row.verdict == "pass" for row in judged)
    return f"{structure}, quality {quality} ({within} of {len(judged)} metrics within bounds)"


def _judged(rows: Iterable[Row | CheckDone]) -> list[Row | CheckDone]:
    """The quality rows that count in the verdict."""
    return [r for r in rows if r.group == "quality" and r.bound and r.verdict != "skip"]


def compare(
    previous: Report, rows: Sequence[Row | CheckDone], weights: str
) -> tuple[PreviousReport, CheckDone]:
    """Compare rows with the previous report; returns its summary and the row about it.

    weights: the digest of the weights that the rows are about (`ModelFacts.weights`).
    """
    before = {row.name: row for row in previous.checks}
    changes = [change for row in rows if (change := _change(before.get(row.name), row)) is not None]
    newly_failed = [
        row.title
        for row in rows
        if row.group == "structural"
        and row.verdict == "fail"
        and row.name in before
        and before[row.name].verdict != "fail"
    ]
    summary = PreviousReport(
        created=previous.created,
        same_weights=bool(weights) and previous.model.weights == weights,
        step=previous.model.step,
        structure=previous.structure,
        quality=previous.quality,
        changes=tuple(changes),
    )
    return summary, _comparison_row(summary, newly_failed)


def _change(old: Row | None, new: Row | CheckDone) -> Change | None:
    """Change of a metric; None where it is not compared or was not measured both times."""
    metric = COMPARED_METRICS.get(new.name.partition(":")[0])
    if metric is None or old is None or new.number is None or old.number is None:
        return None
    if "skip" in (new.verdict, old.verdict):
        return None
    direction, noise = metric
    gain = new.number - old.number if direction == "higher" else old.number - new.number
    threshold = _NOISE[noise] * (abs(old.number) if noise == "relative" else 1.0)
    return Change(
        name=new.name,
        title=new.title,
        before=old.value,
        after=new.value,
        change="same" if abs(gain) <= threshold else "better" if gain > 0 else "worse",
    )


def _comparison_row(previous: PreviousReport, newly_failed: Sequence[str]) -> CheckDone:
    better, worse, same = (
        sum(change.change == kind for change in previous.changes)
        for kind in ("better", "worse", "same")
    )
    value = f"{better} better, {worse} worse, {same} unchanged"
    if newly_failed:
        value += f"; newly failed: {', '.join(newly_failed)}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(previous.created))
    step = "" if previous.step is None else f" (step {previous.step:,})"
    weights = "the same weights" if previous.same_weights else f"different weights{step}"
    moved = [change for change in previous.changes if change.change != "same"]
    return CheckDone(
        group="quality",
        name="comparison",
        title="previous report",
        value=value,
        bound="",
        verdict="warn" if worse > better or newly_failed else "pass",
        meaning=f"The previous report is from {when}, for {weights}; changes within noise count as "
        "unchanged.",
        detail="\n".join(f"{c.title}: {c.before} → {c.after} ({c.change})" for c in moved),
    )


def read_report(path: Path) -> Report | None:
    """A report; None where there is none that can be read."""
    try:
        report = small_files.read_json(path, Report)
    except (OSError, small_files.Damaged):
        return None
    return report if report.format == FORMAT else None


def write_report(path: Path, report: Report) -> None:
    """Replace the report durably. Raises OSError."""
    write_json(path, report)
