"""Panes fit their width, and show a dash for an unknown value."""

from __future__ import annotations

import msgspec
import pytest

from engine.events import (
    CapabilitiesScored,
    CapabilityScore,
    GpuReading,
    HardwareRead,
    RunEnded,
    SampleDrawn,
    StepDone,
)
from engine.experts.registry import CAPABILITIES
from engine.run.view import RunView
from gladius_tui.app.model.mfu import mfu
from gladius_tui.app.widgets.panes.capabilities import capabilities_pane
from gladius_tui.app.widgets.panes.experts import experts_pane
from gladius_tui.app.widgets.panes.hardware import hardware_pane
from gladius_tui.app.widgets.panes.log import entry_lines
from gladius_tui.app.widgets.panes.parameters import parameters_pane
from gladius_tui.app.widgets.panes.run import run_pane, summary_line
from gladius_tui.app.widgets.panes.sample import sample_pane
from gladius_tui.format import NONE, short_size, sparkline, time_ago
from tests.support.recording import recorded

EVENTS = recorded()


def run_after(count: int = len(EVENTS)) -> RunView:
    run = RunView()
    run.take(EVENTS[:count])
    return run


@pytest.mark.parametrize("width", [26, 29, 38, 56, 76, 120])
@pytest.mark.parametrize("count", [0, 3, 60, 200, len(EVENTS)])
def test_no_line_is_wider_than_its_pane(width, count):
    run = run_after(count)
    texts = [
        run_pane(run, width, 1795477000.0).fold(width)[0],
        hardware_pane(run, width, 9),
        *(line for entry in run.log for line in entry_lines(entry, width)),
        *(line for entry in run.log for line in entry_lines(entry, width, "step", whole=True)),
    ]
    if width >= 29:  # the least that these get
        texts.append(parameters_pane(run, width))
    if width >= 38 and count:
        texts.append(experts_pane(run, width, 9))
    for text in texts:
        assert max(line.cell_length for line in text.split("\n")) <= width, text.plain


def test_an_unknown_value_is_a_dash():
    empty = RunView()
    text = run_pane(empty, 40, 0.0).plain
    assert "preparing" in text and NONE not in text, "what is not known yet has no row"
    assert NONE in parameters_pane(empty, 40).plain
    assert "no reading" in hardware_pane(empty, 30, 5).plain
    assert summary_line(None).startswith("no run yet")


def scored(who: str, *right: int) -> CapabilitiesScored:
    scores = zip(CAPABILITIES, right, strict=False)
    return CapabilitiesScored(
        who=who,
        scores=tuple(CapabilityScore(capability=c, right=n, asked=4) for c, n in scores),
    )


def test_capabilities_of_the_student_and_the_best_expert():
    run = RunView()
    assert "measured at every evaluation" in capabilities_pane(run, 60, 6).plain
    run.take(
        [scored("one", 3, 2), scored("two", 1, 4), scored("student", 2, 1), scored("student", 1, 1)]
    )
    lines = capabilities_pane(run, 60, 4).plain.splitlines()
    assert lines[0].split() == ["tool", "calling", "json"]
    assert lines[1].split() == ["student", "↓1/4", "1/4"]
    assert lines[2].split() == ["best", "expert", "3/4", "4/4"]
    assert lines[3].split() == ["student's", "best", "2/4", "1/4"]
    narrow = capabilities_pane(run, 34, 4)
    assert [line.split() for line in narrow.plain.splitlines()[1:]] == [
        ["tool", "callin", "↓1/4", "3/4", "2/4"],
        ["json", "1/4", "4/4", "1/4"],
    ]
    # A capability that has become worse is marked.
    assert [span.style for span in narrow.spans].count("$text-warning") == 1


@pytest.mark.parametrize("width", [26, 38, 56, 76, 116, 196])
@pytest.mark.parametrize("height", [3, 5, 7, 9])
def test_capabilities_fit_their_pane(width, height):
    run = RunView()
    run.take([scored("one", *range(5, 13)), scored("student", *range(8))])
    text = capabilities_pane(run, width, height)
    assert max(line.cell_length for line in text.split("\n")) <= width
    assert len(text.plain.splitlines()) <= height
    if width >= 76 and height >= 5:
        assert "instructions" in text.plain


def test_a_gpu_is_shown_with_a_dash_for_unknown_readings():
    gpu = GpuReading(index=0, name="H100", used_bytes=61 << 30, total_bytes=80 << 30, percent=97)
    run = RunView()
    reading = HardwareRead(cpu_percent=34, ram_used=22 << 30, ram_total=128 << 30, gpus=(gpu,))
    run.take([reading])
    text = hardware_pane(run, 40, 9).plain
    assert "GPU0   97%" in text and "61/80 GiB" in text and "22/128 GiB" in text
    assert f"{NONE}  {NONE}" in text, "neither temperature nor power"


def test_mfu_needs_a_device_with_a_known_peak():
    run = run_after(300)
    assert mfu(run) is None
    h100 = GpuReading(index=0, name="NVIDIA H100 80GB HBM3", used_bytes=1, total_bytes=2)
    run.take([HardwareRead(cpu_percent=1, ram_used=1, ram_total=2, gpus=(h100,))])
    run.device, run.precision, run.current_params = "cuda", "bf16", 1_000_000_000
    assert run.last is not None
    run.last = msgspec.structs.replace(run.last, tokens_per_sec=50_000.0)
    assert mfu(run) == pytest.approx(6 * 1e9 * 5e4 / 989e12)
    other = msgspec.structs.replace(h100, name="a card of tomorrow")
    run.take([HardwareRead(cpu_percent=1, ram_used=1, ram_total=2, gpus=(other,))])
    assert mfu(run) is None


def test_control_characters_of_a_sample_do_not_reach_the_terminal():
    run = run_after()
    run.take([SampleDrawn(prompt="p\x1b[2J", text="a\x1b]0;x\x07b\nc")])
    text = sample_pane(run).plain
    assert not any(c < " " and c != "\n" for c in text) and "\nc" in text


def test_a_missing_loss_is_a_dash():
    run = run_after(200)
    last = next(e for e in reversed(EVENTS[:200]) if isinstance(e, StepDone))
    run.take([msgspec.structs.replace(last, seq=0, loss=None)])
    assert f"loss {NONE}" in run_pane(run, 60, 0.0).plain


def test_the_reason_of_a_failure_is_shown_at_the_top():
    run = run_after(200)
    run.take([RunEnded(status="failed", reason="out of memory; use a smaller student")])
    assert "out of memory" in run_pane(run, 60, 0.0).plain.splitlines()[1]


def test_sparklines_keep_to_their_scale():
    assert sparkline([0, 50, 100, None], 0, 100) == "▁▅█ "
    assert sparkline([97, 98, 99], 0, 99) == "███"


def test_ages_and_amounts_are_short():
    assert [time_ago(s) for s in (5, 120, 7200, 3e5)] == [
        "just now",
        "2 min ago",
        "2 h ago",
        "3 days ago",
    ]
    assert [short_size(b) for b in (12, 2048, 310 << 30, 5 << 20)] == [
        *("12 B", "2.0 KiB", "310 GiB", "5.0 MiB"),
    ]
