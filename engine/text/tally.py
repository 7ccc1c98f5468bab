"""Count what becomes of texts: learnt, cut or left out, with the first example of each reason."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

from engine.errors import UsageError
from engine.events import REPEATED, TextReason, TextsRead, describe_reason
from engine.text.examples import Example, LeftOut
from engine.text.pieces import BROKEN, located

Outcome = Literal["learnt", "held_out", "cut", "left_out", "unused"]

MAX_LEFT_OUT = 0.1
"""A run with a larger share of texts that can't be learnt needs `data.lenient`."""
_MAX_DOCUMENTS = 50_000
"""Long documents that are remembered, so that their later passages count to the same text."""
_Key = tuple[Literal["left_out", "cut", "file"], str]


class TextTally:
    """The table of texts in, learnt, cut and left out, and why.

    The passages of a long document are one text: learnt where one of them is, and cut where
    another one is not.
    """

    def __init__(self, table: TextsRead | None = None) -> None:
        """table: counts to begin with."""
        table = table or TextsRead()
        self._counts: dict[str, int] = {
            "learnt": table.learnt - table.held_out - table.cut,
            "held_out": table.held_out,
            "cut": table.cut,
            "left_out": table.left_out,
            "unused": table.unused,
        }
        self._reasons: dict[_Key, TextReason] = {(r.outcome, r.reason): r for r in table.reasons}
        self._documents: dict[str, tuple[Outcome, str]] = {}

    def leave_out(self, item: LeftOut) -> None:
        """Count a text that can't be read, or a file that is not."""
        if item.is_file:
            self._add_reason(("file", item.reason), item.where, item.detail)
        elif item.passage or not item.complete:
            self._add_passage(item.where, "left_out", item.reason, item.detail)
        else:
            self._counts["left_out"] += 1
            self._add_reason(("left_out", item.reason), item.where, item.detail)

    def add(self, example: Example, outcome: Outcome, reason: str = "", detail: str = "") -> None:
        """Count an example; reason: why it is left out or cut."""
        where = example.where
        if where and example.text is not None and (example.passage or not example.complete):
            self._add_passage(where, outcome, reason, detail)
            return
        self._counts[outcome] += 1
        if outcome in ("cut", "left_out"):
            self._add_reason((outcome, reason), where, detail)

    def _add_passage(self, where: str, outcome: Outcome, reason: str, detail: str) -> None:
        """Count a passage of the document at `where`, with those that were counted before."""
        before, why = self._documents.get(where, (None, ""))
        if before is None:
            after = outcome
        elif before == outcome:
            return
        elif "unused" in (before, outcome):
            after = before if outcome == "unused" else outcome
        elif {before, outcome} <= {"learnt", "held_out"}:
            after = "learnt"
        else:
            after = "cut"
        reason = reason or why
        if before is not None:
            self._counts[before] -= 1
            if before in ("cut", "left_out"):
                self._remove_reason((before, why))
        self._counts[after] += 1
        self._documents[where] = after, reason
        if len(self._documents) > _MAX_DOCUMENTS:
            del self._documents[next(iter(self._documents))]
        if after in ("cut", "left_out"):
            self._add_reason((after, reason), where, detail)

    def _add_reason(self, key: _Key, where: str, detail: str) -> None:
        found = self._reasons.get(key)
        if found is None:
            self._reasons[key] = TextReason(
                outcome=key[0], reason=key[1], count=1, where=located(where), detail=detail[:300]
            )
        else:
            self._reasons[key] = _counted(found, found.count + 1)

    def _remove_reason(self, key: _Key) -> None:
        found = self._reasons.pop(key, None)
        if found is not None and found.count > 1:
            self._reasons[key] = _counted(found, found.count - 1)

    def table(self, expert: str = "", source: str = "") -> TextsRead:
        """The counts so far; the most frequent reasons first."""
        counts = self._counts
        order = {"left_out": 0, "cut": 1, "file": 2}
        reasons = sorted(self._reasons.values(), key=lambda r: (order[r.outcome], -r.count))
        return TextsRead(
            expert=expert,
            source=source,
            texts=sum(counts.values()),
            learnt=counts["learnt"] + counts["held_out"] + counts["cut"],
            held_out=counts["held_out"],
            cut=counts["cut"],
            left_out=counts["left_out"],
            unused=counts["unused"],
            reasons=tuple(reasons),
        )


def _counted(reason: TextReason, count: int) -> TextReason:
    return TextReason(
        outcome=reason.outcome,
        reason=reason.reason,
        count=count,
        where=reason.where,
        detail=reason.detail,
    )


def faulty(table: TextsRead) -> list[TextReason]:
    """The reasons of texts that can't be learnt; repeated texts are learnt once."""
    return [r for r in table.reasons if r.outcome == "left_out" and r.reason != REPEATED]


def refusal(table: TextsRead, *, is_sample: bool = False, what: str = "") -> str:
    """Why a run with these texts is refused, with the remedy; "" if it is not.

    is_sample: the table is of a sample; it has to be three standard errors above the limit.
    """
    broken = [r for r in table.reasons if r.outcome == "file" and r.reason == BROKEN]
    reasons = faulty(table)
    count, texts = sum(r.count for r in reasons), table.texts
    most = MAX_LEFT_OUT * texts
    if is_sample:
        most += 3 * math.sqrt(MAX_LEFT_OUT * (1 - MAX_LEFT_OUT) * texts)
    if count > most:
        found = f"{count:,} of {texts:,} {'sampled ' if is_sample else ''}texts can't be learnt"
        listed = _listed(reasons)
    elif broken:
        found, listed = "not all files can be read", _listed(broken)
    else:
        return ""
    return (
        f"{what + ': ' if what else ''}{found}: {listed}; correct them, or train without them: "
        "--data-lenient (data.lenient=true)"
    )


def _listed(reasons: Iterable[TextReason]) -> str:
    listed = []
    for reason in reasons:
        detail = f": {reason.detail}" if reason.detail not in ("", reason.reason) else ""
        # A semicolon separates a message's remedy.
        where = f" ({reason.where}{detail.replace(';', ',')})" if reason.where else ""
        listed.append(f"{reason.reason} {reason.count:,}{where}")
    return ", ".join(listed[:4]) + (", ..." if len(listed) > 4 else "")


def require_learnable(
    table: TextsRead, *, lenient: bool, is_sample: bool = False, what: str = ""
) -> None:
    """UsageError where more than a tenth of the texts can't be learnt, unless `lenient`."""
    problem = "" if lenient else refusal(table, is_sample=is_sample, what=what)
    if problem:
        raise UsageError(" ".join(problem.split()))


def short_table(table: TextsRead) -> str:
    """The reasons of the table in one line; "" without any."""
    return "; ".join(describe_reason(reason) for reason in table.reasons)
