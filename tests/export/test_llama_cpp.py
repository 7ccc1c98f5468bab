"""Token ids, logits and quantization by llama.cpp, where `make llama-cpp` has built it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.export import llama_runtime
from engine.export.parity.comparison import Comparison
from engine.export.parity.logits import check_logits
from engine.export.parity.structure import check_structure
from engine.export.parity.tensors import check_tensors
from engine.export.parity.texts import difficult_texts
from engine.gguf_types import gguf_type
from tests.support.exported import (
    byte_level_tokenizer,
    llama2_tokenizer,
    make_model,
    needs_llama_cpp,
    write,
)

pytestmark = needs_llama_cpp
SMALL = {"hidden_size": 256, "intermediate_size": 512, "max_position_embeddings": 256}


@pytest.mark.parametrize("family", [byte_level_tokenizer, llama2_tokenizer])
def test_llama_cpp_gives_the_same_ids_for_thousands_of_difficult_strings(family, tmp_path) -> None:
    tokenizer = family()
    model = make_model(tmp_path / "m", tokenizer, num_hidden_layers=1)
    path = write(model, tmp_path / "x.gguf")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = difficult_texts(2500, tokenizer.all_special_tokens, seed=1)
    python = llama_runtime.find_python()
    assert python is not None
    for added in (True, False):
        found = llama_runtime.token_ids(
            python, path, texts, add_special_tokens=added, tick=lambda: None
        )
        expected = [backend.encode(t, add_special_tokens=added).ids for t in texts]
        differing = [t for t, a, b in zip(texts, found, expected, strict=True) if a != b]
        assert differing == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), byte_level_tokenizer(), **SMALL)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_logits_match_transformers_within_the_types_bounds(model, tmp_path, kind: str) -> None:
    row = check_logits(Comparison(write(model, tmp_path / "x.gguf", kind), model))
    if kind == "q8_0":  # random weights give near ties, which change top-1
        assert row.number is not None and row.number <= gguf_type(kind).kl, row.value
    else:
        assert row.verdict == "pass", (row.value, row.bound)


def test_a_file_without_the_permutation_fails_on_logits(model, tmp_path, monkeypatch) -> None:
    from engine.export import gguf as gguf_file

    monkeypatch.setattr(gguf_file, "permute", lambda tensor, heads: tensor)
    row = check_logits(Comparison(write(model, tmp_path / "x.gguf"), model))
    assert row.verdict == "fail", row.value


def test_q4_k_m_is_written_by_llama_cpps_quantizer(model: Path, tmp_path: Path) -> None:
    source = write(model, tmp_path / "bf16.gguf", "bf16")
    target = tmp_path / "q4.gguf"
    llama_runtime.quantize(source, target, gguf_type("q4_k_m"), threads=1, tick=lambda: None)
    comparison = Comparison(target, model)
    assert comparison.type == gguf_type("q4_k_m")
    assert check_structure(comparison).verdict == "pass"
    assert check_tensors(comparison).verdict == "pass"


def test_a_file_that_llama_cpp_cannot_load_is_a_one_line_error(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    python = llama_runtime.find_python()
    assert python is not None
    with pytest.raises(llama_runtime.LlamaCppFailed, match=r"llama\.cpp failed") as raised:
        llama_runtime.token_ids(python, path, ["x"], add_special_tokens=True, tick=lambda: None)
    assert "\n" not in str(raised.value)
