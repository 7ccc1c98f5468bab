"""LayerStats: norms of small matrices exactly, of large ones nearly; the same after a resume."""

from __future__ import annotations

import pytest
import torch

from engine.config import StudentConfig
from engine.distill.student import build_student, train_tokenizer
from engine.distill.train import layer_stats
from engine.distill.train.layer_stats import LayerMonitor
from engine.events import LayerStats, StepDone, Stop
from engine.run.job import JobContext
from engine.run.rollup import measurements
from tests.support.small_run import KeepingLink, make_config, make_root, train


def student(**fields):
    sizes = {
        **{"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 600},
        "max_position_embeddings": 64,
    }
    config = StudentConfig(**sizes | fields)
    tokenizer = train_tokenizer(["some text"] * 9, config.vocab_size)
    return build_student(config, tokenizer, seed=1)


def change(model, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.003)


def norm(state: dict[str, torch.Tensor], part: str) -> float:
    chosen = [w for name, w in state.items() if part in name and w.dim() > 1]
    return torch.cat([w.flatten() for w in chosen]).norm().item()


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("sample", "tolerance"), [(1 << 20, 1e-5), (4096, 0.06)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_ratios_are_those_of_the_norms(sample, tolerance, tied, monkeypatch):
    monkeypatch.setattr(layer_stats, "SAMPLE", sample)
    model, link = student(tie_word_embeddings=tied), KeepingLink()
    monitor = LayerMonitor(model, interval=2, ctx=JobContext(link))
    initial = state_of(model)
    change(model, 1)
    monitor.step_done(1)
    assert link.of(LayerStats) == [], "no log interval has ended"
    change(model, 2)
    monitor.step_done(2)
    former = state_of(model)
    change(model, 3)
    monitor.step_done(4)
    now = state_of(model)
    first, second = link.of(LayerStats)
    assert (first.step, first.interval, second.step) == (2, 2, 4)
    groups = {group.kind: group for group in second.groups}
    assert set(groups) == {"attention", "mlp", "embeddings", *(() if tied else ("head",))}
    parts = {
        "attention": [f"layers.{n}.self_attn" for n in range(3)],
        "mlp": [f"layers.{n}.mlp" for n in range(3)],
        "embeddings": ["embed_tokens"],
        "head": ["lm_head"],
    }
    for kind, group in groups.items():
        assert len(group.update) == len(group.moved) == len(parts[kind])
        for part, update, moved in zip(parts[kind], group.update, group.moved, strict=True):
            weight = norm(now, part)
            step = norm({n: now[n] - former[n] for n in now}, part)
            far = norm({n: now[n] - initial[n] for n in now}, part)
            assert update == pytest.approx(step / weight, rel=tolerance)
            assert moved == pytest.approx(far / weight, rel=tolerance)


def test_the_sample_of_a_large_matrix_has_all_its_rows_and_columns():
    matrix = torch.arange(8192 * 256).view(8192, 256).float()
    stride = layer_stats._stride(matrix)
    places = torch.arange(0, matrix.numel(), stride)
    assert len(places) <= layer_stats.SAMPLE
    assert len(set((places % 256).tolist())) == 256
    assert len(set((places // 256).tolist())) > 7500


def test_a_weight_that_is_not_finite_has_no_ratio_and_the_others_do():
    model, link = student(), KeepingLink()
    monitor = LayerMonitor(model, interval=1, ctx=JobContext(link))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    monitor.step_done(1)
    (stats,) = link.of(LayerStats)
    mlp = next(group for group in stats.groups if group.kind == "mlp")
    assert mlp.update == (0.0, None, 0.0)


def test_its_history_has_a_series_for_each_kind():
    model, link = student(), KeepingLink()
    monitor = LayerMonitor(model, interval=1, ctx=JobContext(link))
    change(model, 1)
    monitor.step_done(1)
    values = dict(measurements(link.of(LayerStats)[0]))
    assert set(values) == {
        f"{what}/{kind}"
        for what in ("update", "moved")
        for kind in ("attention", "mlp", "embeddings")
    }
    assert all(value is not None and value > 0 for value in values.values())


def test_a_resumed_run_measures_from_the_same_initial_weights(tmp_path):
    workspace = make_root(tmp_path / "root")
    config = make_config(workspace, schedule__log_interval=3, schedule__max_steps=12)
    whole = KeepingLink()
    assert train(workspace, config, whole) == 0
    stats = {event.step: event for event in whole.of(LayerStats)}
    assert list(stats) == [3, 6, 9, 12]

    def stop_at_7(event) -> list:
        return [Stop()] if isinstance(event, StepDone) and event.step == 7 else []

    train(workspace, config, KeepingLink(stop_at_7), fresh=True)
    resumed = KeepingLink()
    assert train(workspace, config, resumed, resume=True) == 0
    assert resumed.steps()[0] == 8
    # The interval in which it was stopped is not reported; the next one is the same as without.
    (last,) = resumed.of(LayerStats)
    assert (last.step, last.groups) == (12, stats[12].groups)
