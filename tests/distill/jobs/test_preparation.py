"""Preparation of a run: done once, cached, and done again where something changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch

from engine.config import RunConfig
from engine.distill.data.sources import CachedSource, FixedSource, OnlineSource
from engine.distill.device import device_and_dtype
from engine.distill.jobs.preparation import prepare_run
from engine.distill.jobs.run_texts import RunTexts, read_texts, student_tokenizer
from engine.distill.jobs.setup import RunSetup
from engine.distill.teacher.pool import TeacherPool
from engine.errors import UsageError
from engine.events import DataReady, Progress, Stop
from engine.experts.registry import load_experts
from engine.run.job import JobContext, JobStopped
from engine.workspace import Workspace
from tests.support.small_run import CPU, KeepingLink, make_config, make_root


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return make_root(tmp_path)


NO_TEXTS = RunTexts(fixed={}, streamed=None)


class Counting(TeacherPool):
    """Counts how often an expert is loaded."""

    loads = 0

    def get(self, spec):
        if spec.name not in self.loaded:
            self.loads += 1
        return super().get(spec)


def make(ws: Workspace, config: RunConfig, link: Any) -> RunSetup:
    ctx = JobContext(link)
    pool = Counting(ws, ctx, CPU, torch.float32, keep_all=config.targets.source == "online")
    experts = [load_experts(ws)[name] for name in config.experts.names]
    return RunSetup(ws, config, experts, ctx, pool, torch.float32)


def prepared(ws: Workspace, config: RunConfig, link: Any = None):
    """(setup, tiny's source, tiny's held-out store)"""
    setup = make(ws, config, link or KeepingLink())
    expert = prepare_run(setup).experts["tiny"]
    source, share = expert.sources["tiny"]
    assert share == 1.0
    return setup, source, expert.held_out


def rows(source: FixedSource) -> list[bytes]:
    return [source.block(n).ids.tobytes() for n in range(len(source.token_counts()))]


def test_a_prepared_expert_is_found_without_loading_it(ws):
    link = KeepingLink()
    first, source, held_out = prepared(ws, make_config(ws), link)
    assert isinstance(source, CachedSource) and first.pool.loads == 1
    (ready,) = link.of(DataReady)
    assert (ready.blocks, ready.held_out_blocks) == (len(source.token_counts()), len(held_out))
    assert link.of(Progress)[-1].finished

    link = KeepingLink()
    second, second_source, second_held_out = prepared(ws, make_config(ws), link)
    assert second.pool.loads == 0
    assert link.of(DataReady) == [ready]
    assert rows(second_source) == rows(source) and len(second_held_out) == len(held_out)


@pytest.mark.parametrize("change", [{"loss__temperature": 1.5}, {"targets__top_k": 8}, {"seed": 3}])
def test_a_change_of_target_settings_scores_again(ws, change):
    prepared(ws, make_config(ws))
    second, _, _ = prepared(ws, make_config(ws, **change))
    assert second.pool.loads == 1


def test_a_change_of_other_settings_does_not_score_again(ws):
    prepared(ws, make_config(ws))
    second, _, _ = prepared(ws, make_config(ws, optimizer__lr=0.1, loss__alpha=0.3))
    assert second.pool.loads == 0


def test_changed_expert_files_score_again(ws):
    prepared(ws, make_config(ws))
    config = ws.root / "tiny" / "generation_config.json"
    config.write_bytes(config.read_bytes() + b"\n")
    second, _, _ = prepared(ws, make_config(ws))
    assert second.pool.loads == 1


def test_an_interrupted_scoring_resumes_to_the_same_targets(ws, tmp_path):
    link = KeepingLink()
    calls = 0

    def react() -> list:
        nonlocal calls
        calls += 1
        return [Stop()] if calls == 60 else []

    link.poll = react  # type: ignore[method-assign]
    with pytest.raises(JobStopped):
        prepared(ws, make_config(ws), link)
    _, source, _ = prepared(ws, make_config(ws))

    other = tmp_path / "other"
    other.mkdir()
    # the same corpus under the same config, never interrupted
    _, expected, _ = prepared(make_root(other), make_config(make_root(other)))
    assert rows(source) == rows(expected)
    blocks = range(len(rows(source)))
    one, two = source.soft_targets(blocks, 0, CPU), expected.soft_targets(blocks, 0, CPU)
    assert torch.equal(one.ids, two.ids) and torch.equal(one.mass, two.mass)


def test_online_targets_score_only_the_held_out_text_in_advance(ws):
    setup, source, held_out = prepared(ws, make_config(ws, targets__source="online"))
    assert isinstance(source, OnlineSource) and len(held_out) > 0
    assert source.soft_targets([0], 0, CPU).output is not None
    assert setup.pool.loads == 1
    _, cached, _ = prepared(ws, make_config(ws))
    assert rows(source) == rows(cached)


def test_held_out_text_is_never_trained_on(ws):
    _, source, held_out = prepared(ws, make_config(ws, data__held_out=0.3))
    held = {held_out.block(n).ids.tobytes() for n in range(len(held_out))}
    assert held and held.isdisjoint(rows(source))


def test_the_trained_tokenizer_is_stored_with_the_checkpoints(ws):
    setup = make(ws, make_config(ws), KeepingLink())
    tokenizer = student_tokenizer(setup, read_texts(setup))
    kept = ws.checkpoints_dir / "tokenizer" / "tokenizer.json"
    before = kept.read_bytes()
    second = student_tokenizer(make(ws, make_config(ws), KeepingLink()), NO_TEXTS)
    assert kept.read_bytes() == before
    assert second("the river").input_ids == tokenizer("the river").input_ids


def test_the_tokenizer_of_an_expert_or_a_folder_can_be_used(ws):
    for wanted in ("tiny", str(ws.root / "tiny")):
        config = make_config(ws, student__tokenizer=wanted)
        tokenizer = student_tokenizer(make(ws, config, KeepingLink()), NO_TEXTS)
        assert len(tokenizer) <= 320 and tokenizer.eos_token == "<|im_end|>"


def test_the_experts_answers_are_cached(ws):
    (ws.root / "gladius.toml").write_text(
        (ws.root / "gladius.toml").read_text() + 'capabilities = ["json"]\n'
    )
    config = make_config(
        ws,
        data__generate="true",
        data__max_answers=3,
        data__max_answer_tokens=6,
        data__keep_answers="all",
    )
    first = make(ws, config, KeepingLink())
    texts = read_texts(first).fixed["tiny"]
    given = read_texts(make(ws, make_config(ws), KeepingLink())).fixed["tiny"]
    assert texts[-len(given) :] == given and 0 < len(texts) - len(given) <= 3
    assert first.pool.loads == 1
    second = make(ws, config, KeepingLink())
    assert read_texts(second).fixed["tiny"] == texts and second.pool.loads == 0


def test_text_that_is_too_short_is_a_usage_error(ws):
    (ws.root / "text.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(UsageError, match=r"at least one of each.*--data"):
        prepared(ws, make_config(ws))


def test_device_and_precision_follow_the_config_and_the_processor(ws):
    config = make_config(ws, device__device="cpu", device__precision="auto")
    assert device_and_dtype(config, lambda: True) == (CPU, torch.bfloat16)
    assert device_and_dtype(config, lambda: False) == (CPU, torch.float32)
    forced = msgspec.structs.replace(
        config, device=msgspec.structs.replace(config.device, precision="fp32")
    )
    assert device_and_dtype(forced, lambda: True) == (CPU, torch.float32)
