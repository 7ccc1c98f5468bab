"""The capability table: choice of held-out prompts and scoring of answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.capabilities import choose_measured, is_right, score, score_expert
from engine.events import CapabilitiesScored, StepDone
from engine.generation import Answer
from engine.prompts.prompt import (
    CodeCheck,
    FormatCheck,
    NumberCheck,
    Prompt,
    RefusalCheck,
    is_reserved,
)
from engine.text.examples import Message
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink, make_config, make_root, make_trainer, train
from tests.support.tiny_expert import SPEC, make_expert

SUM = NumberCheck(value=4)


def _prompt(capability: str, text: str = "what is two and two", check=SUM) -> Prompt:  # type: ignore[no-untyped-def]
    return Prompt(text, capability, (Message("user", text),), check=check)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"))
    return load_teacher(folder, SPEC, "cpu", torch.float32)


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return make_root(tmp_path)


def _nothing(_: object) -> None:
    pass


class FixedAnswers(Teacher):
    """Gives fixed answers and counts its calls."""

    answers: dict[str, Answer]
    calls = 0

    def generate(self, conversations, **settings):  # type: ignore[no-untyped-def]
        self.calls += 1
        assert settings["temperature"] == 0
        return [self.answers[chat[-1].content] for chat in conversations]


def _with_answers(teacher: Teacher, answers: dict[str, Answer]) -> FixedAnswers:
    generator = FixedAnswers(teacher.model, teacher.tokenizer, teacher.spec)
    generator.answers = answers
    return generator


def test_correct_answers_are_counted_by_capability(teacher: Teacher) -> None:
    prompts = [_prompt("math", "a"), _prompt("math", "b"), _prompt("code", "c")]
    answers = {"a": Answer("It is 4.", True), "b": Answer("It is 5.", True), "c": Answer("4", True)}
    row = score(_with_answers(teacher, answers), prompts, 8, _nothing, "me")
    found = [(s.capability, s.right, s.asked) for s in row.scores]
    assert row.who == "me" and found == [("math", 1, 2), ("code", 1, 1)]


def test_a_cut_answer_is_wrong_unless_the_text_is_open() -> None:
    assert not is_right(_prompt("math"), Answer("It is 4", False))
    open_text = _prompt("fluency", check=FormatCheck(words=(3, 100)))
    assert is_right(open_text, Answer("The sea was calm that", False))
    assert not is_right(open_text, Answer("", True))
    assert not is_right(_prompt("safety", check=RefusalCheck(refuse=True)), Answer("Sure!", True))
    code = _prompt("code", check=CodeCheck(tests=("assert f() == 1",)))
    assert is_right(code, Answer("```python\ndef f():\n    return 1\n```", True))
    assert not is_right(code, Answer("```python\ndef f():\n    return 2\n```", True))


def test_prompts_that_do_not_fit_are_not_used() -> None:
    def length(prompt: Prompt) -> int:
        return len(prompt.messages[-1].content)

    chosen = choose_measured(length, ["math", "json"], 5, 140)
    assert len(chosen) == 10 and max(map(length, chosen)) <= 140
    assert all(is_reserved(prompt.group) for prompt in chosen)
    assert choose_measured(length, ["math"], 5, 10) == []


def test_an_experts_scores_are_cached(teacher: Teacher, tmp_path: Path) -> None:
    generator = _with_answers(teacher, {"a": Answer("4", True)})
    prompts = [_prompt("math", "a")]

    def row(state: str = "one") -> CapabilitiesScored:
        return score_expert(tmp_path, "tiny", state, prompts, 8, lambda: generator, _nothing)

    assert row() == row() and generator.calls == 1
    row("another state of its files")
    assert generator.calls == 2
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-5])
    assert row().scores == row().scores and generator.calls == 3


FIELDS = {
    "schedule__capability_prompts": 2,
    "schedule__capability_tokens": 5,
    "schedule__eval_interval": 4,
    "schedule__max_steps": 8,
    "student__max_position_embeddings": 256,
    "optimizer__max_seq_len": 256,
}


def test_capability_scores_do_not_change_training(ws: Workspace) -> None:
    """The losses are bit-identical with and without the scores."""
    losses = {}
    for count in (2, 0):
        link = KeepingLink()
        config = make_config(ws, **{**FIELDS, "schedule__capability_prompts": count})
        trainer = make_trainer(ws, config, link, ws.root / f"checkpoints-{count}")
        if count:
            assert trainer.evaluator.data.capability_prompts
        assert trainer.run() == "completed"
        losses[count] = [(e.loss, e.grad_norm) for e in link.of(StepDone)]
        rows = link.of(CapabilitiesScored)
        # Before the first step, at each interval, and after each phase.
        students = [row.step for row in rows if row.who == "student"]
        assert students == ([0, 4, 5, 8] if count else [])
    assert losses[2] == losses[0]


def test_a_run_reports_each_experts_scores_once(ws: Workspace) -> None:
    link = KeepingLink()
    assert train(ws, make_config(ws, **FIELDS), link) == 0
    rows = link.of(CapabilitiesScored)
    assert [row.who for row in rows].count("tiny") == 1 and rows[0].who == "tiny"
    asked = {score.capability: score.asked for score in rows[0].scores}
    assert asked and set(asked.values()) <= {1, 2}
    assert {s.capability for s in rows[-1].scores} == set(asked)
