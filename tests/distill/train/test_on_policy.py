"""On-policy rounds: the student writes, the expert judges, and a resumed run is the same run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.distill.data.cursors import Cursor
from engine.distill.teacher.soft_targets import OnPolicyTargets, SoftTargets
from engine.distill.train.losses import distillation_loss
from engine.distill.train.on_policy import PASSES, OnPolicySource
from engine.errors import UsageError
from engine.events import LogLine, StepDone, Stop
from engine.prompts.prompt import is_reserved, load_prompts
from engine.workspace import Workspace
from tests.support.small_run import (
    CPU,
    KeepingLink,
    make_config,
    make_root,
    make_trainer,
    on_policy_rounds,
    prepare,
    train,
    weights,
)

OWN = {
    "schedule__on_policy_share": 0.5,
    "schedule__on_policy_from": 0.25,
    "schedule__on_policy_interval": 6,
    "schedule__on_policy_answers": 6,
    "schedule__max_steps": 24,
    "data__max_answer_tokens": 12,
    "data__generation_batch": 4,
}


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return make_root(tmp_path)


def wrote(link: KeepingLink) -> list[int]:
    """Steps after which the student wrote a round."""
    return [
        e.step for e in link.of(LogLine) if e.text.startswith("on-policy round: the student wrote")
    ]


def losses(link: KeepingLink) -> dict[int, str]:
    return {event.step: event.loss.hex() for event in link.of(StepDone) if event.loss is not None}


# --- The loss --------------------------------------------------------------


def test_of_its_own_text_the_student_learns_the_experts_opinion_alone():
    generator = torch.Generator().manual_seed(0)
    n, size, width, alpha, temperature = 9, 17, 8, 0.4, 2.0
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(size, width, generator=generator, dtype=torch.float64)
    q = torch.rand(n, size, generator=generator, dtype=torch.float64).softmax(1)
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    weight[2] = 0.0  # not heard: then nothing at all is learnt there
    soft = SoftTargets(weight=weight, entropy=-(q * q.log()).sum(1), dense=q)
    labels = torch.randint(0, size, (n,), generator=generator)
    parts = distillation_loss(
        hidden,
        matrix,
        labels,
        OnPolicyTargets(soft),
        alpha=alpha,
        temperature=temperature,
        denominator=3.0,
        chunk_size=4,
    )
    (gradient,) = torch.autograd.grad(parts.loss, hidden)
    log_p = (hidden @ matrix.t() / temperature).log_softmax(1)
    kl = (q * (q.log() - log_p)).sum(1)
    expected = (alpha * weight * temperature**2 * kl).sum() / 3.0
    (expected_gradient,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(parts.loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert (gradient[2] == 0).all()


# --- OnPolicyRounds ----------------------------------------------------------------


def test_no_round_is_written_unless_asked_for(ws):
    link = KeepingLink()
    assert train(ws, make_config(ws), link) == 0
    assert wrote(link) == []


def test_nothing_can_be_learnt_of_an_opinion_that_does_not_count(ws):
    with pytest.raises(UsageError, match=r"loss\.alpha is 0"):
        make_config(ws, **{**OWN, "loss__alpha": 0})


@pytest.mark.parametrize("source", ["cached", "online"])
def test_rounds_begin_at_their_share_with_each_phase_and_interval(ws, source):
    link = KeepingLink()
    trainer = make_trainer(ws, make_config(ws, **OWN, targets__source=source), link, ws.root / "c")
    shares: dict[int, float] = {}
    mixer = trainer.batches.mixer
    choose_rows = mixer.next

    def counting(cursors: Any, mix: Any) -> Any:
        rows, after = choose_rows(cursors, mix)
        own = sum("/own@" in row.source for row in rows)
        shares[trainer.session.progress.step + 1] = own / len(rows)
        return rows, after

    mixer.next = counting  # type: ignore[method-assign]
    assert trainer.run() == "completed"
    # a quarter of 24 steps; the unified phase begins at step 15
    assert wrote(link) == [6, 12, 14, 20]
    assert all(shares[step] == 0 for step in range(1, 7))
    assert shares[7] == 0.5
    assert all(
        isinstance(s, OnPolicySource) or "/own@" not in n
        for n, s in trainer.batches.sources.items()
    )
    on_policy = Counter("/own@" in name for name in trainer.session.progress.cursors)
    assert on_policy[True] <= 1 and on_policy[False] == 1


def test_a_rounds_rows_are_learnt_from_at_most_twice(ws):
    config = make_config(ws, **{**OWN, "schedule__on_policy_interval": 20})
    trainer = make_trainer(ws, config, KeepingLink(), ws.root / "c")
    assert trainer.run() == "completed"
    batches = trainer.batches
    batches.rounds.enter(trainer.schedule, 24)
    ((name, source),) = batches.rounds.by_expert["tiny"].items()
    assert 0 < len(source.token_counts()) <= 6
    cursors = trainer.session.progress.cursors
    trainer.session.progress.cursors = {**cursors, name: Cursor(epoch=PASSES - 1)}
    assert batches.mix(trainer.schedule, 24) == {"tiny": 0.5, name: 0.5}
    trainer.session.progress.cursors = {**cursors, name: Cursor(epoch=PASSES)}
    assert batches.mix(trainer.schedule, 24) == {"tiny": 1.0}


def test_what_the_student_writes_follows_from_its_weights_seed_and_step(ws):
    trainer = make_trainer(ws, make_config(ws, **OWN), KeepingLink(), ws.root / "c")
    rounds = on_policy_rounds(ws, make_config(ws, **OWN))
    one = rounds.write(trainer.session.model, 7, {"tiny": 1.0})
    assert rounds.write(trainer.session.model, 7, {"tiny": 1.0}) == one
    assert rounds.write(trainer.session.model, 8, {"tiny": 1.0}) != one
    assert trainer.session.model.training
    for example in one.answers["tiny"]:
        assert example.messages is not None and example.messages[-1].role == "assistant"
        assert example.messages[0].content == "Tell of the river."
    source = rounds.open(one)["tiny"][one.source_name("tiny")]
    again = rounds.open(one)["tiny"][one.source_name("tiny")]
    for epoch in range(PASSES):
        a, b = (list(s.soft_targets([0, 1], epoch, CPU).chunks(64)) for s in (source, again))
        assert all(torch.equal(x[1].mass, y[1].mass) for x, y in zip(a, b, strict=True))
        assert all(torch.equal(x[1].ids, y[1].ids) for x, y in zip(a, b, strict=True))
        assert all(x[1].text_weight == 0.0 for x in a)


def test_the_student_is_asked_nothing_of_what_is_held_out(ws):
    """Neither where text that is there has families, nor where the prompts themselves are asked."""
    families = [f"family {n}" for n in range(160)]
    with open(ws.root / "text.jsonl", "w") as file:
        for family in families:
            for n in range(3):
                turns = [("user", f"{family}, {n}: what is it?"), ("assistant", "A river. " * 4)]
                messages = [{"role": role, "content": text} for role, text in turns]
                file.write(json.dumps({"family": family, "messages": messages}) + "\n")
    _, parts = prepare(ws, make_config(ws, **OWN))
    asked = Counter(p[0].content.partition(",")[0] for p in parts["tiny"].on_policy.prompts)
    assert len(asked) > 120 and set(asked.values()) == {3}
    assert not any(is_reserved(family) for family in asked)

    (ws.root / "text.jsonl").write_text('{"text": "A river and a town on its bank."}\n' * 9)
    reserved = {p.messages for p in load_prompts(["math"]) if is_reserved(p.group)}
    config = make_config(ws, **OWN, **{"data__capabilities": '["math"]', "data__held_out": 0.3})
    with open(ws.root / "text.jsonl", "a") as file:
        file.writelines(json.dumps({"text": f"The river {n} " * 5}) + "\n" for n in range(30))
    _, parts = prepare(ws, config)
    prompts = set(parts["tiny"].on_policy.prompts)
    assert reserved and prompts and reserved.isdisjoint(prompts)


@pytest.mark.parametrize(
    ("source", "stops"), [("cached", (6, 9)), ("cached", (5, 21)), ("online", (7, 14))]
)
def test_a_run_interrupted_around_its_rounds_goes_on_exactly(ws, tmp_path, source, stops):
    config = make_config(ws, **OWN, targets__source=source)
    whole = KeepingLink()
    uninterrupted = make_trainer(ws, config, whole, tmp_path / "whole")
    assert uninterrupted.run() == "completed"

    taken: dict[int, str] = {}
    for attempt, stop_at in enumerate((*stops, None)):
        link = KeepingLink(
            lambda e, at=stop_at: [Stop()] if isinstance(e, StepDone) and e.step == at else []
        )
        part = make_trainer(ws, config, link, tmp_path / "parts")
        if attempt:
            resume(part, tmp_path / "parts")
        part.run()
        taken |= losses(link)
    assert taken == losses(whole)
    theirs, ours = weights(uninterrupted), weights(part)
    assert all((theirs[name] == ours[name]).all() for name in theirs)


def resume(trainer: Any, folder: Path) -> None:
    """Load the journal's decisions and the newest checkpoint."""
    for decision in trainer.plan.journal.read():
        trainer.plan.schedule = trainer.schedule.with_decision(decision)
    loaded = trainer.checkpoints.store.load_newest(lambda *_: None)
    assert loaded is not None
    trainer.restore(loaded[0])
