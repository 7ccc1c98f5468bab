"""Comparing a GGUF file with its model: a correct file passes, one wrong byte fails."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.export import llama_runtime
from engine.export import tokenizer as gguf_tokenizer
from engine.export.parity.checks import parity_checks
from engine.export.parity.comparison import Comparison
from engine.export.parity.gguf_tokenizer import load_encoder
from engine.export.parity.logits import compare_logits
from engine.export.parity.reference import reference_logits
from engine.export.parity.tensors import check_tensors
from engine.export.parity.texts import difficult_texts
from engine.export.parity.tokens import check_tokens
from tests.support.exported import (
    byte_level_tokenizer,
    change_json,
    llama2_tokenizer,
    make_model,
    write,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untied, f32, with three more embedding rows than tokens."""
    folder = tmp_path_factory.mktemp("model")
    return make_model(folder, byte_level_tokenizer(), rows=903, dtype=torch.float32, tied=False)


@pytest.fixture(autouse=True)
def no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run without llama.cpp; test_llama_cpp.py runs with it."""
    monkeypatch.setattr(llama_runtime, "find_python", lambda: None)


def rows_of(gguf: Path, model: Path) -> dict[str, CheckDone]:
    return {row.name: row for row in parity_checks(gguf, model)}


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_a_written_file_matches_its_model(model: Path, tmp_path: Path, kind: str) -> None:
    rows = rows_of(write(model, tmp_path / "x.gguf", kind), model)
    verdicts = {name: row.verdict for name, row in rows.items()}
    assert verdicts == {
        "gguf_structure": "pass",
        "gguf_tensors": "pass",
        "gguf_tokens": "pass",
        "gguf_logits": "skip",
    }
    assert "make llama-cpp" in rows["gguf_logits"].meaning
    assert "tokenized by GLADIUS" in rows["gguf_tokens"].value
    assert ("exact" in rows["gguf_tensors"].value) == (kind != "q8_0")


def test_the_reader_of_gguf_experts_restores_the_same_model(model: Path, tmp_path: Path) -> None:
    """It shares no code with the writer: names, permutation, theta, epsilon."""
    expert = GGUFExpert(write(model, tmp_path / "x.gguf", "f32"))
    theirs = LlamaForCausalLM(expert.config())  # type: ignore[arg-type]
    theirs.load_state_dict(dict(expert.tensors()), strict=False)
    ours = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    ids = torch.arange(40)[None] * 7
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)


def test_logits_layer_by_layer_equal_those_of_the_whole_model(model: Path) -> None:
    whole = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    sequences = [[5, 9, 200, 7, 31], [400, 2]]
    with torch.no_grad():
        expected = torch.cat([whole(torch.tensor([ids])).logits[0] for ids in sequences])
    found = reference_logits(model, sequences, lambda: None)
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_a_flipped_bit_in_any_tensor_is_found(model: Path, tmp_path: Path) -> None:
    path = write(model, tmp_path / "x.gguf")
    whole = path.read_bytes()
    for tensor in GGUFReader(path).tensors[::3]:
        damaged = bytearray(whole)
        damaged[int(tensor.data_offset) + int(tensor.n_bytes) // 2] ^= 1
        path.write_bytes(damaged)
        assert check_tensors(Comparison(path, model)).verdict == "fail", tensor.name


def test_a_file_of_another_model_is_found(model: Path, tmp_path: Path) -> None:
    path = write(model, tmp_path / "x.gguf")
    other = tmp_path / "other"
    shutil.copytree(model, other)
    change_json(other / "config.json", rope_parameters__rope_theta=10000.0)
    row = rows_of(path, other)["gguf_structure"]
    assert row.verdict == "fail" and "llama.rope.freq_base is 50000.0" in row.value


def test_a_truncated_or_foreign_file_is_a_one_line_error(model: Path, tmp_path: Path) -> None:
    path = write(model, tmp_path / "x.gguf")
    whole = path.read_bytes()
    for damaged in (b"", b"GGUF", whole[:2000], b"x" * 5000):
        path.write_bytes(damaged)
        with pytest.raises(GladiusError, match="not a readable GGUF file") as raised:
            rows_of(path, model)
        assert "\n" not in str(raised.value)
    path.write_bytes(whole[:-4000])
    try:
        assert rows_of(path, model)["gguf_structure"].verdict == "fail"
    except GladiusError as error:
        assert "not a readable GGUF file" in str(error)


def test_a_changed_token_is_found(model: Path, tmp_path: Path) -> None:
    path = write(model, tmp_path / "x.gguf")
    data = path.read_bytes()
    token = "Ġthe".encode()
    assert data.count(token) >= 1
    path.write_bytes(data.replace(token, "Ġxhe".encode(), 1))
    assert rows_of(path, model)["gguf_structure"].verdict == "fail"


@pytest.mark.parametrize("family", [byte_level_tokenizer, llama2_tokenizer])
def test_our_encoder_of_a_file_gives_the_tokenizers_ids(family, tmp_path: Path) -> None:
    tokenizer = family()
    model = make_model(tmp_path / "m", tokenizer, num_hidden_layers=1)
    path = write(model, tmp_path / "x.gguf")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = difficult_texts(2100, tokenizer.all_special_tokens, seed=3)
    encode = load_encoder(path)
    for added in (True, False):
        expected = [backend.encode(t, add_special_tokens=added).ids for t in texts]
        assert [encode(text, added) for text in texts] == expected


def test_the_scores_of_llama_cpps_converter_fail_the_comparison(tmp_path, monkeypatch) -> None:
    """-1000 for every token: what llama.cpp's converter writes without a tokenizer.model."""
    model = make_model(tmp_path / "m", llama2_tokenizer(), num_hidden_layers=1)
    monkeypatch.setattr(gguf_tokenizer, "_scores", lambda tokens, merges: [-1000.0] * len(tokens))
    row = check_tokens(Comparison(write(model, tmp_path / "x.gguf"), model))
    assert row.verdict == "fail" and (row.number or 0) > 100, row.value


def test_compare_logits_measures_differences() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(6, 50)).astype(np.float32)
    sequences = [[1, 2, 3], [4, 5, 6]]
    same = compare_logits(ours, ours, sequences)
    assert (same.largest, same.kl, same.top1, same.perplexity) == (0, 0, 1, 0)
    shifted = compare_logits(ours, ours + 1, sequences)  # the same distribution
    assert shifted.largest == pytest.approx(1, rel=1e-5)
    assert shifted.kl == pytest.approx(0, abs=1e-6)
    assert compare_logits(ours, -ours, sequences).top1 < 0.2


def test_the_difficult_texts_are_reproducible_and_distinct() -> None:
    texts = difficult_texts(2500, ["<s>"])
    assert texts == difficult_texts(2500, ["<s>"]) and len(texts) == 2500
    assert len(set(texts)) > 2400 and sum("<s>" in t for t in texts) > 50
    assert difficult_texts(10) == texts[:10]
