"""The quality metrics, on a real tiny model and by rule."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import torch

from engine.checkpoint.model_record import RECORD
from engine.distill.teacher.target_store import ShardKey, TargetStore
from engine.errors import UsageError
from engine.events import (
    CapabilitiesScored,
    CapabilityScore,
    CheckDone,
    ReportDone,
    RunEnded,
    RunStarted,
    Stop,
)
from engine.run.history import History
from engine.run.job import JobStopped
from engine.validate.check import Check, quality_row, run_check
from engine.validate.choice import ValidateConfig
from engine.validate.quality import tasks as lm_eval_tasks
from engine.validate.quality.capabilities import RunSettings, read_run_settings
from engine.validate.quality.held_out import Subset
from engine.validate.quality.questions import load_questions, repeated_ngrams
from engine.validate.quality.tool_calls import (
    ToolPrompt,
    conversation,
    load_prompts,
    load_tools,
    score_answer,
)
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink
from tests.support.validated import copy_model, trained_root, validate

PROMPT = ToolPrompt(
    id="x",
    offered=("weather", "set_timer", "switch_light"),
    query="Will it rain in Bergen?",
    tool="weather",
    arguments={"city": "Bergen"},
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return trained_root(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def outcome(trained):
    return validate(trained[0])


def test_a_student_after_three_steps_is_sound_and_of_low_quality(outcome):
    report = outcome.report
    assert (report.structure, report.quality) == ("sound", "low")
    assert report.verdict.startswith("structurally sound, quality low (")
    assert outcome.end == outcome.link.of(RunEnded)[-1] and outcome.end.exit_code == 0
    assert not outcome.of("fail", "quality")


def test_held_out_metrics_equal_those_of_the_last_evaluation(trained, outcome):
    score = trained[1].scores[0]
    number = {name: row.number for name, row in outcome.rows.items()}
    assert number["bits_per_byte"] == pytest.approx(trained[1].bits_per_byte, rel=1e-3)
    assert number["bits_per_byte:tiny"] == pytest.approx(score.bits_per_byte, rel=1e-3)
    assert number["kl:tiny"] == pytest.approx(score.kl, rel=1e-3)
    assert number["agreement:tiny"] == pytest.approx(score.agreement, abs=0.01)
    folder = trained[0].experts_cache_dir / "tiny"
    own = _held_out_store(folder).teacher_bits_per_byte()
    assert f"tiny has {own:.3f}" in outcome.rows["bits_per_byte:tiny"].meaning


def _held_out_store(folder, part="held_out") -> TargetStore:
    path = next(folder.glob(f"*/{part}"))
    manifest = msgspec.json.decode((path / "manifest.json").read_bytes())
    store = TargetStore(path, msgspec.convert(manifest["key"], ShardKey))
    store.open()
    return store


def test_a_large_student_is_measured_on_evenly_spaced_blocks(trained):
    store = _held_out_store(trained[0].experts_cache_dir / "tiny", "train")
    total = int(store.token_counts().sum())
    every, half, one = (Subset(store, most) for most in (total, total // 2, 1))
    assert len(every) == len(store) and len(one) == 1 < len(half) < len(every)
    assert half.token_counts().tolist() == store.token_counts()[list(half.blocks)].tolist()
    assert torch.equal(half.targets([1], 0).ids, store.targets([half.blocks[1]], 0).ids)


def test_every_answer_is_in_the_report_in_full(outcome):
    generations = outcome.report.generations
    assert len(generations) == len(load_questions()) + len(load_prompts())
    routing = next(g for g in generations if g.check == "routing")
    assert routing.prompt == "Route this query to a tool: search for gold analysis"
    assert 0 < routing.tokens <= 96
    assert outcome.rows["routing"].detail.startswith(f"> {routing.prompt}\n")
    assert outcome.rows["capabilities"].detail.startswith("> What are your capabilities?\n")


def test_capability_scores_are_information_only(outcome):
    made = outcome.rows["abilities"]
    assert (made.bound, made.verdict) == ("", "pass") and 0 <= made.number <= 1
    assert " of " in made.value


def test_run_settings_have_the_scores_of_the_runs_experts(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    assert read_run_settings(ws) == RunSettings(4, 64, None, {})
    history = History(ws.history_file)
    history.begin_run("r", "train", b"{}")
    score = CapabilityScore(capability="json", right=3, asked=9)
    config = {"schedule": {"capability_prompts": 9, "capability_tokens": 33}}
    events = [
        RunStarted(run_id="r", job="train", attempt=1, pid=1, config=config),
        CapabilitiesScored(who="qwen", scores=(score,)),
        CapabilitiesScored(who="student", scores=(score,)),
    ]
    history.append("r", history.begin_attempt("r"), events)
    history.close()
    assert read_run_settings(ws) == RunSettings(9, 33, None, {"qwen": {"json": score}})


def test_speeds_are_information_only(outcome):
    for name in ("prompt_speed", "generation_speed"):
        made = outcome.rows[name]
        assert made.number is not None and made.number > 0
        assert (made.bound, made.verdict) == ("", "pass")


def test_the_next_report_is_compared_with_this_one(trained, outcome, few_prompts):
    again = validate(trained[0])
    assert again.rows["bits_per_byte"].former == outcome.rows["bits_per_byte"].value
    previous = again.report.previous
    assert previous is not None and previous.same_weights and previous.quality == "low"
    assert {change.change for change in previous.changes} == {"same"}
    assert again.rows["comparison"].value.startswith("0 better, 0 worse")


def test_a_model_without_its_runs_held_out_text_is_not_measured(trained, tmp_path, few_prompts):
    model = copy_model(trained[0], tmp_path)
    record = (model / RECORD).read_text()
    (model / RECORD).unlink()
    outcome = validate(trained[0], model=str(model))
    assert outcome.rows["bits_per_byte"].verdict == "skip"
    assert "no record of its run's held-out text" in outcome.rows["bits_per_byte"].meaning
    data = msgspec.json.decode(record)
    data["held_out"] = {"tiny": "../../../etc", "other": "gone/0/held_out"}
    (model / RECORD).write_bytes(msgspec.json.encode(data))
    outcome = validate(trained[0], model=str(model))
    assert "outside the cache" in outcome.rows["bits_per_byte:tiny"].meaning
    assert "no longer in" in outcome.rows["kl:other"].meaning
    assert outcome.rows["bits_per_byte"].verdict == "skip"


def test_stop_ends_the_validation_without_a_report(trained, tmp_path):
    model = copy_model(trained[0], tmp_path)

    def react(event):
        return [Stop()] if isinstance(event, CheckDone) and event.name == "loads" else []

    outcome = validate(trained[0], KeepingLink(react), model=str(model))
    assert outcome.end.status == "stopped" and not outcome.link.of(ReportDone)
    assert not (model / "validation.json").exists()


def test_a_report_that_cannot_be_written_beside_the_model_goes_to_the_logs(
    trained, tmp_path, few_prompts
):
    model = copy_model(trained[0], tmp_path)
    (model / "validation.json").mkdir()  # blocks the file, also for root
    outcome = validate(trained[0], model=str(model))
    path = outcome.link.of(ReportDone)[-1].path
    assert path.startswith(str(trained[0].logs_dir)) and outcome.report.structure == "sound"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"tool": "weather", "arguments": {"city": "Bergen"}}', (1, 1, 1)),
        (' \n{"name": "weather", "arguments": {"city": " bergen", "day": "today"}}\n', (1, 1, 1)),
        ('```json\n{"tool": "weather", "arguments": {"city": "Bergen"}}\n```', (1, 1, 1)),
        ('{"tool": "weather", "arguments": {"city": "Oslo"}}', (1, 1, 0)),
        ('{"tool": "set_timer", "arguments": {"minutes": 5}}', (1, 1, 0)),
        ('{"tool": "set_timer", "arguments": {"minutes": 0}}', (1, 0, 0)),
        ('{"tool": "set_timer", "arguments": {"minutes": "5"}}', (1, 0, 0)),
        ('{"tool": "switch_light", "arguments": {"room": "hall", "on": 1}}', (1, 0, 0)),
        ('{"tool": "weather", "arguments": {"town": "Bergen"}}', (1, 0, 0)),
        ('{"tool": "weather", "arguments": {"city": "Bergen", "x": 1}}', (1, 0, 0)),
        ('{"tool": "weather", "arguments": "Bergen"}', (1, 0, 0)),
        ('{"tool": "search", "arguments": {"query": "Bergen"}}', (1, 0, 0)),
        ('{"tool": 3}', (1, 0, 0)),
        ('[{"tool": "weather", "arguments": {"city": "Bergen"}}]', (1, 1, 1)),
        ('"weather"', (1, 0, 0)),
        ('Sure: {"tool": "weather", "arguments": {"city": "Bergen"}}', (0, 0, 0)),
        ('{"tool": "weather", "arguments": {"city": "Bergen"}} and more', (0, 0, 0)),
        ("{'tool': 'weather'}", (0, 0, 0)),
        ('{"tool": "weather", "arguments": {"city": NaN}}', (0, 0, 0)),
        ("[" * 100_000, (0, 0, 0)),
        ("", (0, 0, 0)),
    ],
)
def test_an_answer_is_scored_as_json_valid_call_and_correct_call(answer, expected):
    score = score_answer(answer, PROMPT, load_tools())
    assert (score.is_json, score.is_valid, score.is_correct) == tuple(map(bool, expected))
    assert bool(score.reason) == (expected != (1, 1, 1))


def test_the_tool_prompts_that_ship_can_be_answered_correctly():
    import jsonschema

    tools, prompts = load_tools(), load_prompts()
    assert len(prompts) >= 50 and len({p.query for p in prompts}) == len(prompts)
    assert len({p.id for p in prompts}) == len(prompts)
    assert {p.tool for p in prompts} == set(tools)
    for tool in tools.values():
        jsonschema.Draft202012Validator.check_schema(tool.parameters)
    for prompt in prompts:
        assert prompt.tool in prompt.offered and set(prompt.offered) <= set(tools)
        schema = tools[prompt.tool].parameters
        fillers = {"string": "x", "number": 1, "integer": 1, "boolean": True}
        answer = dict(prompt.arguments)
        for name in schema["required"]:
            shape = schema["properties"][name]
            wanted = shape["enum"][0] if "enum" in shape else fillers.get(shape.get("type"))
            if "pattern" in shape and name not in answer:
                pytest.fail(f"{prompt.id}: {name} follows a pattern: say what it must be")
            answer.setdefault(name, wanted)
        text = msgspec.json.encode({"tool": prompt.tool, "arguments": answer}).decode()
        assert score_answer(text, prompt, tools).is_correct, (prompt, text)
        assert all(name in conversation(prompt, tools)[0].content for name in prompt.offered)


def test_repeated_ngrams_counts_ngrams_that_occurred_before():
    assert repeated_ngrams([1, 2, 3, 4, 5]) == (0, 2)
    assert repeated_ngrams([1, 2, 3]) == (0, 0)
    assert repeated_ngrams([7] * 10) == (6, 7)
    assert repeated_ngrams([1, 2, 1, 2, 1, 2]) == (1, 3)


def run(group, check) -> list[CheckDone]:
    return list(run_check(Check(group, "x", "X", check), None))  # type: ignore[arg-type]


def test_a_check_that_raises_fails_in_structure_and_is_skipped_in_quality():
    def broken(context):
        raise ValueError("a\nb")

    (made,) = run("structural", broken)
    assert made.verdict == "fail" and made.value == "ValueError: a b"
    (made,) = run("quality", broken)
    assert made.verdict == "skip" and "ValueError: a b" in made.meaning
    assert quality_row("x", "X", passed=False, value="", meaning="").verdict == "warn"

    def stopped(context):
        raise JobStopped

    with pytest.raises(JobStopped):
        run("structural", stopped)


def test_tasks_without_the_harness_are_skipped_with_the_install_command(monkeypatch):
    monkeypatch.setattr(lm_eval_tasks, "is_installed", lambda: False)
    lm_eval_tasks.refuse_unknown(["arc_easy"])
    context = SimpleNamespace(config=ValidateConfig(tasks=("arc_easy",)))
    (made,) = lm_eval_tasks.check_tasks(context)  # type: ignore[arg-type]
    assert made.verdict == "skip" and "pip install 'lm-eval[hf]'" in made.meaning


def test_the_results_of_the_harness_become_rows(trained, tmp_path, few_prompts):
    """Where lm-evaluation-harness is installed, on a task of our own."""
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    data = tmp_path / "data.jsonl"
    data.write_text(
        '{"q": "Grass is", "choices": ["green", "loud"], "a": 0}\n'
        '{"q": "Two and two make", "choices": ["seven", "four"], "a": 1}\n'
    )
    (tmp_path / "toy.yaml").write_text(
        f"task: gladius_toy\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: {data}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: '{{q}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{a}}'\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    with pytest.raises(UsageError, match="unknown to lm-evaluation-harness: no_such_task"):
        validate(trained[0], tasks=["no_such_task"])
    outcome = validate(trained[0], tasks=["gladius_toy"], tasks_path=str(tmp_path))
    made = outcome.rows["task:gladius_toy:acc,none"]
    assert made.number in (0.0, 0.5, 1.0) and made.title == "gladius_toy acc"
