"""What a drawn chart shows: panels, ticks, labels at the ends of curves, outliers, the cursor."""

from __future__ import annotations

import math

import pytest
from rich.style import Style
from textual.geometry import Size

from engine.run.rollup import Column
from gladius_tui.app.model.curves import Curve
from gladius_tui.app.model.drawing import Drawing, Panel, Series
from gladius_tui.app.model.metrics import PANELS, is_sparse, panel_of, style_of
from gladius_tui.app.widgets.braille import Canvas
from gladius_tui.app.widgets.chart_sketch import Palette, sketch

COLOURS = [(90, 170, 255), (255, 166, 43), (78, 191, 113), (192, 140, 240), (240, 113, 106)]
FORMER = [(217, 201, 163), (159, 214, 202)]
PALETTE = Palette(COLOURS, FORMER, (230, 230, 230), (18, 18, 18))


def curve(metric: str, values: dict[int, float], width: int = 1, newest: int = 0) -> Curve:
    """A curve of columns of `width` steps."""
    newest = newest or max(values)
    columns = []
    for start in range(0, newest + 1, width):
        inside = [values[n] for n in range(start, start + width) if n in values]
        columns.append(
            Column(
                start=start,
                stop=start + width,
                low=min(inside, default=None),
                high=max(inside, default=None),
                first=inside[0] if inside else None,
                last=inside[-1] if inside else None,
                count=len(inside),
                mean=math.fsum(inside) / len(inside) if inside else None,
            )
        )
    return Curve(metric, columns)


def drawing(*curves: Curve, former: Curve | None = None, **options) -> Drawing:
    panels: dict[str, Panel] = {}
    for one in curves:
        key = panel_of(one.metric)
        panel = panels.setdefault(key, Panel(key, PANELS[key]))
        panel.series.append(Series(one, *style_of(one.metric)))
    if former is not None:
        panels[panel_of(former.metric)].series.append(Series(former, 0, 0, "before"))
    hi = 1 + max(column.stop - 1 for one in curves for column in one.columns)
    return Drawing(list(panels.values()), 0, options.pop("hi", hi), **options)


def falling(newest: int, every: int = 1, start: float = 9.0) -> dict[int, float]:
    return {n: 2 + start * math.exp(-5 * n / newest) for n in range(0, newest + 1, every)}


def colour_at(chart, column: int, row: int) -> tuple[int, int, int] | None:
    """The colour of a cell of the drawn chart."""
    at = 0
    for segment in chart.lines[row]:
        if at + len(segment.text) > column:
            return segment.style.color.triplet if segment.style and segment.style.color else None
        at += len(segment.text)
    return None


def test_each_unit_has_its_panel_with_at_least_four_ticks():
    shown = drawing(
        curve("loss", falling(300)),
        curve("kl", falling(300, start=4.0)),
        curve("bits_per_byte", falling(300, 50, 1.0)),
        curve("lr", {n: min(1.0, n / 20) * 1e-3 for n in range(301)}),
    )
    chart = sketch(shown, Size(90, 30), PALETTE)
    assert chart.shown == ("loss", "bits_per_byte", "lr") and chart.missing == ()
    rows = chart.text.splitlines()
    assert len(rows) == 30 and {len(row) for row in rows} == {90}
    titles = [n for n, row in enumerate(rows) if "┼" in row]
    assert [rows[n].split(" ", 1)[1].split(" ─")[0] for n in titles] == [
        "Held-out (bits/byte)",
        "Learning rate",
    ]
    for first, last in zip([0, *titles], [*titles, 29], strict=True):
        assert sum("┤" in row for row in rows[first:last]) >= 4
    assert rows[-1].split() == ["0", "100", "200", "300", "step"]


def test_panels_without_room_are_named_and_the_first_ones_stay():
    shown = drawing(curve("loss", falling(90)), curve("lr", dict.fromkeys(range(91), 0.001)))
    chart = sketch(shown, Size(60, 10), PALETTE)
    assert chart.shown == ("loss",) and chart.missing == ("Learning rate",)


def test_a_curve_is_labelled_at_its_end_with_its_value():
    shown = drawing(curve("kl", falling(200)), curve("ce", falling(200, start=20.0)))
    rows = sketch(shown, Size(70, 14), PALETTE).text.splitlines()
    (kl,) = (n for n, row in enumerate(rows) if row.rstrip().endswith("─kl 2.06"))
    (ce,) = (n for n, row in enumerate(rows) if row.rstrip().endswith("╌ce 2.13"))
    assert ce == kl - 1, "the higher curve's label is above the other's"
    crowded = {name: {0: 9.0, 200: value} for name, value in (("kl", 2.0), ("loss", 2.1))}
    shown = drawing(*(curve(name, values) for name, values in crowded.items()))
    text = sketch(shown, Size(70, 8), PALETTE).text
    assert text.index("loss 2.10") < text.index("kl 2.00"), "their ends share a row"


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("newest", [220, 219, 221, 500])
def test_the_last_evaluation_is_always_in_sight(width, newest):
    values = {n: 3.0 - n / newest for n in (*range(0, newest - 20, 44), newest)}
    loss = curve("loss", falling(newest))
    shown = drawing(loss, curve("bits_per_byte", values, width, newest), hi=newest + 1)
    chart = sketch(shown, Size(60, 16), PALETTE)
    first, columns = chart.plot
    last = [row[first + columns - 2 : first + columns] for row in chart.text.splitlines()]
    assert any("•" in cells for cells in last[-9:]), chart.text


def test_outliers_are_clipped_with_a_mark_and_shown_on_demand():
    values = falling(400) | {200: 500.0}
    clipped = sketch(drawing(curve("loss", values)), Size(80, 12), PALETTE).text
    assert "▲" in clipped and "500" not in clipped.split("loss")[0]
    everything = sketch(drawing(curve("loss", values), clip=False), Size(80, 12), PALETTE).text
    assert "▲" not in everything and "400" in everything


def test_the_current_run_is_drawn_on_top_and_a_former_one_to_its_own_end():
    longer = falling(200)
    same = {n: value for n, value in longer.items() if n <= 100}
    shown = drawing(curve("kl", same), former=curve("kl", longer), hi=201)
    chart = sketch(shown, Size(80, 12), PALETTE)
    first, columns = chart.plot
    rows = chart.text.splitlines()[:-1]
    left, right = set(), set()
    for y, row in enumerate(rows):
        for x in range(first, first + columns):
            if row[x] != " " and abs(x - first - columns // 2) > 2:
                (left if x < first + columns // 2 else right).add(colour_at(chart, x, y))
    assert left == {COLOURS[style_of("kl")[0]]}, "the current run covers the former one"
    assert len(right) == 1 and right != left, "the former run goes on to step 200"
    assert any("┄before" in row for row in rows)


def test_the_cursor_reads_all_curves_at_a_step():
    shown = drawing(curve("kl", {n: float(n) for n in range(101)}), cursor=40)
    chart = sketch(shown, Size(60, 12), PALETTE)
    assert "kl 40.00" in chart.text and "step 40" in chart.text.splitlines()[-1]
    assert chart.text.count("│") > 12


def test_a_measured_value_is_read_until_the_next_one():
    sparse = curve("bits_per_byte", {0: 3.0, 50: 2.0, 100: 1.0})
    assert is_sparse("bits_per_byte")
    assert [sparse.value_at(n) for n in (0, 49, 50, 99, 100)] == [3.0, 3.0, 2.0, 2.0, 1.0]
    dense = curve("loss", {0: 3.0, 2: 1.0})
    assert [dense.value_at(n) for n in (0, 1, 2)] == [3.0, None, 1.0]


def test_marks_differ_where_curves_share_a_panel():
    drawn = set()
    for pattern in range(4):
        canvas = Canvas(10, 1)
        canvas.line([(0.0, 1.0), (19.0, 1.0)], Style(bold=True), pattern)
        drawn.add("".join(canvas.cell(x, 0)[0] for x in range(10)))
    assert len(drawn) == 4


@pytest.mark.parametrize("size", [(10, 3), (24, 4), (30, 5), (200, 60)])
def test_every_size_can_be_drawn(size):
    shown = drawing(curve("loss", falling(50)), curve("lr", dict.fromkeys(range(51), 0.001)))
    chart = sketch(shown, Size(*size), PALETTE)
    assert len(chart.lines) == size[1] and {line.cell_length for line in chart.lines} == {size[0]}


def test_a_million_values_are_drawn_from_their_columns_quickly():
    columns = [
        Column(start=n, stop=n + 10, low=1.0, high=3.0, first=1.5, last=2.5, count=10, mean=2.0)
        for n in range(0, 2000, 10)
    ]
    shown = drawing(Curve("loss", columns), Curve("kl", columns))
    import time

    began = time.perf_counter()
    sketch(shown, Size(100, 30), PALETTE)
    assert time.perf_counter() - began < 0.25
