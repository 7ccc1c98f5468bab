"""Questions to a student in training: answered between two steps, with no effect on the run."""

from __future__ import annotations

import hashlib
import shutil

import pytest
import torch

from engine.events import (
    EvalDone,
    Pause,
    Question,
    QuestionAnswered,
    Resume,
    RunEnded,
    StepDone,
)
from engine.run.job import JobContext
from tests.support.small_run import KeepingLink, make_config, make_root, train


@pytest.fixture
def ws(tmp_path):
    return make_root(tmp_path)


def question(name: str, **fields) -> Question:
    return Question(id=name, prompt="Tell of the river.", max_new_tokens=6, **fields)


def trace(ws, link: KeepingLink) -> dict[str, object]:
    """Losses and evaluations to the last bit, and digests of the last checkpoint."""
    folder = ws.checkpoints_dir / "step-000000006"
    digests = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "optimizer.safetensors", "rng.safetensors")
    }
    return {
        "losses": [event.loss.hex() for event in link.of(StepDone)],
        "evaluations": [event.bits_per_byte.hex() for event in link.of(EvalDone)],
        **digests,
    }


@pytest.mark.parametrize("source", ["cached", "online"])
def test_a_run_with_questions_is_exactly_the_run_without(ws, source):
    config = make_config(
        ws,
        schedule__max_steps=6,
        schedule__eval_interval=3,
        targets__source=source,
        optimizer__activation_checkpointing="true",
        optimizer__micro_batch_size=2,
    )
    plain = KeepingLink()
    assert train(ws, config, plain) == 0
    expected = trace(ws, plain)
    shutil.rmtree(ws.checkpoints_dir)

    def react(event):
        if isinstance(event, StepDone) and event.step in (2, 3):
            return [question(f"q{event.step}")]
        if isinstance(event, StepDone) and event.step == 4:
            return [Pause(), question("paused", temperature=1.5, seed=3), Resume()]
        return []

    asked = KeepingLink(react)
    assert train(ws, config, asked) == 0
    answers = asked.of(QuestionAnswered)
    assert [answer.id for answer in answers] == ["q2", "q3", "paused"]
    who = [answer.who for answer in answers[0].answers]
    assert who == (["student", "tiny"] if source == "online" else ["student"])
    assert ("no expert is in memory" in answers[0].note) == (source == "cached")
    assert trace(ws, asked) == expected


def test_a_question_waits_for_the_end_of_the_step(ws):
    """The event comes between two StepDone, with the step's weights."""
    config = make_config(ws, schedule__max_steps=3)
    link = KeepingLink(lambda e: [question("q")] if isinstance(e, StepDone) and e.step == 2 else [])
    train(ws, config, link)
    names = [type(event).__name__ for event in link.events]
    at = names.index("QuestionAnswered")
    assert names[:at].count("StepDone") == 2 and "StepDone" in names[at:]


def test_before_the_student_exists_a_question_is_declined():
    link = KeepingLink()
    ctx = JobContext(link)
    link.ask(question("early"))
    ctx.checkpoint_point("preparing")
    (answer,) = link.of(QuestionAnswered)
    assert answer.id == "early" and "ask again" in answer.note and not answer.answers


def test_a_prompt_that_does_not_fit_is_declined_and_the_run_goes_on(ws):
    long = Question(id="long", prompt="river " * 500)
    config = make_config(ws, schedule__max_steps=3)
    link = KeepingLink(lambda e: [long] if isinstance(e, StepDone) and e.step == 1 else [])
    train(ws, config, link)
    (answer,) = link.of(QuestionAnswered)
    assert "ask a shorter question" in answer.note
    assert link.of(RunEnded)[0].status == "completed" and torch.is_grad_enabled()
