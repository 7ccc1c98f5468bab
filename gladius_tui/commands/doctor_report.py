"""The report of `doctor`: a row for each check, a table of tokenizers, a verdict."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from engine.doctor.check import Check
from engine.doctor.experts import alignment_quality
from engine.events import TokenizersAudited
from engine.foreign_text import shown, shown_values
from gladius_tui.format import number, percent
from gladius_tui.terminal import paint, print_lines, use_colour

_MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
_GRADES = {"good": "green", "fair": "yellow", "poor": "red"}
_TOPIC_WIDTH = 16
_MAX_WIDTH = 100
_COLUMNS = (
    ("tokens", "share of the student's tokens that the expert has too, byte for byte"),
    ("aligned", "share of positions where both tokens begin at the same byte"),
    ("inside", "positions inside an expert's token: projected up to the end of that token"),
    ("crossing", "positions where the student's token ends after the expert's token"),
    ("skipped", "blocks of text on which the tokens can't be aligned"),
    ("weight", "mean weight of the expert's distribution in the loss, at most 1.00"),
    ("residual", "probability mass for which the student has no token"),
    ("grade", "good, fair or poor: by the weight where it is known, else by aligned"),
)
"""The columns of the tokenizer table and what they mean."""


def print_report(
    preset: str,
    checks: Sequence[Check],
    audits: Sequence[TokenizersAudited],
    problem: str,
    *,
    quiet: bool = False,
) -> None:
    """Print the report on standard output, as wide as the terminal (at most 100 columns; 80 without
    a terminal). `quiet`: only warnings, failures and the verdict."""
    width = min(_MAX_WIDTH, shutil.get_terminal_size((80, 24)).columns)
    print_lines(
        report_lines(
            preset,
            [check for check in checks if not quiet or check.status in ("warn", "fail")],
            () if quiet else audits,
            "" if quiet else problem,
            width=width,
            colour=use_colour(sys.stdout),
        ),
        painted=True,
    )


def report_lines(
    preset: str,
    checks: Sequence[Check],
    audits: Sequence[TokenizersAudited],
    problem: str,
    *,
    width: int = 80,
    colour: bool = False,
) -> list[str]:
    """The report as lines of at most `width` columns."""
    lines = [line for check in checks for line in _check_lines(shown_values(check), width, colour)]
    audits, problem = shown_values(audits), shown(problem)
    if audits or problem:
        lines += ["", *_tokenizer_lines(audits, problem, width, colour)]
    return [*lines, "", *_verdict_lines(preset, checks, width, colour)]


def _check_lines(check: Check, width: int, colour: bool) -> list[str]:
    mark, style = _MARKS[check.status]
    indent = " " * (_TOPIC_WIDTH + 3)
    figure = _wrap(check.figure, width - len(indent)) or [""]
    lines = [f"{paint(mark, style, colour)} {check.topic:<{_TOPIC_WIDTH}} {figure[0]}"]
    lines += [indent + line for line in figure[1:]]
    if check.remedy:
        remedy = _wrap(check.remedy, width - len(indent) - 2)
        lines += [f"{indent}{'→' if n == 0 else ' '} {line}" for n, line in enumerate(remedy)]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    """The text in lines; commands and URLs stay whole, so that they can be copied."""
    return textwrap.wrap(text, max(width, 24), break_long_words=False, break_on_hyphens=False)


def _tokenizer_lines(
    audits: Sequence[TokenizersAudited], problem: str, width: int, colour: bool
) -> list[str]:
    lines = [paint("tokenizers: how well each expert's tokens fit the student's", "bold", colour)]
    student = next((audit.student for audit in audits if audit.student), "")
    if student:
        lines += _wrap(f"student's tokenizer: {student}", width)
    if problem:
        lines += [f"  {line}" for line in _wrap(problem, width - 2)]
    done = [audit for audit in audits if not audit.problem]
    if done:
        lines += _table_lines(done, colour)
        lines += [paint(line, "dim", colour) for line in _legend_lines(width)]
        lines += _kind_lines(done, width, colour)
        if any(audit.mean_weight is None for audit in done):
            note = "weight and residual are known after running the experts: doctor --listen"
            lines += [paint(line, "dim", colour) for line in _wrap(note, width)]
    for audit in audits:
        if audit.problem:
            lines += [f"  {line}" for line in _wrap(f"{audit.expert}: {audit.problem}", width)]
    return lines


def _table_lines(audits: Sequence[TokenizersAudited], colour: bool) -> list[str]:
    header = ("expert", *(name for name, _ in _COLUMNS))
    rows = [header, *(_row(audit) for audit in audits)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        line = "  " + "  ".join(cells)
        if row is header:
            lines.append(paint(line, "dim", colour))
        else:
            grade = row[-1]
            lines.append(line.removesuffix(grade) + paint(grade, _GRADES[grade], colour))
    return lines


def _row(audit: TokenizersAudited) -> tuple[str, ...]:
    return (
        audit.expert,
        percent(audit.reachable),
        percent(audit.aligned),
        percent(audit.inside),
        percent(audit.crossing),
        f"{audit.skipped_blocks}/{audit.blocks + audit.skipped_blocks}",
        number(audit.mean_weight, "{:.2f}"),
        number(audit.mean_residual, "{:.2f}"),
        alignment_quality(audit),
    )


def _legend_lines(width: int) -> list[str]:
    lines = []
    for name, meaning in _COLUMNS:
        wrapped = _wrap(meaning, width - 12)
        lines += [f"  {name if n == 0 else '':<10}{line}" for n, line in enumerate(wrapped)]
    return lines


def _kind_lines(audits: Sequence[TokenizersAudited], width: int, colour: bool) -> list[str]:
    """The aligned share by kind of text, for each expert."""
    lines = []
    if any(audit.kinds for audit in audits):
        lines.append(paint("aligned, by kind of text", "dim", colour))
    name_width = max(len("expert"), *(len(audit.expert) for audit in audits))
    for audit in audits:
        kinds = ", ".join(f"{kind.kind} {kind.aligned:.0%}" for kind in audit.kinds)
        for n, line in enumerate(_wrap(kinds, width - name_width - 4)):
            lines.append(f"  {audit.expert if n == 0 else '':<{name_width}}  {line}")
    return lines


def _verdict_lines(preset: str, checks: Sequence[Check], width: int, colour: bool) -> list[str]:
    failed = [check.topic for check in checks if check.status == "fail"]
    warned = sum(check.status == "warn" for check in checks)
    text = f"preset {preset} can run"
    if failed:
        text = f"preset {preset} can't run yet: {', '.join(failed)}"
    if warned:
        text += f"; {warned} warning{'s' if warned > 1 else ''}"
    return [paint(line, "red" if failed else "green", colour) for line in _wrap(text, width)]
