"""Panes: every width is kept to, and a value that nobody told is a dash."""

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
from gladius_tui.app.widgets.panes import (
    abilities_pane,
    experts_pane,
    hardware_pane,
    log_pane,
    mfu,
    parameters_pane,
    run_pane,
    sample_pane,
    summary_line,
)
from gladius_tui.format import short_size, sparkline, time_ago
from tests.support.recording import recorded

EVENTS = recorded()


def board(count: int = len(EVENTS)) -> RunView:
    made = RunView()
    made.take(EVENTS[:count])
    return made


@pytest.mark.parametrize("width", [26, 29, 38, 56, 76, 120])
@pytest.mark.parametrize("count", [0, 3, 60, 200, len(EVENTS)])
def test_no_line_is_wider_than_its_pane(width, count):
    seen = board(count)
    texts = [
        run_pane(seen, width, 1795477000.0),
        hardware_pane(seen, width, 9),
        log_pane(seen, width, 9),
    ]
    if width >= 29:  # the least that these get
        texts.append(parameters_pane(seen, width))
    if width >= 38 and count:
        texts.append(experts_pane(seen, width, 9))
    for text in texts:
        assert max(line.cell_length for line in text.split("\n")) <= width, text.plain


def test_what_nobody_told_is_a_dash():
    empty = RunView()
    text = run_pane(empty, 40, 0.0).plain
    for name in ("phase", "step", "loss", "lr", "held-out", "best", "checkpoint", "all", "MFU"):
        assert f"{name} –" in text, text
    assert "0" not in text
    assert "–" in parameters_pane(empty, 40).plain
    assert "no reading" in hardware_pane(empty, 30, 5).plain
    assert summary_line(None).startswith("no run yet")


def able(who: str, *right: int) -> CapabilitiesScored:
    scores = zip(CAPABILITIES, right, strict=False)
    return CapabilitiesScored(
        who=who,
        scores=tuple(CapabilityScore(capability=c, right=n, asked=4) for c, n in scores),
    )


def test_what_the_student_can_do_stands_beside_what_the_best_expert_can():
    seen = RunView()
    assert "measured at every evaluation" in abilities_pane(seen, 60, 6).plain
    seen.take([able("one", 3, 2), able("two", 1, 4), able("student", 2, 1), able("student", 1, 1)])
    lines = abilities_pane(seen, 60, 4).plain.splitlines()
    assert lines[0].split() == ["tool", "calling", "json"]
    assert lines[1].split() == ["student", "↓1/4", "1/4"]
    assert lines[2].split() == ["best", "expert", "3/4", "4/4"]
    assert lines[3].split() == ["student's", "best", "2/4", "1/4"]
    narrow = abilities_pane(seen, 34, 4)
    assert [line.split() for line in narrow.plain.splitlines()[1:]] == [
        ["tool", "callin", "↓1/4", "3/4", "2/4"],
        ["json", "1/4", "4/4", "1/4"],
    ]
    # What it could do before and can no more is marked.
    assert [span.style for span in narrow.spans].count("$text-warning") == 1


@pytest.mark.parametrize("width", [26, 38, 56, 76, 116, 196])
@pytest.mark.parametrize("height", [3, 5, 7, 9])
def test_abilities_keep_to_their_room(width, height):
    seen = RunView()
    seen.take([able("one", *range(5, 13)), able("student", *range(8))])
    text = abilities_pane(seen, width, height)
    assert max(line.cell_length for line in text.split("\n")) <= width
    assert len(text.plain.splitlines()) <= height
    if width >= 76 and height >= 5:
        assert "instructions" in text.plain


def test_a_gpu_is_shown_with_what_it_tells_and_a_dash_for_what_not():
    gpu = GpuReading(index=0, name="H100", used_bytes=61 << 30, total_bytes=80 << 30, percent=97)
    seen = RunView()
    reading = HardwareRead(cpu_percent=34, ram_used=22 << 30, ram_total=128 << 30, gpus=(gpu,))
    seen.take([reading])
    text = hardware_pane(seen, 40, 9).plain
    assert "GPU0   97%" in text and "61/80 GiB" in text and "22/128 GiB" in text
    assert "-  -" in text, "neither temperature nor power"


def test_mfu_is_known_only_where_the_device_s_peak_is():
    seen = board(300)
    assert mfu(seen) is None
    h100 = GpuReading(index=0, name="NVIDIA H100 80GB HBM3", used_bytes=1, total_bytes=2)
    seen.take([HardwareRead(cpu_percent=1, ram_used=1, ram_total=2, gpus=(h100,))])
    seen.device, seen.precision, seen.current_params = "cuda", "bf16", 1_000_000_000
    assert seen.last is not None
    seen.last = msgspec.structs.replace(seen.last, tokens_per_sec=50_000.0)
    assert mfu(seen) == pytest.approx(6 * 1e9 * 5e4 / 989e12)
    other = msgspec.structs.replace(h100, name="a card of tomorrow")
    seen.take([HardwareRead(cpu_percent=1, ram_used=1, ram_total=2, gpus=(other,))])
    assert mfu(seen) is None


def test_a_student_s_control_characters_do_not_reach_the_terminal():
    seen = board()
    seen.take([SampleDrawn(prompt="p\x1b[2J", text="a\x1b]0;x\x07b\nc")])
    text = sample_pane(seen).plain
    assert not any(c < " " and c != "\n" for c in text) and "\nc" in text


def test_a_loss_that_is_no_number_is_a_dash():
    seen = board(200)
    last = next(e for e in reversed(EVENTS[:200]) if isinstance(e, StepDone))
    seen.take([msgspec.structs.replace(last, seq=0, loss=None)])
    assert "loss –" in run_pane(seen, 60, 0.0).plain


def test_why_it_failed_stands_at_the_top():
    seen = board(200)
    seen.take([RunEnded(status="failed", reason="out of memory; use a smaller student")])
    assert "out of memory" in run_pane(seen, 60, 0.0).plain.splitlines()[1]


def test_sparklines_keep_to_their_scale():
    assert sparkline([0, 50, 100, None], 0, 100) == "▁▅█ "
    assert sparkline([-5, 200], 0, 100) == "▁█"


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
