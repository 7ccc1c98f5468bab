"""Logits of scored text equal the model's own forward pass, for every architecture."""

from __future__ import annotations

import collections

import pytest
import torch

from engine.distill.teacher.head import hidden_states, linear_logits, own_logits, softcap
from engine.distill.teacher.head import uses_own_head as uses_own
from engine.errors import GladiusError
from tests.support.tiny_models import CannotBuild, architectures, tiny_model

IDS = [7, 100, 3, 45, 46, 90, 12, 12, 64, 31]
LINEAR = ("llama", "qwen2", "qwen3", "phi", "gemma2", "gpt2", "mistral", "gpt_neox", "olmo2")
OWN = {"granite": 8.0, "cohere": 16.0, "granitemoe": 6.0, "falcon_h1": 25.0, "hyperclovax": 0.25}
"""Architectures that scale their logits, and the factor of head times hidden state to them."""


def logits_of(model, ids: list[int], own_head: bool) -> torch.Tensor:
    """(V, L) logits as scoring computes them."""
    tokens = torch.tensor([ids])
    hidden = hidden_states(model, tokens, torch.ones_like(tokens))[0]
    return own_logits(model, hidden) if own_head else linear_logits(model, hidden, softcap(model))


def own_of(model, ids: list[int]) -> torch.Tensor:
    """(V, L) logits of the model's forward pass."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float().t()


def assert_own(model, own_head: bool) -> None:
    other = [5, 9, 33, 77, 120, 1, 60]  # not the tokens that were compared
    torch.testing.assert_close(
        logits_of(model, other, own_head), own_of(model, other), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", LINEAR)
def test_most_models_multiply_hidden_states_by_their_output_matrix(name):
    model = tiny_model(name)
    assert uses_own(model, IDS, "tiny") is False
    assert_own(model, False)


@pytest.mark.parametrize(("name", "factor"), OWN.items())
def test_models_that_scale_their_logits_are_scored_by_their_own_code(name, factor):
    model = tiny_model(name)
    assert uses_own(model, IDS, "tiny") is True
    assert_own(model, True)
    with torch.no_grad():
        ratio = logits_of(model, IDS, False) / own_of(model, IDS)
    assert float(ratio.median()) == pytest.approx(factor, rel=1e-3)


def test_a_cap_in_a_nested_config_is_applied():
    model = tiny_model("gemma4_text")
    assert softcap(model) == 0.5 and float(own_of(model, IDS).abs().max()) <= 0.5
    assert uses_own(model, IDS, "tiny") is False
    assert_own(model, False)


def test_half_precision_finds_a_small_factor_too():
    model = tiny_model("granite", logits_scaling=1.02).bfloat16()
    assert uses_own(model, IDS, "tiny") is True
    assert uses_own(tiny_model("granite", logits_scaling=1.0).bfloat16(), IDS, "tiny") is False


def test_a_model_that_sees_later_tokens_is_refused():
    model = tiny_model("bert", is_decoder=False)
    with pytest.raises(GladiusError, match=r"'bert' can't be used .*depends on the tokens after"):
        uses_own(model, IDS, "tiny")


def test_every_architecture_is_scored_as_its_own_forward_pass_or_refused():
    """Prints what can't be built tiny and what is refused."""
    results: dict[str, list[str]] = collections.defaultdict(list)
    for name in architectures():
        try:
            model = tiny_model(name)
        except CannotBuild as error:
            results["not built"].append(f"{name}: {error}")
            continue
        try:
            own_head = uses_own(model, IDS, "tiny")
        except GladiusError as error:
            results["refused"].append(str(error))
            continue
        assert_own(model, own_head)
        results["own head" if own_head else "output matrix"].append(name)
    for kind, lines in results.items():
        print(f"{kind}: {len(lines)}\n  " + "\n  ".join(lines))
    assert len(results["output matrix"]) + len(results["own head"]) >= 130
    assert set(OWN) | {"minicpm3", "granitemoeshared"} <= set(results["own head"])
