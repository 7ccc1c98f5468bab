"""Attention without a dense mask gives the numbers of attention with one, gradients included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from engine.distill import attention
from engine.distill.align.blocks import EncodedBlock
from engine.distill.attention import Segments, by_segment, probe_error, why_not_packed, without_mask
from engine.distill.data.packing import Batch, make_batch
from engine.distill.train.forward import hidden_states

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


def block(tokens: int, seed: int) -> EncodedBlock:
    ids = np.random.default_rng(seed).integers(0, 64, tokens)
    return EncodedBlock(ids, np.arange(1, tokens), np.zeros(tokens - 1, dtype=bool), tokens)


@pytest.fixture
def batch() -> Batch:
    """Two rows: three blocks with padding, and one block."""
    return make_batch([[block(9, 1), block(30, 2), block(5, 3)], [block(50, 4)]], CPU)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="sdpa")).train()


@pytest.fixture
def kernel(monkeypatch) -> None:
    """The reference in place of the kernel of CUDA, which this machine need not have."""
    monkeypatch.setattr(attention, "_kernel", lambda: by_segment)


def outcome(model: LlamaForCausalLM, batch: Batch, how: torch.Tensor | Segments):
    """Scored hidden states and the gradient of every parameter."""
    model.zero_grad(set_to_none=True)
    hidden = hidden_states(model, batch.input_ids, how, batch.position_ids, torch.float32)
    scored = hidden.flatten(0, 1)[batch.gather]
    # Not the squares: after the last norm their sum hardly depends on the weights.
    generator = torch.Generator().manual_seed(1)
    (scored * torch.randn(scored.shape, generator=generator)).sum().backward()
    return [scored.detach(), *(p.grad for p in model.model.parameters())]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_attention_equals_the_dense_mask(kernel, model, batch, checkpointing):
    expected = outcome(model, batch, batch.mask)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, other in zip(outcome(model, batch, batch.segments), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


def test_a_block_cannot_see_another_one(kernel, model, batch):
    before = outcome(model, batch, batch.segments)[0]
    changed = make_batch([[block(9, 7), block(30, 2), block(5, 3)], [block(50, 4)]], CPU)
    after = outcome(model, changed, changed.segments)[0]
    assert not torch.equal(before[:8], after[:8]) and torch.equal(before[8:], after[8:])


def test_with_a_mask_the_model_attends_as_before(kernel, model, batch):
    expected = outcome(model, batch, batch.mask)
    outcome(model, batch, batch.segments)
    for one, other in zip(outcome(model, batch, batch.mask), expected, strict=True):
        assert torch.equal(one, other)
    ids = torch.tensor([[1, 2, 3]])
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    again = LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="sdpa"))
    again.load_state_dict(model.state_dict())
    assert torch.equal(model.eval().generate(ids, **options), again.eval().generate(ids, **options))


def test_segments_are_the_blocks_and_the_padding(batch):
    size = batch.input_ids.shape[1]
    assert batch.segments.edges.tolist() == [0, 9, 39, 44, size, size + 50, 2 * size]
    assert batch.segments.longest == 50


def test_a_wrong_kernel_is_found_by_the_probe():
    assert probe_error(by_segment, CPU, torch.float32) == 0.0

    def causal_over_all(q, k, v, segments, scaling):
        edges = segments.edges[[0, -1]]
        return by_segment(q, k, v, Segments(edges, int(edges[1])), scaling)

    assert probe_error(causal_over_all, CPU, torch.float32) > 0.1


def test_the_cpu_and_fp32_keep_the_dense_mask(batch):
    assert "GPU" in why_not_packed(CPU, torch.bfloat16)
    assert "bf16" in why_not_packed(torch.device("cuda"), torch.float32)
    assert batch.attention(torch.bfloat16) is batch.mask


@pytest.mark.parametrize("window", [None, 8, 64])
def test_an_expert_without_a_mask_ignores_the_padding_on_the_right(window):
    torch.manual_seed(0)
    config = MistralConfig(**SHAPE, sliding_window=window, attn_implementation="sdpa")
    model = MistralForCausalLM(config).eval()
    ids = torch.randint(64, (2, 24))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.no_grad():
        expected = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
        with without_mask(model, 24):
            found = model.model(input_ids=ids).last_hidden_state
    assert config._attn_implementation == "sdpa"
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[1, :15], expected[1, :15], rtol=1e-5, atol=1e-5)
