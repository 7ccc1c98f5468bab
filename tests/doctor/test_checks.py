"""Each doctor check: its figure, when it warns or fails, and its remedy."""

from __future__ import annotations

import dataclasses
import sys

import msgspec
import pytest

from engine.budget import TokenBudget, token_budget
from engine.config import RunConfig, TargetsConfig, load_config
from engine.doctor import experts, machine, text
from engine.doctor.check import Check
from engine.doctor.machine import check_disk, check_gpu, check_grace, check_memory, check_torch
from engine.errors import GladiusError, MissingError
from engine.events import GpuReading, KindAudit, TokenizersAudited
from engine.experts.registry import ExpertSpec, ExpertStatus
from engine.sizing import (
    GIB,
    checkpoint_bytes,
    disk_need,
    least_memory,
    parameter_count,
    scoring_memory,
    training_memory,
)
from engine.workspace import Workspace

GPU = GpuReading(index=0, name="RTX 4090", used_bytes=0, total_bytes=24 * GIB)
SPEC = ExpertSpec(
    name="big", title="Big", source="hub", repo="org/big", parameters=3_000_000_000, gated=True
)


def config(tmp_path, preset: str, *overrides: str) -> RunConfig:
    return load_config(Workspace.find(tmp_path), preset=preset, overrides=overrides)


def status(state: str = "ready", present: int = 0, expected: int = 0) -> ExpertStatus:
    return ExpertStatus(name="big", state=state, present_bytes=present, expected_bytes=expected)  # type: ignore[arg-type]


def test_torch_without_cuda_warns_where_there_is_a_gpu_and_fails_where_cuda_is_set(tmp_path):
    plain, cuda = (config(tmp_path, "1b", *o) for o in ((), ("device.device=cuda",)))
    assert check_torch("2.13.0", "", [], plain).status == "ok"
    assert check_torch("2.13.0", "12.8", [GPU], cuda).status == "ok"
    assert check_torch("2.13.0", "", [GPU], plain).status == "warn"
    assert check_torch("2.13.0", "", [], cuda).status == "fail"
    assert check_torch("", "", [], plain).status == "fail"


def test_the_version_of_torch_is_read_without_importing_it():
    from importlib import metadata

    version, cuda = machine.torch_build()
    assert version == metadata.version("torch")
    assert cuda == "" or cuda[0].isdigit()


def test_a_large_student_needs_a_gpu_and_a_small_one_does_not(tmp_path):
    check = check_gpu([], "", config(tmp_path, "1b"), [])
    assert check.status == "warn" and "GiB" in check.remedy
    assert check_gpu([], "", config(tmp_path, "nano"), []).status == "ok"
    assert check_gpu([], "", config(tmp_path, "nano", "device.device=cuda"), []).status == "fail"
    assert (
        "RTX 4090 24.0 GiB, driver 570"
        in check_gpu([GPU], "570", config(tmp_path, "1b"), []).figure
    )


@pytest.mark.parametrize(
    ("spare", "verdict"),
    [(0.1, "ok"), (-0.1, "warn"), (None, "fail")],
)
def test_memory_is_compared_with_training_with_and_without_activation_checkpointing(
    tmp_path, spare, verdict
):
    run = config(tmp_path, "1b")
    run = msgspec.structs.replace(run, targets=TargetsConfig(source="cached"))
    full, least = training_memory(run, True).total, least_memory(run, True).total
    assert least < full
    free = least - GIB if spare is None else int(full + spare * GIB)
    check = check_memory(run, [], total=64 * GIB, available=free, half=True)
    assert check.status == verdict
    assert f"{full / GIB:.1f} GiB" in check.figure
    assert bool(check.remedy) == (verdict != "ok")


def test_scoring_before_training_is_the_remedy_where_experts_fit_only_then(tmp_path):
    run = config(tmp_path, "1b", "targets.source=online")
    before = least_memory(run, True).total
    assert before > scoring_memory([SPEC.parameters], True, "cpu").total
    remedy = check_memory(run, [SPEC], total=before, available=before, half=True).remedy
    assert "--set data.corpora=[] --set targets.source=cached" in remedy
    remedy = check_memory(run, [SPEC], total=before - 1, available=before - 1, half=True).remedy
    assert "--set targets.source=cached --set optimizer.max_seq_len=1024" in remedy


def test_an_expert_loaded_together_with_the_student_adds_to_its_memory(tmp_path):
    run = config(tmp_path, "nano", "targets.source=online")
    alone = config(tmp_path, "nano")
    need = training_memory(run, True).total
    free = least_memory(run, True).total + scoring_memory([SPEC.parameters], True, "cpu").total - 1
    checks = [
        check_memory(c, [SPEC], total=64 * GIB, available=free, half=True) for c in (run, alone)
    ]
    assert [check.status for check in checks] == ["fail", "ok"]
    # alone, the expert itself is the larger need
    little = check_memory(alone, [SPEC], total=GIB, available=need, half=True)
    assert little.status == "fail"


def test_disk_counts_missing_bytes_once(tmp_path):
    run = config(tmp_path, "1b")
    need = disk_need(run, 1000).total
    missing = {"big": status("partial", present=GIB, expected=3 * GIB)}
    ready = {"big": status(present=3 * GIB, expected=3 * GIB)}
    assert check_disk(run, ready, need, 1000).status == "ok"
    assert check_disk(run, ready, need - 1, 1000).status == "fail"
    assert check_disk(run, missing, need + 2 * GIB, 1000).status == "ok"
    short = check_disk(run, missing, need + 2 * GIB - 1, 1000)
    assert short.status == "fail" and "experts 2.0 GiB" in short.figure and "clean" in short.remedy


def test_the_grace_time_is_three_times_bytes_over_speed(tmp_path):
    run = config(tmp_path, "1b")
    slow = check_grace(run, checkpoint_bytes(run.student) / 60)
    assert slow.figure.startswith("180 s") and "TimeoutStopSec=190" in slow.remedy
    assert check_grace(run, checkpoint_bytes(run.student)).status == "ok"


def test_measuring_the_disk_leaves_no_file(tmp_path):
    assert machine.write_speed(tmp_path, most=16 << 20) > 1e5
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError):
        machine.write_speed(tmp_path / "absent")


def test_the_text_check_follows_the_token_budget(tmp_path):
    run = config(tmp_path, "nano")
    budget = TokenBudget(answers=1e6, files=0.0, corpora=0.0, planned=4e6)
    assert text.check_text(budget, run).status == "ok"
    little = text.check_text(dataclasses.replace(budget, answers=1e5), run)
    assert little.status == "warn" and "--data" in little.remedy


def test_text_that_cant_be_streamed_is_a_failure_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    run = config(tmp_path, "1b")
    check = text.check_text(token_budget(run, [SPEC]), run)
    assert check.status == "fail" and "data" in check.remedy


def test_tokens_are_those_of_the_config_or_of_the_expert_phases(tmp_path):
    steps = config(tmp_path, "nano", "schedule.max_steps=10")
    assert text.least_tokens(steps, token_budget(steps, [SPEC])) == 10 * 4 * 512
    endless = config(tmp_path, "1b")
    assert text.least_tokens(endless, token_budget(endless, [SPEC] * 4)) == 1e9
    timed = config(tmp_path, "1b", "schedule.hours=5")
    assert text.least_tokens(timed, token_budget(timed, [SPEC] * 4)) is None


def test_the_speed_check_of_a_timed_run_gives_its_tokens(tmp_path):
    flops = 6 * parameter_count(config(tmp_path, "nano").student).total * 1000.0
    timed = config(tmp_path, "nano", "schedule.hours=2")
    check = text.check_speed(timed, "cpu", "bf16", flops, None)
    assert "at most 1,000 tokens/s: 7.2 million in 2 h" in check.figure


def test_scored_text_needs_disk_only_where_targets_are_cached(tmp_path):
    budget = TokenBudget(answers=1000.0, files=500.0, corpora=0.0, planned=None)
    kept = config(tmp_path, "nano", "targets.source=cached")
    assert text.scored_tokens(kept, [SPEC, SPEC], budget) == 2000
    few = config(tmp_path, "nano", "targets.source=cached", "data.max_teacher_tokens=10")
    assert text.scored_tokens(few, [SPEC, SPEC], budget) == 20
    online = config(tmp_path, "nano", "targets.source=online")
    assert text.scored_tokens(online, [SPEC, SPEC], budget) == 0


def test_a_refusal_is_reported_at_the_expert_and_a_lost_connection_at_the_hub():
    gated = MissingError("big: accept the licence on https://huggingface.co/org/big")
    missing = status("missing", expected=GIB)
    assert experts.check_hub({"big": gated}).status == "ok"
    row = experts.check_expert(SPEC, missing, gated)
    assert row.status == "fail" and row.remedy == str(gated).removeprefix("big: ")
    lost = experts.check_hub({"big": TimeoutError("no answer within 15 s")})
    assert lost.status == "fail" and "no answer" in lost.figure and "HF_ENDPOINT" in lost.remedy
    off = experts.check_hub({"big": GladiusError("big: HF_HUB_OFFLINE is set, so no; unset it")})
    assert off.status == "fail" and "unset HF_HUB_OFFLINE" in off.remedy
    row = experts.check_expert(SPEC, missing, TimeoutError())
    assert row.remedy == "gladius_train download big" and "1.0 GiB" in row.figure
    assert experts.check_hub({}).status == "note"


def test_a_hub_that_never_answers_ends_in_a_timeout(monkeypatch):
    import threading
    import time

    from engine.experts import hub

    monkeypatch.setattr(hub, "list_files", lambda spec: threading.Event().wait(30))
    began = time.monotonic()
    answers = experts.query_hub([SPEC], seconds=0.2)
    assert time.monotonic() - began < 5 and isinstance(answers["big"], TimeoutError)


@pytest.mark.parametrize(
    ("weight", "aligned", "skipped", "rating"),
    [
        (0.95, 0.1, 0, "good"),
        (0.80, 0.9, 0, "fair"),
        (0.50, 0.9, 0, "poor"),
        (None, 0.85, 0, "good"),
        (None, 0.70, 0, "fair"),
        (None, 0.30, 0, "poor"),
        (None, 0.95, 2, "fair"),
        (0.95, 0.95, 5, "poor"),
    ],
)
def test_alignment_quality_has_documented_bounds(weight, aligned, skipped, rating):
    audit = TokenizersAudited(
        expert="big",
        blocks=20 - skipped,
        skipped_blocks=skipped,
        mean_weight=weight,
        kinds=(
            KindAudit(kind="prose", positions=900, aligned=aligned),
            KindAudit(kind="code", positions=1, aligned=aligned),
        ),
    )
    assert experts.alignment_quality(audit) == rating


def test_every_row_of_a_report_fits_in_eighty_columns():
    from gladius_tui.commands.doctor_report import report_lines

    long = "one two three four five six seven eight nine ten eleven twelve " * 3
    checks = [
        Check(topic="llama-cpp-python", status=status, figure=long, remedy=long)
        for status in ("ok", "note", "warn", "fail")
    ]
    kind = KindAudit(kind="other scripts", positions=9, aligned=1.0)
    audits = [
        TokenizersAudited(
            expert="tinyllama", student="tinyllama's", blocks=20, reachable=1.0, aligned=1.0,
            mean_weight=1.0, mean_residual=0.0, kinds=(kind,) * 6,
        ),
        TokenizersAudited(expert="bert", problem=long),
    ]  # fmt: skip
    lines = report_lines("1b", checks, audits, long, width=80)
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)
    assert "can't run yet" in lines[-1]
    coloured = report_lines("1b", checks[:1], audits[:1], "", colour=True)
    assert "\x1b[32m" in coloured[0] and "can run" in coloured[-1]
    assert msgspec.json.encode(checks)
