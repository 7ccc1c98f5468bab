"""Out of memory on the pretended GPU: every part of a job continues with less, the settings return
when there is more memory, and a student that does not fit is refused with the remedy."""

from __future__ import annotations

import pytest
import torch

from engine.distill.jobs import train as train_job
from engine.distill.train import evaluation
from engine.distill.train import trainer as trainer_module
from engine.distill.train.journal import Journal
from engine.distill.train.phases import Decision
from engine.errors import ExitCode, GladiusError, UsageError
from engine.events import EvalDone, GuardTripped, LogLine, RunStarted, StepDone, Stop
from engine.sizing import GIB, training_memory
from tests.gpu.conftest import SMALL_RUN, losses
from tests.support.small_run import KeepingLink, make_config, train

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"
ONE_B: dict[str, object] = {
    "student__hidden_size": 2048,
    "student__intermediate_size": 5632,
    "student__num_hidden_layers": 24,
    "student__num_attention_heads": 16,
    "student__num_key_value_heads": 4,
    "student__vocab_size": 32000,
    "student__max_position_embeddings": 2048,
    "optimizer__max_seq_len": 2048,
    "optimizer__micro_batch_size": 1,
}


def actions(link: KeepingLink) -> list[str]:
    return [event.action for event in link.of(GuardTripped)]


def journal(ws) -> list[Decision]:
    return Journal(ws.checkpoints_dir / "journal.jsonl").read()


# Before the start


@pytest.mark.parametrize(("source", "gib"), [("cached", 20.9), ("online", 24.0)])
def test_a_student_that_does_not_fit_the_gpu_is_refused_with_settings_that_fit(
    ws, gpu, monkeypatch, source, gib
):
    with open(ws.root / "gladius.toml", "a") as file:
        file.write("parameters = 1_543_714_304\n")
    monkeypatch.setattr(train_job, "prepare_run", lambda *_: pytest.fail("it was prepared"))
    config = make_config(ws, **{**SMALL_RUN, **ONE_B, "targets__source": source})
    gpu.total_bytes = int(gib * GIB)
    with pytest.raises(UsageError) as caught:
        train(ws, config, KeepingLink())
    text = str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE and "\n" not in text
    assert f"{gib:.1f} GiB of GPU memory are free" in text and "AdamW 17.1" in text
    words = [word.rstrip(";") for word in text.split()]
    settings = [word for word in words if "=" in word and "device.device" not in word]
    assert "optimizer.activation_checkpointing=true" in settings
    assert ("targets.source=cached" in settings) == (source == "online")
    assert ("optimizer.max_seq_len=1024" in settings) == (source == "cached")
    assert not (ws.checkpoints_dir / "journal.jsonl").exists(), "nothing was decided"
    # with these settings it is not refused
    pairs = (setting.split("=") for setting in settings)
    fields = {name.replace(".", "__"): value for name, value in pairs}
    fitting = make_config(ws, **{**SMALL_RUN, **ONE_B, "targets__source": source, **fields})
    monkeypatch.setattr(train_job, "prepare_run", _prepared)
    with pytest.raises(GladiusError, match="prepared"):
        train(ws, fitting, KeepingLink())


def _prepared(*_: object) -> None:
    raise GladiusError("prepared")


def test_a_full_gpu_does_not_move_the_run_to_the_cpu(ws, gpu):
    config = make_config(ws, **SMALL_RUN)
    gpu.total_bytes = 1 << 20
    with pytest.raises(UsageError, match=r"--set device.device=cpu"):
        train(ws, config, KeepingLink())


def test_the_need_of_a_gpu_counts_experts_projection_loss_and_context(ws):
    config = make_config(ws, **ONE_B)
    cpu = training_memory(config, True)
    gpu = training_memory(config, True, "cuda", [1_540_000_000, 2_780_000_000])
    assert gpu.teachers == 2 * (1_540_000_000 + 2_780_000_000)
    assert gpu.projection > 1024 * 152_000 * 6 and gpu.context > 500 << 20
    assert gpu.loss > 2 * cpu.loss, "chunks of the loss are larger on a GPU"
    assert gpu.total == sum(count for _, count in gpu.parts())
    assert (cpu.teachers, cpu.projection, cpu.context) == (0, 0, 0)


# While it runs


def limit_rows(monkeypatch, rows: int, from_step: int, link: KeepingLink) -> None:
    """From a step on, only so many rows fit in a step of the student."""
    real = trainer_module.hidden_states

    def limited(model, input_ids, *rest):
        late = len(link.steps()) + 1 >= from_step
        if late and len(input_ids) > rows and input_ids.device.type == "cuda":
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(model, input_ids, *rest)

    monkeypatch.setattr(trainer_module, "hidden_states", limited)


@pytest.mark.slow
def test_training_walks_down_to_the_cpu_and_finishes(run_job, monkeypatch):
    expected = losses(run_job(device__precision="fp32"))
    link = KeepingLink()
    limit_rows(monkeypatch, 0, 3, link)
    run_job(link, fresh=True, device__precision="fp32")
    assert actions(link) == [
        "micro batch is now 2",
        "micro batch is now 1",
        "activation checkpointing is now True",
        "device is now cpu",
    ]
    assert losses(link) == pytest.approx(expected, rel=1e-4)


def test_what_the_failed_pass_held_is_free_before_the_cache_is_emptied(run_job, gpu, monkeypatch):
    link = KeepingLink()
    before: list[int] = []
    real = trainer_module.distillation_loss

    def failing(*args, **options):
        if len(link.steps()) == 2 and not link.of(GuardTripped):
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(*args, **options)

    step = trainer_module.Trainer.train_step

    def train_step(self, number):
        before.append(gpu.memory.allocated)
        step(self, number)

    monkeypatch.setattr(trainer_module, "distillation_loss", failing)
    monkeypatch.setattr(trainer_module.Trainer, "train_step", train_step)
    gpu.counts.clear()
    run_job(link)
    assert len(link.of(GuardTripped)) == 1
    at_failure = gpu.counts.cache_emptied[-1]
    assert at_failure <= before[2], f"{at_failure - before[2]} bytes of the failed step are held"


@pytest.mark.slow
def test_an_evaluation_that_runs_out_of_memory_takes_smaller_batches_and_no_decision(
    run_job, ws, monkeypatch
):
    expected = run_job().of(EvalDone)
    real = evaluation.hidden_states

    def limited(model, input_ids, *rest):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(model, input_ids, *rest)

    monkeypatch.setattr(evaluation, "hidden_states", limited)
    link = run_job(fresh=True)
    assert len(actions(link)) == 1 and "evaluations have batches of" in actions(link)[0]
    assert {d.kind for d in journal(ws)}.isdisjoint(
        {"micro_batch", "activation_checkpointing", "device"}
    )
    for a, b in zip(link.of(EvalDone), expected, strict=True):
        assert a.bits_per_byte == pytest.approx(b.bits_per_byte, rel=1e-3)


def test_an_evaluation_that_does_not_fit_at_all_moves_to_the_cpu_at_once(run_job, monkeypatch):
    real = evaluation.hidden_states

    def limited(model, input_ids, *rest):
        if input_ids.device.type == "cuda":
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(model, input_ids, *rest)

    monkeypatch.setattr(evaluation, "hidden_states", limited)
    link = run_job()
    assert actions(link) == ["device is now cpu"] and list(losses(link)) == [1, 2, 3, 4]


@pytest.mark.slow
def test_scoring_takes_smaller_passes_and_gives_the_same_targets(run_job, monkeypatch):
    from engine.distill.teacher.teacher import Teacher

    expected = losses(run_job())
    real = Teacher.hidden_states

    def limited(self, input_ids, attention_mask):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError(OUT_OF_MEMORY)
        return real(self, input_ids, attention_mask)

    monkeypatch.setattr(Teacher, "hidden_states", limited)
    link = run_job(fresh=True, seed=1)  # another seed: nothing is cached
    assert actions(link) == [] and len(losses(link)) == len(expected)


def test_preparation_that_cannot_fit_ends_with_one_line(run_job, monkeypatch):
    from engine.distill.teacher.teacher import Teacher

    def full(self, input_ids, attention_mask):
        raise torch.OutOfMemoryError(OUT_OF_MEMORY)

    monkeypatch.setattr(Teacher, "hidden_states", full)
    with pytest.raises(GladiusError, match=r"before the first step.*--set device.device=cpu"):
        run_job()


# Resume


def test_a_resume_with_more_memory_climbs_back_and_with_the_same_memory_does_not(
    run_job, ws, gpu, monkeypatch
):
    link = KeepingLink(lambda e: [Stop()] if isinstance(e, StepDone) and e.step == 3 else [])
    gpu.total_bytes = 24 * GIB
    with monkeypatch.context() as patch:
        limit_rows(patch, 0, 2, link)
        run_job(link, status="stopped", schedule__max_steps=6)
    assert actions(link)[-1] == "device is now cpu"

    link = KeepingLink(lambda e: [Stop()] if isinstance(e, StepDone) and e.step == 4 else [])
    run_job(link, resume=True, status="stopped", schedule__max_steps=6)
    assert _restored(link) == []

    gpu.total_bytes = 80 * GIB
    link = run_job(resume=True, schedule__max_steps=6)
    assert _restored(link) == [
        "micro batch is 4 again: there is more memory than before",
        "activation checkpointing is False again: there is more memory than before",
        "device is cuda again: there is more memory than before",
    ]
    assert list(losses(link)) == [5, 6]
    assert [d.value for d in journal(ws) if d.kind == "device"] == ["cpu", "cuda"]


def _restored(link: KeepingLink) -> list[str]:
    return [line.text for line in link.of(LogLine) if "more memory than before" in line.text]


@pytest.mark.slow
def test_a_journal_of_an_earlier_version_returns_to_the_gpu(run_job, ws):
    stopping = KeepingLink(lambda e: [Stop()] if isinstance(e, EvalDone) and e.step == 2 else [])
    run_job(stopping, status="stopped")
    Journal(ws.checkpoints_dir / "journal.jsonl").append(
        Decision(1, "device", "cpu", "out of memory")
    )
    link = run_job(resume=True)
    assert _restored(link) == ["device is cuda again: there is more memory than before"]
    assert link.of(RunStarted)[0].device == "cuda"
