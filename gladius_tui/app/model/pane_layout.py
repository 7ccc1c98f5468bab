"""Where the Dashboard's panes stand: a pure function of the screen's size and of what they need.

Run, Hardware and Experts get the lines that they need; chart, sample and log get the rest:

    Run        | chart | Hardware (Capabilities)
    Parameters |       | Sample
    Experts          | Log

Below 100 columns the chart stands above one pane at a time, with a line of tabs between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from textual.geometry import Region, Size

WIDE, WIDER = 100, 160
"""Columns from which on there is a grid, and from which on its side columns are wider."""
_SIDES = {WIDE: (33, 30), WIDER: (42, 42)}
_LEAST_EXPERTS, _LEAST_LOG = 50, 40
"""Columns."""
_LEAST_PANE = 3
_LEAST_TOP = 5
"""Rows of a pane that has another one above it, borders included."""
_CAPABILITY_SAMPLE = 8
"""Rows that the sample keeps when the capabilities stand above it."""
_LAYERS_BESIDE = {110: 50, 76: 38}
"""Columns of the enlarged pane Parameters that has the charts of the layers beside it, by the least
columns of the screen."""


@dataclass(frozen=True)
class Wanted:
    """What the panes need.

    Attributes:
        lines: of text, by name of the pane.
        selected: the pane that is shown if only one has room.
        enlarged: the pane that has the whole screen; "" for none.
        capabilities: whether they are shown instead of the log.
        layers: whether the enlarged pane Parameters has charts of the layers beside it.
    """

    lines: Mapping[str, int]
    selected: str = "run"
    enlarged: str = ""
    capabilities: bool = False
    layers: bool = False


def place(size: Size, wanted: Wanted) -> dict[str, Region]:
    """The region of each pane that is shown, borders included; `tabs` and `chart` are panes too."""
    width, height = size
    if wanted.enlarged == "parameters" and wanted.layers:
        for least, text in _LAYERS_BESIDE.items():
            if width >= least:
                beside = Region(text, 0, width - text, height)
                return {"parameters": Region(0, 0, text, height), "layers": beside}
    if wanted.enlarged:
        return {wanted.enlarged: Region(0, 0, width, height)}
    return _grid(width, height, wanted) if width >= WIDE else _narrow(width, height, wanted)


def _narrow(width: int, height: int, wanted: Wanted) -> dict[str, Region]:
    most = max(_LEAST_PANE + 2, height * 2 // 5)
    pane = max(_LEAST_PANE, min(wanted.lines.get("run", 0) + 2, most))
    chart = max(0, height - pane - 1)
    return {
        "chart": Region(0, 0, width, chart),
        "tabs": Region(0, chart, width, 1),
        wanted.selected: Region(0, chart + 1, width, pane),
    }


def _grid(width: int, height: int, wanted: Wanted) -> dict[str, Region]:
    lines = wanted.lines
    left, right = _SIDES[WIDER if width >= WIDER else WIDE]
    bottom = max(lines.get("experts", 0) + 2, height // 5, 7 if height >= 28 else 5)
    bottom = min(bottom, height // 3)
    top = height - bottom
    middle = width - left - right
    regions = {"chart": Region(left, 0, middle, top)}
    _stack(regions, Region(0, 0, left, top), "run", "parameters", lines.get("run", 0) + 2)
    hardware = lines.get("hardware", 0) + 2
    column = Region(width - right, 0, right, top)
    measured = lines.get("capabilities", 0)
    if measured and hardware + measured + 2 + _CAPABILITY_SAMPLE <= top:
        regions["hardware"] = Region(column.x, 0, right, hardware)
        below = Region(column.x, hardware, right, top - hardware)
        _stack(regions, below, "capabilities", "sample", measured + 2)
    else:
        _stack(regions, column, "hardware", "sample", hardware)
    experts = max(_LEAST_EXPERTS, min(width * 9 // 20, width - _LEAST_LOG))
    regions["experts"] = Region(0, top, experts, bottom)
    last = "capabilities" if wanted.capabilities and "capabilities" not in regions else "log"
    regions[last] = Region(experts, top, width - experts, bottom)
    return regions


def _stack(regions: dict[str, Region], column: Region, upper: str, lower: str, wanted: int) -> None:
    """Two panes in a column: the upper one gets the rows it wants, if the lower one keeps a few."""
    x, y, width, height = column
    rows = max(_LEAST_PANE, min(wanted, height - _LEAST_TOP))
    regions[upper] = Region(x, y, width, rows)
    regions[lower] = Region(x, y + rows, width, height - rows)
