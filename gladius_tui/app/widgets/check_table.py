"""The table of checks on the Validate screen."""

from __future__ import annotations

from collections.abc import Sequence

from engine.events import CheckDone
from gladius_tui.app.model.texts import cut
from gladius_tui.app.widgets.table import Cell, Table, coloured

VERDICTS = {
    "pass": ("✓", "success"),
    "warn": ("!", "warning"),
    "fail": ("✗", "error"),
    "skip": ("–", "dim"),
}
"""Sign and colour of a verdict."""
_BOUND = 30
"""Columns of the bound."""


class CheckTable(Table):
    """A row for each check: verdict, title, value, the previous report's value, bound."""

    def __init__(self) -> None:
        super().__init__(id="table", title="Checks")

    def show(self, checks: Sequence[CheckDone], filter_text: str, width: int) -> None:
        """Show the checks that match the filter, in a terminal of `width` columns."""
        with_bound = width >= 150
        with_previous = any(check.former for check in checks)
        header = ["", "check", "found"]
        header += ["before"] if with_previous else []
        header += ["bound"] if with_bound else []
        # The table has three fifths of a wide terminal; texts are cut, and shown in full beside it.
        room = width * (3 if width >= 100 else 5) // 5 - 36
        room = max(24, room - (_BOUND if with_bound else 0) - 4 * with_previous)
        previous_width = room * 2 // 5 if with_previous else 0
        rows: dict[str, list[Cell]] = {}
        for check in checks:
            if filter_text in f"{check.name} {check.title} {check.value} {check.verdict}".lower():
                row = self._row(check, room - previous_width)
                if with_previous:
                    same = check.former == check.value
                    text = "same" if same else cut(check.former, previous_width)
                    row.append(coloured(self.app, text, "dim"))
                if with_bound:
                    row.append(coloured(self.app, cut(check.bound, _BOUND), "dim"))
                rows[check.name] = row
        self.fill(header, rows)
        counts = {
            sign: sum(check.verdict == verdict for check in checks)
            for verdict, (sign, _) in VERDICTS.items()
        }
        self.border_subtitle = "  ".join(f"{sign} {n}" for sign, n in counts.items() if n)

    def _row(self, check: CheckDone, width: int) -> list[Cell]:
        sign, colour = VERDICTS[check.verdict]
        value = cut(check.value or check.meaning, width)
        return [
            coloured(self.app, sign, colour),
            check.title,
            coloured(self.app, value, "dim" if check.verdict == "skip" else ""),
        ]
