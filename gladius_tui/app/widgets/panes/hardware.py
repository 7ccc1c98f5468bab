"""The Hardware pane: the machine's current readings, with sparklines of the last minutes."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from engine.events import GpuReading, HardwareRead
from engine.run.view import RunView
from gladius_tui.app.widgets.panes.text import MUTED, Line, join_lines
from gladius_tui.format import NONE, short_size, sparkline

_LABEL = 7
"""Columns of a label."""


def hardware_pane(run: RunView, width: int, height: int) -> Content:
    """The text of the pane, cut to `height` lines."""
    now = run.hardware
    if now is None:
        return Content.styled("no reading yet", MUTED)
    if run.status in ("completed", "ended", "failed"):
        return join_lines(_idle_lines(now))
    past = list(run.readings)
    lines: list[Line] = []
    for gpu in now.gpus:
        lines += _gpu_lines(gpu, past, width)
    cpu = [reading.cpu_percent for reading in past]
    lines.append(_spark_line("CPU", f"{now.cpu_percent:.0f}%", cpu, 100, width))
    ram = [reading.ram_used for reading in past]
    lines.append(_spark_line("RAM", _of(now.ram_used, now.ram_total), ram, now.ram_total, width))
    if now.worker_rss:
        lines.append(_item("worker", short_size(now.worker_rss)))
    lines.append(_item("disk", f"{short_size(now.disk_free)} free"))
    for name, value, series in (
        ("read", now.disk_read_per_sec, [r.disk_read_per_sec for r in past]),
        ("write", now.disk_write_per_sec, [r.disk_write_per_sec for r in past]),
    ):
        top = max(1e6, *series)
        lines.append(_spark_line(name, f"{short_size(value)}/s", series, top, width))
    return join_lines(lines[: max(height, 1)])


def _idle_lines(last: HardwareRead) -> list[Line]:
    """The machine while the run is not in progress: the load of its last moment is not shown."""
    lines: list[Line] = [Content.styled("no run in progress", MUTED)]
    for gpu in last.gpus:
        lines.append(_item(f"GPU{gpu.index}", f"{gpu.name}, {short_size(gpu.total_bytes)}"))
    lines.append(_item("RAM", short_size(last.ram_total)))
    lines.append(_item("disk", f"{short_size(last.disk_free)} free"))
    return lines


def _gpu_lines(gpu: GpuReading, past: Sequence[HardwareRead], width: int) -> list[Content]:
    same = [next((g for g in r.gpus if g.index == gpu.index), None) for r in past]
    used = NONE if gpu.percent is None else f"{gpu.percent:.0f}%"
    memory = _of(gpu.used_bytes, gpu.total_bytes)
    temperature = NONE if gpu.temperature is None else f"{gpu.temperature:.0f} °C"
    limit = "" if gpu.power_limit is None else f"/{gpu.power_limit:.0f}"
    power = NONE if gpu.power is None else f"{gpu.power:.0f}{limit} W"
    percents = [g.percent if g else None for g in same]
    used_bytes = [g.used_bytes if g else None for g in same]
    return [
        _spark_line(f"GPU{gpu.index}", used, percents, 100, width),
        _spark_line("VRAM", memory, used_bytes, gpu.total_bytes, width),
        _item("", f"{temperature}  {power}"),
    ]


def _of(used: float, total: float) -> str:
    unit = short_size(total)
    return f"{used / 2**30:.0f}/{unit}" if unit.endswith("GiB") else f"{short_size(used)}/{unit}"


def _item(name: str, text: str) -> Content:
    return Content.assemble((f"{name:<{_LABEL}}", MUTED), text)


def _spark_line(
    name: str, text: str, values: Sequence[float | None], top: float, width: int
) -> Content:
    room = width - _LABEL - max(len(text), 9) - 1
    line = f" {sparkline(list(values)[-room:], 0, top).rjust(room)}" if room >= 4 else ""
    return Content.assemble((f"{name:<{_LABEL}}", MUTED), f"{text:<9}", (line, "$accent"))
