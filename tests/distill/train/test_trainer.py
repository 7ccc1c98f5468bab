"""The loop: what a step does, and what becomes of bad numbers and a full memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.distill.train import trainer as trainer_module
from engine.distill.train.trainer import Trainer
from engine.errors import GladiusError
from engine.events import (
    CheckpointSaved,
    EvalDone,
    GuardTripped,
    PhaseStarted,
    SampleDrawn,
    StepDone,
)
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink, make_config, make_root, make_trainer, weights


@pytest.fixture(scope="module")
def ws(tmp_path_factory) -> Workspace:
    return make_root(tmp_path_factory.mktemp("root"))


@pytest.fixture
def make(ws, tmp_path) -> Callable[..., tuple[Trainer, KeepingLink]]:
    """Makes trainers, each with its own checkpoints; fields as section__field=value."""
    numbers = itertools.count()

    def make(**fields: object) -> tuple[Trainer, KeepingLink]:
        link = KeepingLink()
        folder = tmp_path / f"checkpoints-{next(numbers)}"
        folder.mkdir()
        return make_trainer(ws, make_config(ws, **fields), link, folder), link

    return make


def bend_loss(monkeypatch, factor_at: Callable[[int], float]) -> None:
    """Multiplies the loss of the n-th micro-batch (from 1), and so its gradient, by a factor."""
    real = trainer_module.distillation_loss
    calls = itertools.count(1)

    def bent(*args, **kwargs):
        parts = real(*args, **kwargs)
        factor = factor_at(next(calls))
        return parts if factor == 1 else replace(parts, loss=parts.loss * factor)

    monkeypatch.setattr(trainer_module, "distillation_loss", bent)


def snapshots(trainer: Trainer, link: KeepingLink) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after each step, filled while the trainer runs."""
    kept = {0: weights(trainer)}

    def emit(event) -> None:
        KeepingLink.emit(link, event)
        if isinstance(event, StepDone):
            kept[event.step] = weights(trainer)

    trainer.emit = emit
    return kept


def assert_same_weights(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(one[name], two[name]) for name in one)


def guards(link: KeepingLink) -> list[str]:
    return [event.guard for event in link.of(GuardTripped)]


# Learning


def test_the_loss_falls_over_30_steps(make):
    trainer, link = make(schedule__max_steps=30, optimizer__lr=0.01)
    assert trainer.run() == "completed"
    losses = [event.loss for event in link.of(StepDone)]
    assert len(losses) == 30 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    first, last = link.of(EvalDone)[0], link.of(EvalDone)[-1]
    assert (first.step, last.step) == (0, 30)
    assert last.bits_per_byte < first.bits_per_byte
    assert [e.step for e in link.of(SampleDrawn)] == [e.step for e in link.of(EvalDone)]
    assert [e.name for e in link.of(PhaseStarted)] == ["Tiny", "All experts"]


def test_the_reported_loss_is_made_of_its_parts(make):
    """L = mean(alpha w T^2 KL + (1 - alpha w) CE); with w near 1 that is the parts' mixture."""
    trainer, link = make(schedule__max_steps=2)
    trainer.run()
    for event in link.of(StepDone):
        ce_share = 1 - 0.5 * event.mean_weight
        assert event.loss == pytest.approx(0.5 * 4 * event.kl + ce_share * event.ce, rel=0.05)


def test_four_micro_batches_of_one_row_are_one_of_four(make):
    runs = []
    for size in (1, 4):
        trainer, link = make(optimizer__micro_batch_size=size, schedule__max_steps=4)
        trainer.run()
        runs.append((link.of(StepDone), weights(trainer)))
    assert_nearly_the_same_run(*runs)


def test_without_soft_targets_no_expert_is_asked(make, monkeypatch):
    trainer, link = make(loss__alpha=0.0, schedule__max_steps=3)
    source = trainer.sources["tiny"]
    monkeypatch.setattr(type(source), "soft_targets", lambda *_: pytest.fail("targets were read"))
    assert trainer.run() == "completed"
    for event in link.of(StepDone):
        assert event.loss == pytest.approx(event.ce, rel=1e-6)


def test_every_block_is_trained_on_once_before_any_is_again(make, monkeypatch):
    trainer, _ = make(schedule__max_steps=12)
    source = trainer.sources["tiny"]
    real, seen = type(source).soft_targets, []

    def soft(self, blocks, epoch, device):
        seen.extend((epoch, n) for n in blocks)
        return real(self, blocks, epoch, device)

    monkeypatch.setattr(type(source), "soft_targets", soft)
    trainer.run()
    count = len(source.token_counts())
    assert len(seen) > count  # the second epoch was begun
    assert sorted(seen[:count]) == [(0, n) for n in range(count)]
    assert len(set(seen)) == len(seen)


def test_online_targets_train_as_cached_ones_of_the_whole_vocabulary_do(make):
    runs = []
    for source in ("cached", "online"):
        trainer, link = make(targets__source=source, targets__top_k=320, schedule__max_steps=4)
        trainer.run()
        runs.append((link.of(StepDone), weights(trainer)))
    cached, online = runs
    for one, two in zip(cached[0], online[0], strict=True):
        assert two.loss == pytest.approx(one.loss, abs=1e-4)
        assert two.kl == pytest.approx(one.kl, abs=1e-4)


# Bad numbers


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(make, monkeypatch):
    trainer, link = make(optimizer__micro_batch_size=2, schedule__max_steps=5)
    bend_loss(monkeypatch, lambda n: math.nan if n == 6 else 1)  # of step 3, the second half
    kept = snapshots(trainer, link)
    assert trainer.run() == "completed"
    assert_same_weights(kept[2], kept[3])
    assert not torch.equal(kept[3]["model.norm.weight"], kept[4]["model.norm.weight"])
    skipped = [event for event in link.of(StepDone) if event.skipped]
    assert [event.step for event in skipped] == [3]
    assert skipped[0].loss is None and skipped[0].grad_norm is None
    (guard,) = link.of(GuardTripped)
    assert (guard.guard, guard.step) == ("non_finite", 3)
    assert trainer.session.guard.skipped_non_finite == 1
    for state in trainer.session.optimizer.state.values():
        assert all(torch.isfinite(value).all() for value in state.values())


def test_three_bad_steps_in_a_row_go_back_to_the_checkpoint_with_a_lower_rate(make, monkeypatch):
    trainer, link = make(
        optimizer__micro_batch_size=4, schedule__max_steps=30, checkpoint__interval_steps=2
    )
    # step 6 is saved in the midst of them: going back there would lead to the same numbers
    bend_loss(monkeypatch, lambda n: math.nan if 5 <= n <= 7 else 1)
    kept = snapshots(trainer, link)
    at_checkpoint: dict[str, torch.Tensor] = {}
    emit = trainer.emit

    def watch(event) -> None:
        emit(event)
        if isinstance(event, CheckpointSaved) and event.step == 4:
            at_checkpoint.update(kept[4])
        if isinstance(event, GuardTripped) and event.guard == "rollback":
            assert_same_weights(at_checkpoint, weights(trainer))

    trainer.emit = watch
    assert trainer.run() == "completed"
    assert guards(link) == ["non_finite", "non_finite", "rollback"]
    assert link.of(GuardTripped)[-1].step == 4
    assert link.steps() == [*range(1, 7), *range(5, 31)]
    rates = {event.step: event.lr for event in link.of(StepDone)}
    assert rates[5] == pytest.approx(rates[4] / 2)
    kinds = [decision.kind for decision in trainer.parts.journal.read()]
    assert kinds.count("rollback") == 1


def test_when_lower_rates_do_not_help_the_run_ends_and_its_checkpoint_stands(make, monkeypatch):
    trainer, link = make(schedule__max_steps=30, checkpoint__interval_steps=5)
    bend_loss(monkeypatch, lambda n: math.nan if n >= 7 else 1)
    with pytest.raises(GladiusError, match=r"lower learning rates did not help.*--fresh"):
        trainer.run()
    assert guards(link).count("rollback") == trainer.config.guards.max_rollbacks == 2
    state, _ = trainer.parts.checkpoints.load(5)
    assert all(torch.isfinite(tensor).all() for tensor in state.model_state.values())


def test_bad_numbers_before_the_first_checkpoint_end_the_run(make, monkeypatch):
    trainer, _ = make()
    bend_loss(monkeypatch, lambda n: math.inf)
    with pytest.raises(GladiusError, match=r"before the first checkpoint; lower optimizer.lr"):
        trainer.run()


def test_a_gradient_spike_is_skipped(make, monkeypatch):
    trainer, link = make(guards__spike_window=16, schedule__max_steps=12)
    bend_loss(monkeypatch, lambda n: 100.0 if n == 8 else 1)
    kept = snapshots(trainer, link)
    assert trainer.run() == "completed"
    (guard,) = link.of(GuardTripped)
    assert (guard.guard, guard.step) == ("spike", 8) and guard.value > 10
    assert_same_weights(kept[7], kept[8])
    assert [event.step for event in link.of(StepDone) if event.skipped] == [8]


# Memory


def test_out_of_memory_halves_the_micro_batch_and_changes_no_number(make, monkeypatch):
    undisturbed, link = make(schedule__max_steps=6)
    undisturbed.run()
    expected = link.of(StepDone), weights(undisturbed)

    trainer, link = make(schedule__max_steps=6)
    memory_for(monkeypatch, rows=2, from_step=3, trainer=trainer)
    assert trainer.run() == "completed"
    (guard,) = link.of(GuardTripped)
    assert guard.guard == "out_of_memory" and "micro batch is now 2" in guard.action
    assert link.steps() == [1, 2, 3, 4, 5, 6]
    assert_nearly_the_same_run((link.of(StepDone), weights(trainer)), expected)
    decision = trainer.parts.journal.read()[0]
    assert (decision.kind, decision.step, decision.value) == ("micro_batch", 2, 2)


def test_after_the_smallest_micro_batch_activations_are_made_again(make, monkeypatch):
    undisturbed, link = make(schedule__max_steps=6)
    undisturbed.run()
    expected = link.of(StepDone), weights(undisturbed)

    trainer, link = make(schedule__max_steps=6)
    memory_for(monkeypatch, rows=0, from_step=3, trainer=trainer)
    assert trainer.run() == "completed"
    actions = [event.action for event in link.of(GuardTripped)]
    assert actions == [
        "micro batch is now 2",
        "micro batch is now 1",
        "activation checkpointing is now True",
    ]
    assert trainer.session.model.model.layers[0].gradient_checkpointing
    assert_nearly_the_same_run((link.of(StepDone), weights(trainer)), expected)


def test_a_memory_too_small_for_all_that_ends_the_run_with_a_remedy(make, monkeypatch):
    trainer, _ = make()
    monkeypatch.setattr(
        trainer_module, "hidden_states", lambda *_: (_ for _ in ()).throw(MemoryError())
    )
    with pytest.raises(GladiusError, match=r"out of memory.*smaller"):
        trainer.run()


def memory_for(monkeypatch, rows: int, from_step: int, trainer: Trainer) -> None:
    """From a step on, only so many rows fit; none without activation checkpointing when 0."""
    real = trainer_module.hidden_states

    def limited(model, input_ids, *rest):
        late = trainer.session.progress.step + 1 >= from_step
        if late and len(input_ids) > rows and not model.model.layers[0].gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(model, input_ids, *rest)

    monkeypatch.setattr(trainer_module, "hidden_states", limited)


def assert_nearly_the_same_run(one, two) -> None:
    """The same steps, tokens, losses and gradients, up to the order of summation."""
    for a, b in zip(one[0], two[0], strict=True):
        assert (a.step, a.tokens, a.tokens_seen) == (b.step, b.tokens, b.tokens_seen)
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-4)
    for name, value in one[1].items():
        torch.testing.assert_close(value, two[1][name], rtol=1e-3, atol=1e-4)


def test_checkpoints_come_at_their_interval_at_the_ends_of_phases_and_before_the_decay(make):
    trainer, link = make(schedule__max_steps=20, checkpoint__interval_steps=6)
    trainer.run()
    saved = [(event.step, event.reason) for event in link.of(CheckpointSaved) if not event.best]
    assert saved == [(6, "interval"), (12, "phase"), (17, "decay"), (18, "interval")]
    folder: Path = trainer.parts.checkpoints.folder
    assert (folder / "step-000000017" / "protected").exists()
