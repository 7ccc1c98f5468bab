"""Where the Dashboard's panes stand at every size."""

from __future__ import annotations

import pytest
from textual.geometry import Region, Size

from gladius_tui.app.model.pane_layout import Wanted, place

LINES = {"run": 11, "hardware": 7, "experts": 3}


@pytest.mark.parametrize("width", [60, 80, 99, 100, 120, 160, 200])
@pytest.mark.parametrize("height", [14, 20, 22, 28, 34, 48])
@pytest.mark.parametrize("capabilities", [0, 5])
def test_panes_fill_the_screen_and_do_not_overlap(width, height, capabilities):
    regions = place(Size(width, height), Wanted(LINES | {"capabilities": capabilities}))
    assert sum(region.area for region in regions.values()) == width * height
    screen = Region(0, 0, width, height)
    for name, region in regions.items():
        assert screen.contains_region(region), name
        assert region.height >= (1 if name == "tabs" else 3), name
        others = [other for key, other in regions.items() if key != name]
        assert not any(region.overlaps(other) for other in others), name


@pytest.mark.parametrize(
    ("size", "least"), [((80, 22), 12), ((120, 34), 24), ((160, 28), 20), ((200, 48), 36)]
)
def test_the_chart_gets_the_space(size, least):
    regions = place(Size(*size), Wanted(LINES))
    assert regions["chart"].height >= least
    assert regions["chart"].height > 2 * regions.get("log", Region()).height


def test_run_and_hardware_get_the_lines_they_need():
    regions = place(Size(160, 28), Wanted(LINES))
    assert regions["run"].height == 13 and regions["hardware"].height == 9


def test_capabilities_have_a_place_only_once_they_were_measured():
    assert "capabilities" not in place(Size(120, 34), Wanted(LINES))
    measured = Wanted(LINES | {"capabilities": 5})
    assert "log" in place(Size(120, 34), measured) and "capabilities" in place(
        Size(120, 34), measured
    )
    small = place(Size(120, 18), measured)
    assert "capabilities" not in small and "log" in small


def test_an_enlarged_pane_has_the_whole_screen():
    assert place(Size(80, 22), Wanted(LINES, enlarged="log")) == {"log": Region(0, 0, 80, 22)}


def test_the_charts_of_the_layers_stand_beside_the_enlarged_parameters():
    wanted = Wanted(LINES, enlarged="parameters", layers=True)
    for width in (76, 120, 200):
        regions = place(Size(width, 30), wanted)
        text, charts = regions.pop("parameters"), regions.pop("layers")
        assert not regions and text.right == charts.x and charts.right == width
        assert min(text.width, charts.width) >= 38
    assert place(Size(75, 22), wanted) == {"parameters": Region(0, 0, 75, 22)}
    assert "layers" not in place(Size(120, 36), Wanted(LINES, layers=True))
