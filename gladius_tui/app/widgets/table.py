"""Tables: rows by key, columns as wide as their content."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.widgets import DataTable

from engine.foreign_text import shown

Cell = str | Text


def coloured(app: App, text: str, colour: str) -> Text:
    """Text in a colour of the theme, such as "success"; "dim" is a paler foreground."""
    if colour == "dim":
        return Text(shown(text, keep="\n"), style="dim")
    text = shown(text, keep="\n")
    return Text(text, style=app.theme_variables.get(f"text-{colour}", "") if colour else "")


_NUMBER = re.compile(r"[~<>≤≥]?\s*(-?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([kKMGT]?)(?:iB|B|\b|%)?")
_UNITS = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


def sort_value(text: str) -> tuple[int, float, str]:
    """What a cell is sorted by: a number with its unit by size, then other text by its letters; an
    empty cell or a dash last."""
    text = text.strip()
    if text in ("", "–", "-"):
        return 2, 0.0, ""
    found = _NUMBER.match(text)
    if found is None:
        return 1, 0.0, text.casefold()
    base = 1024 if "iB" in text else 1000
    return 0, float(found[1].replace(",", "")) * base ** _UNITS[found[2]], text.casefold()


class Table(DataTable[Cell]):
    """A table whose rows are all set at once; the cursor stays on its row.

    It is sorted by a click on a column's title, or by keys: first ascending, then descending, then
    in the order in which the rows were given.
    """

    BINDINGS: ClassVar = [
        Binding("full_stop", "sort_next", "Sort", show=False, id="table.sort",
                tooltip="Sort by the next column"),
        Binding("comma", "sort_reverse", "Reverse", show=False, id="table.reverse",
                tooltip="Reverse the order"),
    ]  # fmt: skip

    def __init__(self, *, id: str, title: str = "", classes: str = "pane") -> None:
        super().__init__(cursor_type="row", id=id, classes=classes)
        self.border_title = title
        self._header: tuple[str, ...] = ()
        self._widths: list[int] = []
        self._cells: dict[str, list[Text]] = {}
        self._given: tuple[Sequence[str], Mapping[str, Sequence[Cell]]] = ((), {})
        """Header and rows as they were given."""
        self.sorted_by: tuple[int, bool] | None = None
        """Column and whether it is descending; None: as given."""

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        event.stop()
        column = event.column_index
        if self.sorted_by == (column, False):
            self._sort_by((column, True))
        else:
            self._sort_by(None if self.sorted_by == (column, True) else (column, False))

    def action_sort_next(self) -> None:
        columns = len(self._given[0])
        column = 0 if self.sorted_by is None else self.sorted_by[0] + 1
        self._sort_by((column, False) if column < columns else None)

    def action_sort_reverse(self) -> None:
        if self.sorted_by is not None:
            self._sort_by((self.sorted_by[0], not self.sorted_by[1]))

    def _sort_by(self, order: tuple[int, bool] | None) -> None:
        self.sorted_by = order
        self.fill(*self._given)

    def _in_order(self, rows: Mapping[str, Sequence[Cell]]) -> dict[str, Sequence[Cell]]:
        """The rows as they are sorted; empty cells are last in both directions."""
        if self.sorted_by is None:
            return dict(rows)
        column, descending = self.sorted_by

        def value(key: str) -> tuple[int, float, str]:
            return sort_value(str(rows[key][column]))

        empty = [key for key in rows if value(key)[0] == 2]
        others = [key for key in rows if key not in empty]
        others.sort(key=value, reverse=descending)
        return {key: rows[key] for key in (*others, *empty)}

    def fill(self, header: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> None:
        """Show these rows, by key; a column whose header ends with > is right-aligned.

        Only cells that have changed are redrawn, unless rows or columns have changed.
        """
        self._given = header, rows
        right_aligned = [name.endswith(">") for name in header]
        if self.sorted_by is not None:
            sign = "▼" if self.sorted_by[1] else "▲"
            header = [
                _with_sign(name, sign) if n == self.sorted_by[0] else name
                for n, name in enumerate(header)
            ]
        cells = {
            key: [_justified(cell, right_aligned[n]) for n, cell in enumerate(row)]
            for key, row in self._in_order(rows).items()
        }
        if tuple(header) == self._header and cells == self._cells:
            return
        widths = [
            max([cell_len(name.rstrip(">")), *(cell_len(str(row[n])) for row in cells.values())])
            for n, name in enumerate(header)
        ]
        wider = any(new > old for new, old in zip(widths, self._widths, strict=False))
        if tuple(header) == self._header and list(cells) == list(self._cells) and not wider:
            for key, row in cells.items():
                for n, cell in enumerate(row):
                    if cell != self._cells[key][n]:
                        self.update_cell(key, str(n), cell)
        else:
            self._refill(header, cells, widths, right_aligned)
        self._header, self._cells = tuple(header), cells

    def _refill(
        self,
        header: Sequence[str],
        cells: Mapping[str, Sequence[Cell]],
        widths: list[int],
        right_aligned: list[bool],
    ) -> None:
        selected = self.key
        self.clear(columns=True)
        for n, name in enumerate(header):
            label = Text(name.rstrip(">"), justify="right" if right_aligned[n] else "left")
            self.add_column(label, width=widths[n], key=str(n))
        for key, row in cells.items():
            self.add_row(*row, key=key)
        self._widths = widths
        keys = list(cells)
        if selected in keys:
            self.move_cursor(row=keys.index(selected))

    @property
    def key(self) -> str | None:
        """The key of the row under the cursor."""
        keys = list(self._cells)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def action_scroll_home(self) -> None:
        """The first row: the cursor is a row, so there is no first column to go to."""
        self.action_scroll_top()

    def action_scroll_end(self) -> None:
        """The last row."""
        self.action_scroll_bottom()


def _with_sign(name: str, sign: str) -> str:
    """A column's title with the sign of its order; the mark of right alignment stays last."""
    return f"{name[:-1]} {sign}>" if name.endswith(">") else f"{name} {sign}"


def _justified(cell: Cell, right: bool) -> Text:
    text = cell.copy() if isinstance(cell, Text) else Text(shown(cell))
    text.justify = "right" if right else "left"
    return text


def facts(rows: Sequence[tuple[str, Cell]], width: int = 11) -> Grid:
    """Rows of (label, value); long values are wrapped in their column."""
    grid = Grid.grid(padding=(0, 1, 0, 0), expand=True)
    grid.add_column(width=width, no_wrap=True, style="dim")
    grid.add_column(ratio=1)
    for label, value in rows:
        text = value if isinstance(value, Text) else Text(shown(value, keep="\n"))
        grid.add_row(Text(label), text)
    return grid
