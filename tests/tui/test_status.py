"""The lines of `status`, `models` and `dashboard`."""

from __future__ import annotations

from engine.events import (
    CapabilitiesScored,
    CapabilityScore,
    EvalDone,
    ExpertScore,
    PhasePlan,
)
from engine.experts.registry import expert_status, load_experts
from engine.run.rollup import Column
from engine.run.state import RunState
from engine.run.view import RunView
from engine.workspace import Workspace
from gladius_tui.format import bar, sparkline
from gladius_tui.status import capability_lines, models_lines, snapshot_lines, status_lines

RUNNING = RunState(
    status="training",
    preset="1b",
    phase=2,
    phases=6,
    phase_name="llama",
    current_expert="llama",
    experts_completed=("qwen",),
    plan=tuple(
        PhasePlan(index=i, name=n, expert=n) for i, n in enumerate(("qwen", "llama", "phi"), 1)
    ),
    step=12480,
    loss=2.31,
    bits_per_byte=1.234,
    current_params=1_147_766_784,
    target_params=1_147_766_784,
    training_hours=3.25,
    started_at=1000.0,
    last_checkpoint="/x/step-12000",
    last_checkpoint_step=12000,
    last_checkpoint_at=1000.0,
    pid=4127,
)


def test_status_shows_everything_that_was_promised():
    shown = "\n".join(status_lines(RUNNING, {}, now=1360.0))
    for part in (
        "training (pid 4127)",
        "2/6  llama",
        "12,480",
        "2.3100",
        "1.234 bits/byte",
        "1,147,766,784 of 1,147,766,784 (100%)",
        "3.25",
        "✓ qwen  ◆ llama  ○ phi",
        "step 12,000, 6m00 ago: /x/step-12000",
        "hardware",
    ):
        assert part in shown


def test_status_of_a_failed_run_shows_the_reason():
    state = RunState(status="failed", last_error="the runner was killed; resume it")
    assert "the runner was killed; resume it" in "\n".join(status_lines(state, {}))


def test_models_are_a_table_with_totals(tmp_path):
    ws = Workspace.find(tmp_path)
    specs = load_experts(ws)
    (ws.experts_dir / "phi").mkdir(parents=True)
    (ws.experts_dir / "phi" / "config.json").write_text("{}")
    lines = models_lines(list(specs.values()), {n: expert_status(ws, s) for n, s in specs.items()})
    assert len(lines) == len(specs) + 2
    assert (
        "Qwen/Qwen2.5-1.5B-Instruct" in lines[1]
        and "○ Missing: gladius_train download qwen" in lines[1]
    )
    assert "required, gated" in lines[2]
    assert "◐ Partial: tokenizer.json is missing; gladius_train download phi" in lines[3]
    assert lines[-1] == "0 of 6 ready, 2 B on disk"


def test_the_snapshot_adds_bars_the_curve_and_the_experts():
    columns = [
        Column(start=0, stop=10, low=4, high=5, first=5.0, last=4.0, count=10),
        Column(start=10, stop=20),
        Column(start=20, stop=30, low=2, high=3, first=3.0, last=2.0, count=10),
    ]
    score = ExpertScore(expert="qwen", bits_per_byte=1.5, kl=0.81, agreement=0.64, positions=9)
    view = RunView()
    view.take([EvalDone(bits_per_byte=1.5, scores=(score,))])
    shown = "\n".join(snapshot_lines(RUNNING, columns, view))
    assert "100M ✓  250M ✓  500M ✓  750M ✓  1B ✓" in shown
    assert "5.000 █ ▁ 2.000, steps 0 to 29" in shown
    assert "1.500 bits/byte  KL 0.810  agreement 64%" in shown


def test_the_snapshot_shows_the_last_capability_scores_of_student_and_experts():
    def row(who: str, right: int) -> CapabilitiesScored:
        scores = (CapabilityScore(capability="json", right=right, asked=4),) * 8
        return CapabilitiesScored(who=who, scores=scores)

    view = RunView()
    view.take([row("qwen", 3), row("student", 0), row("student", 1)])
    lines = capability_lines(view)
    assert [line.removeprefix("capabilities").split()[:3] for line in lines if ":" in line] == [
        ["qwen:", "json", "3/4"],
        ["student:", "json", "1/4"],
    ]
    assert max(map(len, lines)) <= 80
    assert capability_lines(RunView()) == []


def test_sparklines_and_bars_accept_any_input():
    assert sparkline([]) == "" and sparkline([None, None]) == "  "
    assert sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([1.0, None, 2.0]) == "▁ █"
    assert bar(-1, 4) == "▁▁▁▁" and bar(0.5, 4) == "▇▇▁▁" and bar(9, 4) == "▇▇▇▇"
