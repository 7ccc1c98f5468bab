"""The training loop: steps, non-finite numbers, out-of-memory errors and checkpoints."""

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


def scale_loss(monkeypatch, factor_at: Callable[[int], float]) -> None:
    """Multiplies the loss of the n-th micro-batch (from 1), and so its gradient, by a factor."""
    real = trainer_module.distillation_loss
    calls = itertools.count(1)

    def scaled(*args, **kwargs):
        parts = real(*args, **kwargs)
        factor = factor_at(next(calls))
        return parts if factor == 1 else replace(parts, loss=parts.loss * factor)

    monkeypatch.setattr(trainer_module, "distillation_loss", scaled)


def snapshots(trainer: Trainer, link: KeepingLink) -> dict[int, dict[str, torch.Tensor]]:
    """The weights after each step, filled while the trainer runs."""
    kept = {0: weights(trainer)}

    def keep(event) -> None:
        if isinstance(event, StepDone):
            kept[event.step] = weights(trainer)

    link.on_event(keep)
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


def test_the_reported_loss_is_the_weighted_sum_of_its_parts(make):
    """L = mean(alpha w T^2 KL + (1 - alpha w) CE); with w near 1 that is the parts' mixture."""
    trainer, link = make(schedule__max_steps=2)
    trainer.run()
    for event in link.of(StepDone):
        ce_share = 1 - 0.5 * event.mean_weight
        assert event.loss == pytest.approx(0.5 * 4 * event.kl + ce_share * event.ce, rel=0.05)


def test_four_micro_batches_of_one_row_equal_one_of_four(make):
    runs = []
    for size in (1, 4):
        trainer, link = make(optimizer__micro_batch_size=size, schedule__max_steps=4)
        trainer.run()
        runs.append((link.of(StepDone), weights(trainer)))
    assert_nearly_the_same_run(*runs)


def test_with_alpha_0_no_targets_are_read(make, monkeypatch):
    trainer, link = make(loss__alpha=0.0, schedule__max_steps=3)
    source = trainer.batches.sources["tiny"]
    monkeypatch.setattr(type(source), "soft_targets", lambda *_: pytest.fail("targets were read"))
    assert trainer.run() == "completed"
    for event in link.of(StepDone):
        assert event.loss == pytest.approx(event.ce, rel=1e-6)


def test_every_block_is_trained_on_once_per_epoch(make, monkeypatch):
    trainer, _ = make(schedule__max_steps=12)
    source = trainer.batches.sources["tiny"]
    real, seen = type(source).soft_targets, []

    def soft_targets(self, blocks, epoch, device):
        seen.extend((epoch, n) for n in blocks)
        return real(self, blocks, epoch, device)

    monkeypatch.setattr(type(source), "soft_targets", soft_targets)
    trainer.run()
    count = len(source.token_counts())
    assert len(seen) > count  # the second epoch was begun
    assert sorted(seen[:count]) == [(0, n) for n in range(count)]
    assert len(set(seen)) == len(seen)


def test_online_targets_equal_cached_targets_of_the_whole_vocabulary(make):
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


def test_a_non_finite_step_changes_no_weight_and_is_counted(make, monkeypatch):
    trainer, link = make(optimizer__micro_batch_size=2, schedule__max_steps=5)
    scale_loss(monkeypatch, lambda n: math.nan if n == 6 else 1)  # of step 3, the second half
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


def test_three_non_finite_steps_in_a_row_roll_back_with_a_lower_learning_rate(make, monkeypatch):
    trainer, link = make(
        optimizer__micro_batch_size=4, schedule__max_steps=30, checkpoint__interval_steps=2
    )
    # the checkpoint of step 6 is among them: from there the same numbers would come again
    scale_loss(monkeypatch, lambda n: math.nan if 5 <= n <= 7 else 1)
    kept = snapshots(trainer, link)
    at_checkpoint: dict[str, torch.Tensor] = {}

    def watch(event) -> None:
        if isinstance(event, CheckpointSaved) and event.step == 4:
            at_checkpoint.update(kept[4])
        if isinstance(event, GuardTripped) and event.guard == "rollback":
            assert_same_weights(at_checkpoint, weights(trainer))

    link.on_event(watch)
    assert trainer.run() == "completed"
    assert guards(link) == ["non_finite", "non_finite", "rollback"]
    assert link.of(GuardTripped)[-1].step == 4
    assert link.steps() == [*range(1, 7), *range(5, 31)]
    rates = {event.step: event.lr for event in link.of(StepDone)}
    assert rates[5] == pytest.approx(rates[4] / 2)
    kinds = [decision.kind for decision in trainer.plan.journal.read()]
    assert kinds.count("rollback") == 1


def test_the_run_ends_after_max_rollbacks_and_its_checkpoint_stays_valid(make, monkeypatch):
    trainer, link = make(schedule__max_steps=30, checkpoint__interval_steps=5)
    scale_loss(monkeypatch, lambda n: math.nan if n >= 7 else 1)
    with pytest.raises(GladiusError, match=r"lower learning rates did not help.*--fresh"):
        trainer.run()
    assert guards(link).count("rollback") == trainer.config.guards.max_rollbacks == 2
    state, _ = trainer.checkpoints.store.load(5)
    assert all(torch.isfinite(tensor).all() for tensor in state.model_state.values())


def test_non_finite_steps_before_the_first_checkpoint_end_the_run(make, monkeypatch):
    trainer, _ = make()
    scale_loss(monkeypatch, lambda n: math.inf)
    with pytest.raises(GladiusError, match=r"before the first checkpoint; lower optimizer.lr"):
        trainer.run()


def test_a_gradient_spike_is_skipped(make, monkeypatch):
    trainer, link = make(guards__spike_window=16, schedule__max_steps=12)
    scale_loss(monkeypatch, lambda n: 100.0 if n == 8 else 1)
    kept = snapshots(trainer, link)
    assert trainer.run() == "completed"
    (guard,) = link.of(GuardTripped)
    assert (guard.guard, guard.step) == ("spike", 8) and guard.value > 10
    assert_same_weights(kept[7], kept[8])
    assert [event.step for event in link.of(StepDone) if event.skipped] == [8]


# Memory


def test_out_of_memory_halves_the_micro_batch_without_changing_the_numbers(make, monkeypatch):
    uninterrupted, link = make(schedule__max_steps=6)
    uninterrupted.run()
    expected = link.of(StepDone), weights(uninterrupted)

    trainer, link = make(schedule__max_steps=6)
    memory_for(monkeypatch, rows=2, from_step=3, trainer=trainer)
    assert trainer.run() == "completed"
    (guard,) = link.of(GuardTripped)
    assert guard.guard == "out_of_memory" and "micro batch is now 2" in guard.action
    assert link.steps() == [1, 2, 3, 4, 5, 6]
    assert_nearly_the_same_run((link.of(StepDone), weights(trainer)), expected)
    decision = trainer.plan.journal.read()[0]
    assert (decision.kind, decision.step, decision.value) == ("micro_batch", 2, 2)


def test_out_of_memory_with_micro_batch_1_enables_activation_checkpointing(make, monkeypatch):
    uninterrupted, link = make(schedule__max_steps=6)
    uninterrupted.run()
    expected = link.of(StepDone), weights(uninterrupted)

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


def test_out_of_memory_with_all_settings_reduced_ends_the_run_with_a_remedy(make, monkeypatch):
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


def test_checkpoints_at_intervals_ends_of_phases_and_before_the_decay(make):
    trainer, link = make(schedule__max_steps=20, checkpoint__interval_steps=6)
    trainer.run()
    saved = [(event.step, event.reason) for event in link.of(CheckpointSaved) if not event.best]
    assert saved == [(6, "interval"), (12, "phase"), (17, "decay"), (18, "interval")]
    folder: Path = trainer.checkpoints.store.folder
    assert (folder / "step-000000017" / "protected").exists()
