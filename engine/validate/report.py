"""Owns the report on a model: its rows, the verdict that they add up to, and how it compares with
the report before. It measures nothing.

The verdict has two halves that never mix. The structure is `sound` when no structural check failed
and `broken` otherwise; that alone decides the exit code. The quality is told beside it, from the
quality rows that have a bound:

    good     every one is within its bound
    low      fewer than half of them are
    fair     in between
    unknown  none could be measured
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from engine.events import CheckDone
from engine.workspace import write_json

FORMAT = 1
Structure = Literal["sound", "broken"]
Quality = Literal["good", "fair", "low", "unknown"]

# A change of a number by less than this is noise: absolute for shares, relative for the others.
_NOISE = {"share": 0.02, "relative": 0.005}
_BETTER = {
    "bits_per_byte": ("lower", "relative"),
    "kl": ("lower", "relative"),
    "agreement": ("higher", "share"),
    "valid_json": ("higher", "share"),
    "valid_tool_calls": ("higher", "share"),
    "right_tool_calls": ("higher", "share"),
    "repetition": ("lower", "share"),
}
"""By the part of a row's name before the colon; what is not here (speeds) is not compared."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A check as the report keeps it; the fields are those of CheckDone."""

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
    """A text that the model wrote, in full."""

    check: str
    """Name of the row that it belongs to."""
    prompt: str
    text: str
    tokens: int
    ended: bool
    """Whether it came to its end by itself; False: it was cut."""


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Which model was looked at."""

    path: str
    title: str
    kind: Literal["model", "checkpoint", "gguf"]
    preset: str = ""
    step: int | None = None
    tokens_seen: int | None = None
    parameters: int = 0
    weights: str = ""
    """SHA-256 over the weight files' own: tells one state of a model from another."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    device: str = ""
    precision: str = ""
    threads: int = 0
    versions: dict[str, str] = {}


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A row whose number can be held against the former report's."""

    name: str
    title: str
    before: str
    after: str
    change: Literal["better", "worse", "same"]


class Former(msgspec.Struct, frozen=True, kw_only=True):
    """The report before this one, and what has changed since."""

    created: float
    same_weights: bool
    step: int | None
    structure: Structure
    quality: Quality
    changes: tuple[Change, ...] = ()


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """validation.json."""

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
    former: Former | None = None


def structure_of(rows: Iterable[Row | CheckDone]) -> Structure:
    """`broken` when a structural check failed."""
    failed = any(row.verdict == "fail" for row in rows if row.group == "structural")
    return "broken" if failed else "sound"


def quality_of(rows: Iterable[Row | CheckDone]) -> Quality:
    """What the quality rows with a bound add up to (the module's docstring has the rules)."""
    judged = [
        row.verdict == "pass"
        for row in rows
        if row.group == "quality" and row.bound and row.verdict != "skip"
    ]
    if not judged:
        return "unknown"
    if all(judged):
        return "good"
    return "low" if sum(judged) * 2 < len(judged) else "fair"


def verdict_text(rows: Sequence[Row | CheckDone]) -> str:
    """Both halves in a sentence."""
    failed = [row for row in rows if row.group == "structural" and row.verdict == "fail"]
    structure = "structurally sound"
    if failed:
        structure = f"structurally broken ({', '.join(row.title for row in failed)})"
    quality = quality_of(rows)
    if quality == "unknown":
        return f"{structure}, quality not measured"
    judged = [r for r in rows if r.group == "quality" and r.bound and r.verdict != "skip"]
    within = sum(row.verdict == "pass" for row in judged)
    return f"{structure}, quality {quality} ({within} of {len(judged)} measures within bounds)"


def compare(
    former: Report, rows: Sequence[Row | CheckDone], weights: str
) -> tuple[Former, CheckDone]:
    """The former report against these rows, and the row that says so."""
    before = {row.name: row for row in former.checks}
    changes = []
    for row in rows:
        old = before.get(row.name)
        kind = _BETTER.get(row.name.partition(":")[0])
        if kind is None or old is None or row.number is None or old.number is None:
            continue
        if "skip" in (row.verdict, old.verdict):
            continue
        direction, noise = kind
        gain = row.number - old.number if direction == "higher" else old.number - row.number
        least = _NOISE[noise] * (abs(old.number) if noise == "relative" else 1.0)
        change = "same" if abs(gain) <= least else "better" if gain > 0 else "worse"
        changes.append(
            Change(name=row.name, title=row.title, before=old.value, after=row.value, change=change)
        )
    broke = [
        row.title
        for row in rows
        if row.group == "structural"
        and row.verdict == "fail"
        and row.name in before
        and before[row.name].verdict != "fail"
    ]
    same = bool(weights) and former.model.weights == weights
    summary = Former(
        created=former.created,
        same_weights=same,
        step=former.model.step,
        structure=former.structure,
        quality=former.quality,
        changes=tuple(changes),
    )
    return summary, _comparison_row(summary, broke)


def _comparison_row(former: Former, broke: Sequence[str]) -> CheckDone:
    counts = {
        kind: sum(c.change == kind for c in former.changes) for kind in ("better", "worse", "same")
    }
    value = f"{counts['better']} better, {counts['worse']} worse, {counts['same']} the same"
    if broke:
        value += f"; no longer sound: {', '.join(broke)}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(former.created))
    step = "" if former.step is None else f" of step {former.step:,}"
    which = "the same weights" if former.same_weights else f"another state of the model{step}"
    moved = [c for c in former.changes if c.change != "same"]
    return CheckDone(
        group="quality",
        name="comparison",
        title="against the former report",
        value=value,
        bound="",
        verdict="warn" if counts["worse"] > counts["better"] or broke else "pass",
        meaning=f"The former report is of {when}, on {which}; differences within noise are none.",
        detail="\n".join(f"{c.title}: {c.before} → {c.after} ({c.change})" for c in moved),
    )


def read_report(path: Path) -> Report | None:
    """A former report; None where there is none that can be read."""
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except (OSError, msgspec.MsgspecError):
        return None
    return report if report.format == FORMAT else None


def write_report(path: Path, report: Report) -> None:
    """Replace the report durably; OSError when it can't be written."""
    write_json(path, report)
