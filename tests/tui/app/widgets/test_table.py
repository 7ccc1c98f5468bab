"""Tables are sorted by a click on a title and by keys; the cursor stays on its row."""

from __future__ import annotations

from textual.app import App, ComposeResult

from gladius_tui.app.widgets.table import Table, sort_value

HEADER = ("name", "size>")
ROWS = {
    "a": ("Alpha", "90 MiB"),
    "b": ("beta", "1.2 GiB"),
    "c": ("Gamma", "–"),
    "d": ("delta", "512 KiB"),
}


class OneTable(App):
    def compose(self) -> ComposeResult:
        yield Table(id="table")

    def on_mount(self) -> None:
        self.query_one(Table).fill(HEADER, ROWS)
        self.query_one(Table).focus()


def names(table: Table) -> list[str]:
    return [str(table.get_row_at(n)[0]) for n in range(table.row_count)]


def test_numbers_are_sorted_by_size_and_dashes_come_last():
    texts = ["1.2 GiB", "90 MiB", "–", "512 KiB", "word", "12,480", "3%"]
    assert sorted(texts, key=sort_value) == [
        *("3%", "12,480", "512 KiB", "90 MiB", "1.2 GiB", "word", "–"),
    ]


async def test_a_table_is_sorted_by_keys_and_by_a_click():
    app = OneTable()
    async with app.run_test() as pilot:
        table = app.query_one(Table)
        assert names(table) == ["Alpha", "beta", "Gamma", "delta"]
        table.move_cursor(row=1)
        await pilot.press("full_stop")
        assert names(table) == ["Alpha", "beta", "delta", "Gamma"]
        assert table.key == "b"
        await pilot.press("full_stop")
        assert names(table) == ["delta", "Alpha", "beta", "Gamma"]
        await pilot.press("comma")
        assert names(table) == ["beta", "Alpha", "delta", "Gamma"], "an empty cell stays last"
        table.fill(HEADER, ROWS | {"e": ("Epsilon", "2 GiB")})
        assert names(table)[0] == "Epsilon", "new rows are sorted too"
        await pilot.press("full_stop")
        assert names(table) == ["Alpha", "beta", "Gamma", "delta", "Epsilon"]
        await pilot.click(Table, offset=(2, 0))
        await pilot.pause()
        assert names(table)[0] == "Alpha" and names(table)[-1] == "Gamma"
