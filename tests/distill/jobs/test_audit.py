"""The tokenizer audit: what it measures is what a run's own alignment and projection say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from engine.config import load_config
from engine.distill.jobs.audit import (
    SAMPLE,
    audit,
    matmul_flops,
    reachable,
    student_tokenizer,
    tokenizer_encoder,
)
from engine.distill.student import student_encoder
from engine.distill.teacher.loading import load_teacher
from engine.errors import MissingError
from engine.experts.registry import ExpertSpec
from engine.text.examples import read_data_file
from engine.workspace import Workspace, assets_dir
from tests.support.paths import REPO
from tests.support.tiny_expert import SPEC


@pytest.fixture(scope="module")
def sample():
    return list(read_data_file(assets_dir() / SAMPLE))


def spec_of(folder: Path) -> ExpertSpec:
    return ExpertSpec(name="tiny", title="Tiny", source="folder", repo=str(folder),
                      end_tokens=SPEC.end_tokens)  # fmt: skip


def test_the_sample_has_every_kind_of_text_and_both_forms(sample):
    kinds = {example.capability for example in sample}
    assert kinds == {"prose", "code", "json", "maths", "conversation", "other scripts"}
    assert any(example.messages for example in sample) and any(example.text for example in sample)


def test_a_student_with_the_experts_own_tokenizer_hears_it_whole(ws: Workspace, expert, sample):
    run = load_config(ws, preset="nano", overrides=[f"student.tokenizer={expert}"])
    tokenizer, source = student_tokenizer(ws, run)
    student = student_encoder(tokenizer, run.student.vocab_size)
    told = audit(ws, spec_of(expert), student, sample, run)
    assert source == str(expert)
    assert (told.reachable, told.aligned, told.inside, told.crossing) == (1.0, 1.0, 0.0, 0.0)
    assert told.blocks >= len(sample) and told.skipped_blocks == 0
    assert sum(kind.positions for kind in told.kinds) == told.positions
    assert told.mean_weight is None and told.mean_residual is None


def test_an_expert_that_is_run_tells_weight_and_residual(ws: Workspace, expert, sample):
    run = load_config(ws, preset="nano")
    tokenizer, source = student_tokenizer(ws, run)
    assert source.startswith("a stand-in")
    student = student_encoder(tokenizer, run.student.vocab_size)
    spec = spec_of(expert)
    teacher = load_teacher(expert, spec, dtype=torch.float32)
    part = [example for example in sample if example.capability in ("json", "conversation")]
    told = audit(ws, spec, student, part, run, teacher)
    assert told.mean_weight is not None and 0.0 < told.mean_weight <= 1.0
    assert told.mean_residual is not None and 0.0 <= told.mean_residual <= 1.0
    assert told.aligned + told.inside == pytest.approx(1.0)
    assert told.aligned < 1.0


def test_the_tokenizer_of_the_run_is_used_where_there_is_one(ws: Workspace):
    run = load_config(ws, preset="nano")
    tokenizer, _ = student_tokenizer(ws, run)
    tokenizer.save_pretrained(ws.checkpoints_dir / "tokenizer")
    assert student_tokenizer(ws, run)[1] == "the run's own"


def test_a_student_tokenizer_that_is_nowhere_is_named(ws: Workspace, tmp_path):
    run = load_config(ws, preset="nano", overrides=[f"student.tokenizer={tmp_path}"])
    with pytest.raises(MissingError, match=r"tokenizer\.json"):
        student_tokenizer(ws, run)


def test_the_figures_of_real_tokenizers_are_those_known(ws: Workspace, sample):
    """GPT-2's tokens under Llama-2's, by bytes: over half of the vocabulary, most positions."""
    llama2, gpt2 = (REPO / "tmp" / "tokenizers" / name for name in ("llama2", "gpt2"))
    if not (llama2.is_dir() and gpt2.is_dir()):
        pytest.skip("real tokenizers are not in tmp/: run `make tokenizers`")
    run = load_config(ws, preset="1b", overrides=[f"student.tokenizer={llama2}"])
    student = student_encoder(student_tokenizer(ws, run)[0], 32000)
    spec = ExpertSpec(name="phi", title="Phi", source="folder", repo=str(gpt2), chat="phi",
                      end_tokens=("<|endoftext|>",))  # fmt: skip
    told = audit(ws, spec, student, sample, run)
    assert 0.5 < told.reachable < 0.65 and told.skipped_blocks == 0
    kinds = {kind.kind: kind.aligned for kind in told.kinds}
    assert kinds["prose"] > 0.8 and 0.08 < told.crossing < 0.2


def test_a_tokenizer_without_byte_exact_tokens_is_refused_by_name(tmp_path, expert):
    data = json.loads((expert / "tokenizer.json").read_text())
    words = {"type": "WordLevel", "vocab": {"[UNK]": 0, "<|im_end|>": 1}, "unk_token": "[UNK]"}
    end = {"id": 1, "content": "<|im_end|>", "special": True, "single_word": False,
           "lstrip": False, "rstrip": False, "normalized": False}  # fmt: skip
    folder = tmp_path / "words"
    folder.mkdir()
    data |= {"model": words, "added_tokens": [end]}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="WordLevel"):
        tokenizer_encoder(folder, spec_of(folder))


def test_reachable_counts_spelled_tokens_only(expert):
    vocabulary = tokenizer_encoder(expert, spec_of(expert)).vocabulary
    assert reachable(vocabulary, vocabulary) == 1.0


def test_a_product_of_matrices_takes_time():
    assert matmul_flops(torch.device("cpu"), torch.float32) > 1e8
