"""Owns how the doctor's findings read: checks in rows, tokenizers in a table, a verdict."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Sequence

from engine.doctor.check import Check
from engine.doctor.experts import alignment_quality
from engine.events import TokenizersAudited
from gladius_tui.headless import paint, print_lines, wants_colour

_MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warn": ("!", "yellow"), "fail": ("✗", "red")}
_WORDS = {"good": "green", "fair": "yellow", "poor": "red"}
_TOPIC = 16
_COLUMNS = (
    ("tokens", "of the student's tokens, the share that the expert has too, byte for byte"),
    ("aligned", "of the places in the text, those where both begin a token: heard as it is"),
    ("inside", "those within a token of the expert's: heard as far as that token goes on"),
    ("crossing", "those where the student's token runs past the end of the expert's"),
    ("skipped", "pieces of text on which the two can't be laid side by side"),
    ("weight", "how much of the expert's word counts, 1.00 at most"),
    ("residual", "the part of it for which the student has no token"),
    ("heard", "good, fair or poor: by the weight where it is known, else by what is aligned"),
)
"""What the columns of the tokenizers' table mean."""


def print_report(
    preset: str,
    checks: Sequence[Check],
    audits: Sequence[TokenizersAudited],
    problem: str,
    *,
    quiet: bool = False,
) -> None:
    """Print all of it on standard output, as wide as the terminal is, 80 columns where none is;
    `quiet`: only what warns or fails, and the verdict."""
    width = min(100, shutil.get_terminal_size((80, 24)).columns)
    print_lines(
        report_lines(
            preset,
            [check for check in checks if not quiet or check.status in ("warn", "fail")],
            () if quiet else audits,
            "" if quiet else problem,
            width=width,
            colour=wants_colour(sys.stdout),
        )
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
    lines = [line for check in checks for line in _check_lines(check, width, colour)]
    if audits or problem:
        lines += ["", *_tokenizer_lines(audits, problem, width, colour)]
    return [*lines, "", *_verdict(preset, checks, width, colour)]


def _check_lines(check: Check, width: int, colour: bool) -> list[str]:
    mark, style = _MARKS[check.status]
    pad = " " * (_TOPIC + 3)
    lines = _wrapped(check.figure, width - len(pad)) or [""]
    told = [f"{paint(mark, style, colour)} {check.topic:<{_TOPIC}} {lines[0]}"]
    told += [pad + line for line in lines[1:]]
    if check.remedy:
        remedy = _wrapped(check.remedy, width - len(pad) - 2)
        told += [f"{pad}{'→' if n == 0 else ' '} {line}" for n, line in enumerate(remedy)]
    return told


def _wrapped(text: str, width: int) -> list[str]:
    # Commands and addresses are to be copied: they stay whole.
    return textwrap.wrap(text, max(width, 24), break_long_words=False, break_on_hyphens=False)


def _tokenizer_lines(
    audits: Sequence[TokenizersAudited], problem: str, width: int, colour: bool
) -> list[str]:
    student = next((audit.student for audit in audits if audit.student), "")
    title = "tokenizers, as the student would hear each expert"
    lines = [paint(title, "bold", colour)]
    if student:
        lines += _wrapped(f"student's tokenizer: {student}", width)
    if problem:
        lines += [f"  {line}" for line in _wrapped(problem, width - 2)]
    done = [audit for audit in audits if not audit.problem]
    if done:
        header = ("expert", "tokens", "aligned", "inside", "crossing", "skipped", "weight",
                  "residual", "heard")  # fmt: skip
        rows = [header, *(_row(audit) for audit in done)]
        widths = [max(len(row[n]) for row in rows) for n in range(len(header))]
        for number, row in enumerate(rows):
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True)]
            line = "  " + "  ".join(cells)
            if number:
                word = row[-1]
                line = line.removesuffix(word) + paint(word, _WORDS[word], colour)
            else:
                line = paint(line, "dim", colour)
            lines.append(line)
        for name, meaning in _COLUMNS:
            told = _wrapped(meaning, width - 12)
            lines += [
                paint(f"  {name if n == 0 else '':<10}{line}", "dim", colour)
                for n, line in enumerate(told)
            ]
        if any(audit.kinds for audit in done):
            lines.append(paint("aligned, by kind of text", "dim", colour))
        for audit in done:
            kinds = ", ".join(f"{kind.kind} {kind.aligned:.0%}" for kind in audit.kinds)
            told = _wrapped(kinds, width - widths[0] - 4)
            name = audit.expert.ljust(widths[0])
            lines += [f"  {name if n == 0 else ' ' * widths[0]}  {t}" for n, t in enumerate(told)]
        if any(audit.mean_weight is None for audit in done):
            note = "weight and residual depend on what an expert says: doctor --listen runs it"
            lines += [paint(line, "dim", colour) for line in _wrapped(note, width)]
    for audit in audits:
        if audit.problem:
            lines += [f"  {line}" for line in _wrapped(f"{audit.expert}: {audit.problem}", width)]
    return lines


def _row(audit: TokenizersAudited) -> tuple[str, ...]:
    def share(value: float) -> str:
        return f"{value:.0%}"

    def exact(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    return (
        audit.expert,
        share(audit.reachable),
        share(audit.aligned),
        share(audit.inside),
        share(audit.crossing),
        f"{audit.skipped_blocks}/{audit.blocks + audit.skipped_blocks}",
        exact(audit.mean_weight),
        exact(audit.mean_residual),
        alignment_quality(audit),
    )


def _verdict(preset: str, checks: Sequence[Check], width: int, colour: bool) -> list[str]:
    failed = [check.topic for check in checks if check.status == "fail"]
    warned = sum(check.status == "warn" for check in checks)
    text = f"preset {preset} can run"
    if failed:
        text = f"preset {preset} can't run yet: {', '.join(failed)}"
    text += f"; {warned} to look at" if warned else ""
    return [paint(line, "red" if failed else "green", colour) for line in _wrapped(text, width)]
