"""Questions to a finished model, with an expert of its run beside it."""

from __future__ import annotations

import msgspec
import pytest

from engine.errors import UsageError
from engine.events import JobRequest, Question, QuestionAnswered, RunEnded
from engine.run.job import JobContext
from engine.validate.ask import main
from tests.support.small_run import KeepingLink
from tests.support.validated import trained_root


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return trained_root(tmp_path_factory.mktemp("root"))[0]


def ask(workspace, **fields) -> QuestionAnswered:
    link = KeepingLink()
    question = Question(id="q", prompt="Tell of the river.", max_new_tokens=6)
    config = {"question": msgspec.to_builtins(question), **fields}
    request = JobRequest(
        job="ask",
        root=str(workspace.root),
        run_id="ask",
        attempt=1,
        config=msgspec.json.encode(config),
    )
    assert main(JobContext(link), request) == 0
    assert link.of(RunEnded)[0].status == "completed"
    (answered,) = link.of(QuestionAnswered)
    return answered


def test_the_finished_model_and_an_expert_of_its_run_answer(workspace):
    answered = ask(workspace)
    assert [(a.who, a.title) for a in answered.answers] == [
        ("student", "student"),
        ("tiny", "Tiny"),
    ]
    assert answered.id == "q" and answered.note == ""
    assert ask(workspace).answers == answered.answers  # the same seed


def test_a_checkpoint_answers_without_an_expert(workspace):
    answered = ask(workspace, checkpoint="latest", experts=[])
    assert [a.who for a in answered.answers] == ["student"]


def test_an_unknown_expert_is_refused_before_anything_is_loaded(workspace):
    with pytest.raises(UsageError, match="did you mean 'tiny'"):
        ask(workspace, experts=["tinny"])
