"""llama.cpp itself, where `make llama-cpp` has built it: ids, logits and types."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engine.export import llama_runtime
from engine.export.parity import Comparison
from engine.export.parity_texts import nasty_texts
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
def test_llama_cpp_gives_the_same_ids_on_thousands_of_nasty_strings(family, tmp_path) -> None:
    tokenizer = family()
    model = make_model(tmp_path / "m", tokenizer, num_hidden_layers=1)
    path = write(model, tmp_path / "x.gguf")
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    texts = nasty_texts(2500, tokenizer.all_special_tokens, seed=1)
    python = llama_runtime.find_python()
    assert python is not None
    for special in (True, False):
        found = llama_runtime.token_ids(python, path, texts, special=special, tick=lambda: None)
        expected = [backend.encode(t, add_special_tokens=special).ids for t in texts]
        differing = [t for t, a, b in zip(texts, found, expected, strict=True) if a != b]
        assert differing == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), byte_level_tokenizer(), **SMALL)


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_logits_are_transformers_within_the_types_bounds(model, tmp_path, kind: str) -> None:
    row = Comparison(write(model, tmp_path / "x.gguf", kind), model).logits()
    if kind == "q8_0":  # random weights have near ties, which top-1 counts
        assert row.number is not None and row.number <= gguf_type(kind).kl, row.value
    else:
        assert row.verdict == "pass", (row.value, row.bound)


def test_a_file_with_another_permutation_fails_on_logits(model, tmp_path, monkeypatch) -> None:
    from engine.export import gguf as gguf_file

    monkeypatch.setattr(gguf_file, "permute", lambda tensor, heads: tensor)
    row = Comparison(write(model, tmp_path / "x.gguf"), model).logits()
    assert row.verdict == "fail", row.value


def test_q4_k_m_is_made_by_llama_cpps_quantiser(model: Path, tmp_path: Path) -> None:
    source = write(model, tmp_path / "bf16.gguf", "bf16")
    target = tmp_path / "q4.gguf"
    llama_runtime.quantize(source, target, gguf_type("q4_k_m"), threads=1, tick=lambda: None)
    comparison = Comparison(target, model)
    assert comparison.type == gguf_type("q4_k_m")
    assert comparison.structure().verdict == "pass"
    assert comparison.tensors().verdict == "pass"


def test_what_llama_cpp_cannot_load_is_one_line(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    python = llama_runtime.find_python()
    assert python is not None
    with pytest.raises(llama_runtime.LlamaCppFailed, match=r"llama\.cpp failed") as raised:
        llama_runtime.token_ids(python, path, ["x"], special=True, tick=lambda: None)
    assert "\n" not in str(raised.value)
