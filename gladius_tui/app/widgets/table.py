"""Tables: rows by key, columns as wide as their content."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text
from textual.app import App
from textual.widgets import DataTable

from engine.foreign_text import shown

Cell = str | Text


def coloured(app: App, text: str, colour: str) -> Text:
    """Text in a colour of the theme, such as "success"; "dim" is a paler foreground."""
    if colour == "dim":
        return Text(shown(text, keep="\n"), style="dim")
    text = shown(text, keep="\n")
    return Text(text, style=app.theme_variables.get(f"text-{colour}", "") if colour else "")


class Table(DataTable[Cell]):
    """A table whose rows are all set at once; the cursor stays on its row."""

    def __init__(self, *, id: str, title: str = "", classes: str = "pane") -> None:
        super().__init__(cursor_type="row", id=id, classes=classes)
        self.border_title = title
        self._header: tuple[str, ...] = ()
        self._widths: list[int] = []
        self._cells: dict[str, list[Text]] = {}

    def fill(self, header: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> None:
        """Show these rows, by key; a column whose header ends with > is right-aligned.

        Only cells that have changed are redrawn, unless rows or columns have changed.
        """
        right_aligned = [name.endswith(">") for name in header]
        cells = {
            key: [_justified(cell, right_aligned[n]) for n, cell in enumerate(row)]
            for key, row in rows.items()
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
