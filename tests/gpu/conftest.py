"""Fixtures for tests on the pretended GPU: a root with a tiny expert, and whole training jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from engine.events import RunEnded, StepDone
from engine.workspace import Workspace
from tests.gpu.rig import Rig, pretended_gpu
from tests.support.small_run import KeepingLink, make_config, make_root, train
from tests.support.threads import one_thread  # noqa: F401

TrainOnGpu = Callable[..., KeepingLink]

SMALL_RUN: dict[str, object] = {
    "device__device": "cuda",
    "device__precision": "bf16",
    "schedule__max_steps": 4,
    "schedule__eval_interval": 2,
}
ON_POLICY: dict[str, object] = {
    "schedule__on_policy_share": 0.5,
    "schedule__on_policy_from": 0.2,
    "schedule__on_policy_interval": 2,
    "schedule__on_policy_answers": 3,
    "data__max_answer_tokens": 6,
}


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return make_root(tmp_path)


@pytest.fixture
def gpu() -> Iterator[Rig]:
    """The pretended GPU, for the whole test."""
    with pretended_gpu() as rig:
        yield rig
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run_job(ws, gpu) -> TrainOnGpu:
    """Run a whole training job on the pretended GPU; options as of `make_config` and `train`."""

    def run(
        link: KeepingLink | None = None,
        *,
        resume: bool = False,
        fresh: bool = False,
        status: str = "completed",
        **fields: object,
    ) -> KeepingLink:
        link = link or KeepingLink()
        config = make_config(ws, **{**SMALL_RUN, **fields})
        assert train(ws, config, link, resume=resume, fresh=fresh) == 0
        (ended,) = link.of(RunEnded)
        assert ended.status == status
        return link

    return run


def losses(link: KeepingLink) -> dict[int, float | None]:
    """The loss of each step."""
    return {event.step: event.loss for event in link.of(StepDone)}
