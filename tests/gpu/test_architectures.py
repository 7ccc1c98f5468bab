"""Experts of every supported architecture score text and generate on the pretended GPU, with the
numbers of the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, PhiConfig, Qwen2Config

from engine.distill.align.projection import Projector
from engine.distill.align.tables import build_tables
from engine.distill.teacher.scoring import teacher_encoder
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.lens import score_probes
from engine.text.examples import Message
from tests.support.tiny_expert import SPEC, make_tokenizer
from tests.support.toys import byte_level, encoder_of

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
CONFIGS = {
    "llama": lambda v: LlamaConfig(vocab_size=v, **GROUPED),
    "llama3 rope": lambda v: LlamaConfig(vocab_size=v, rope_parameters=LLAMA3_ROPE, **GROUPED),
    "qwen2": lambda v: Qwen2Config(vocab_size=v, **GROUPED),
    "phi": lambda v: PhiConfig(vocab_size=v, **SHAPE),
    "gemma2": lambda v: Gemma2Config(
        vocab_size=v, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, **GROUPED
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_expert_scores_and_generates(gpu, name):
    tokenizer = make_tokenizer()
    config = CONFIGS[name](len(tokenizer))
    options = {"attn_implementation": "eager"} if name == "gemma2" else {}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    teacher = Teacher(model.eval().requires_grad_(False), tokenizer, SPEC)
    assert (teacher.logit_softcap is not None) == (name == "gemma2")
    on_cpu = _probabilities(teacher), _answers(teacher)
    model.to("cuda")
    gpu.counts.clear()
    on_gpu = _probabilities(teacher), _answers(teacher)
    np.testing.assert_allclose(on_gpu[0], on_cpu[0], rtol=1e-3, atol=1e-6)
    assert on_gpu[1] == on_cpu[1]
    print(f"{name}: {gpu.counts.summary().splitlines()[0]}")


def _probabilities(teacher: Teacher) -> np.ndarray:
    """The projected distributions at the probe sentences."""
    student, encoder = encoder_of(byte_level()), teacher_encoder(teacher)
    tables = build_tables(
        encoder.vocabulary, student.vocabulary, teacher.end_ids, student.end_ids[0]
    )
    q = score_probes(teacher, Projector(tables, teacher.device), student, encoder).q
    assert q.size and np.isfinite(q).all()
    return q


def _answers(teacher: Teacher) -> list[str]:
    conversations = [[Message("user", "Tell of the river.")], [Message("user", "Why?")]]
    answers = teacher.generate(
        conversations, max_new_tokens=5, temperature=0.8, top_p=0.9, seed=3, batch_size=2
    )
    return [answer.text for answer in answers]
