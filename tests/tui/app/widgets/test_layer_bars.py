"""The bar charts of the layers beside the enlarged pane Parameters."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from rich.text import Text

from engine.events import LayerGroup, LayerStats
from gladius_tui.app.model.layers import Cell
from gladius_tui.app.widgets.layer_bars import LayerBars, _groups, _Scale
from tests.support.dashboard import drawn_chart, opened_dashboard
from tests.support.driving import until
from tests.support.paths import REPO
from tests.support.recording import recorded, write_run

EVENTS = recorded()


def stats(step: int = 219, *, first: float | None = 1e-3, blocks: int = 6) -> LayerStats:
    """Values that grow with the number of the block; `first` is the attention of the first one."""
    attention = (first, *(1e-3 * (n + 1) for n in range(1, blocks)))
    mlp = tuple(5e-4 * (n + 1) for n in range(blocks))
    return LayerStats(
        step=step,
        interval=5,
        groups=(
            LayerGroup(kind="attention", update=attention, moved=mlp),
            LayerGroup(kind="mlp", update=mlp, moved=mlp),
            LayerGroup(kind="embeddings", update=(2e-3,), moved=(1e-3,)),
            LayerGroup(kind="head", update=(3e-3,), moved=(1e-3,)),
        ),
    )


def write(root, *events) -> None:
    write_run(root, [*EVENTS[:-1], *events, msgspec.structs.replace(EVENTS[-1], seq=0)])


def drawn(bars: LayerBars) -> list[str]:
    """The lines of a chart."""
    content = bars.render()
    assert isinstance(content, Text)
    return content.plain.splitlines()


def column_heights(bars: LayerBars) -> list[int]:
    """The cells of a bar in each column right of the y axis."""
    inner = [line[7:] for line in drawn(bars)[:-2]]
    return [sum(line[x : x + 1] in ("█", "▄", "▌", "▐") for line in inner)
            for x in range(bars.size.width - 7)]  # fmt: skip


async def enlarge(pilot, screen) -> None:
    await drawn_chart(pilot, screen)
    screen.set_focus(screen.query_one("#parameters-pane"))
    await pilot.press("enter")
    await until(pilot, lambda: screen.enlarged == "parameters")


async def test_every_layer_has_its_bar_and_new_values_are_drawn_once(root):
    write(root, stats())
    async with opened_dashboard(root) as (_, pilot, screen):
        assert not screen.query(LayerBars)
        await enlarge(pilot, screen)
        await until(pilot, lambda: len(screen.query(LayerBars)) == 2)
        update, moved = screen.query(LayerBars)
        await until(pilot, lambda: update.drawings and moved.drawings)
        heights = column_heights(update)
        bars = [
            heights[n] for n in range(len(heights)) if heights[n] and not (n and heights[n - 1])
        ]
        assert len(bars) == 8, "six blocks, embeddings and head"
        assert bars[:6] == sorted(bars[:6]) and bars[0] < bars[5]
        assert sum(1 for height in heights if height) > 24
        assert drawn(update)[-1].split() == ["0", "1", "2", "3", "4", "5", "embed", "head"]
        assert str(update.border_title) == "Update / weight, 5 steps · log"

        before = update.drawings
        screen.mark_changed("parameters")
        await until(pilot, lambda: not screen.redraw.scheduled)
        assert update.drawings == before, "the same values are not drawn again"
        screen.take_events([stats(220, first=None)])
        await until(pilot, lambda: update.drawings == before + 1)
        assert "!" in "".join(drawn(update)), "a layer that is not finite has a sign"

        await pilot.press("escape")
        await until(pilot, lambda: not screen.enlarged)
        await pilot.pause()
        assert not update.is_on_screen and screen.query_one("#chart-pane").is_on_screen


async def test_the_first_values_bring_the_charts_into_an_enlarged_pane(root):
    write_run(root, EVENTS[:200])
    async with opened_dashboard(root, (80, 24)) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        while screen.grid.wanted.selected != "parameters":
            await pilot.press("tab")
        await pilot.press("enter")
        assert not screen.query(LayerBars)
        screen.take_events([stats(201)])
        await until(
            pilot, lambda: [bars.drawings > 0 for bars in screen.query(LayerBars)] == [True] * 2
        )
        assert all(any(column_heights(bars)) for bars in screen.query(LayerBars))


def test_plotext_is_imported_when_the_pane_is_enlarged(root):
    write(root, stats())
    program = f"""
import asyncio, sys
from engine.workspace import Workspace
from gladius_tui.app.widgets.pane import Pane
from tests.support.dashboard import drawn_chart, opened_dashboard
from tests.support.driving import until

def plotext():
    return "plotext" in sys.modules

async def main():
    async with opened_dashboard(Workspace.find({str(root.root)!r})) as (_, pilot, screen):
        await drawn_chart(pilot, screen)
        found = [plotext()]
        screen.set_focus(screen.query_one("#parameters-pane", Pane))
        await pilot.press("enter")
        await until(pilot, plotext)
        print(found + [plotext()])

asyncio.run(main())
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[False, True]"


@pytest.mark.parametrize("columns", [30, 45, 60, 146])
@pytest.mark.parametrize("blocks", [1, 2, 6, 16, 32, 80])
@pytest.mark.parametrize("ends", [1, 2])
def test_bars_do_not_overlap_at_any_width(columns, blocks, ends):
    def cells(label: str, count: int) -> list[Cell]:
        return [Cell(f"{label} {n}", 1e-3, 3) for n in range(count)]

    rows = {"attn": cells("attn", blocks), "mlp": cells("mlp", blocks), "embed": cells("embed", 1)}
    if ends == 2:
        rows["head"] = cells("head", 1)
    taken: list[int] = []
    for places, shown, width, _ in _groups(rows, columns):
        assert len(places) == len(shown) and width >= 1
        taken += [place + n for place in places for n in range(width)]
    assert len(set(taken)) == len(taken) and min(taken) >= 0 and max(taken) < columns


def test_the_axis_is_logarithmic_where_values_span_a_decade():
    narrow, wide = _Scale([1e-3, 2e-3, None], 5), _Scale([1e-5, 2e-3, 0.0], 4)
    assert not narrow.log and narrow.height(2e-3) == 2 * narrow.height(1e-3)
    assert wide.log and 0 < wide.height(1e-5) < wide.height(2e-3) < wide.top
    assert wide.labels == ["1e-5", "1e-4", "0.001"]
    assert wide.height(0.0) == wide.height(None) == wide.height(float("nan")) == 0.0
    assert _Scale([0.0, None], 5).height(0.0) == 0.0
