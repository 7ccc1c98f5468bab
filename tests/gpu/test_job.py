"""Whole training jobs on the pretended GPU: cached, online and on-policy targets, evaluation,
samples, checkpoint, resume; and how often the host waits for the device."""

from __future__ import annotations

import pytest
import torch

from engine.distill.train import trainer as trainer_module
from engine.distill.train.trainer import Trainer
from engine.events import CapabilitiesScored, CheckpointSaved, EvalDone, SampleDrawn, Stop
from tests.gpu.conftest import ON_POLICY, losses
from tests.gpu.rig import Counts
from tests.support.small_run import KeepingLink, make_config, train


@pytest.fixture
def micro_batches(gpu, monkeypatch) -> list[Counts]:
    """What each micro-batch did, from its rows to its gradient."""
    found: list[Counts] = []
    real = Trainer._forward_backward

    def counted(self, rows, denominator):
        gpu.counts.clear()
        result = real(self, rows, denominator)
        found.append(
            Counts(
                gpu.counts.synchronisations.copy(),
                gpu.counts.pageable.copy(),
                gpu.counts.launches.copy(),
            )
        )
        return result

    monkeypatch.setattr(trainer_module.Trainer, "_forward_backward", counted)
    return found


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cached", {"schedule__capability_prompts": 1, "schedule__capability_tokens": 3}),
        ("online", {"targets__source": "online"}),
        ("on-policy", ON_POLICY),
    ],
)
def test_a_job_trains_evaluates_and_saves_without_waiting_in_a_micro_batch(
    run_job, micro_batches, ws, name, fields
):
    link = run_job(**fields)
    assert list(losses(link)) == [1, 2, 3, 4] and None not in losses(link).values()
    assert len(link.of(EvalDone)) == 3 and len(link.of(SampleDrawn)) == 3
    assert bool(link.of(CapabilitiesScored)) == (name == "cached")
    assert link.of(CheckpointSaved) and (ws.model_dir / "model.safetensors").is_file()
    assert len(micro_batches) == 4
    for counts in micro_batches:
        assert counts.synchronisations == {} and counts.pageable == {}, counts.summary()
    launches = max(counts.launches.total() for counts in micro_batches)
    print(f"{name}: {launches} launches in a micro-batch of a student with 2 layers")


@pytest.mark.slow
def test_losses_on_the_gpu_are_those_of_the_cpu(run_job, ws):
    on_gpu = losses(run_job(device__precision="fp32"))
    link = KeepingLink()
    config = make_config(ws, schedule__max_steps=4, schedule__eval_interval=2)
    assert train(ws, config, link, fresh=True) == 0
    assert losses(link) == pytest.approx(on_gpu, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_job_resumes_exactly(run_job):
    uninterrupted = losses(run_job())
    stopping = KeepingLink(lambda e: [Stop()] if isinstance(e, EvalDone) and e.step == 2 else [])
    first = losses(run_job(stopping, fresh=True, status="stopped"))
    second = losses(run_job(resume=True))
    assert {**first, **second} == uninterrupted and list(second) == [3, 4]


def test_a_deterministic_run_uses_no_operation_that_cuda_would_refuse(run_job, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    run_job(device__deterministic="true", targets__source="online", **ON_POLICY)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    import os

    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
