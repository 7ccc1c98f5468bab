"""Mapping tokenizers to GGUF, and rejecting those that it cannot represent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gguf import TokenType

from engine.errors import GladiusError, MissingError
from engine.export.tokenizer import read_gguf_tokenizer
from tests.support.exported import byte_level_tokenizer, change_json, llama2_tokenizer
from tests.support.paths import REPO


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_students_own_tokenizer_is_a_gpt2_style_byte_level_bpe(folder: Path) -> None:
    found = read_gguf_tokenizer(folder, 900)
    assert (found.model, found.pre, found.scores) == ("gpt2", "gpt-2", None)
    assert found.special == {"bos": 0, "eos": 2, "pad": 0}
    assert not found.add_bos and not found.add_eos
    assert found.merges and all(merge.count(" ") == 1 for merge in found.merges)
    assert found.types[:4] == [TokenType.CONTROL] * 3 + [TokenType.NORMAL]
    assert found.chat_template and "<|im_start|>" in found.chat_template


def test_rows_beyond_the_tokens_become_unused_tokens_with_unique_names(folder: Path) -> None:
    found = read_gguf_tokenizer(folder, 910)
    assert len(found.tokens) == len(set(found.tokens)) == len(found.types) == 910
    assert set(found.types[900:]) == {TokenType.UNUSED}


def test_llama2_scores_are_the_rank_of_a_tokens_first_merge(tmp_path: Path) -> None:
    llama2_tokenizer().save_pretrained(tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_bytes())["model"]["merges"]
    found = read_gguf_tokenizer(tmp_path, 32000)
    assert (found.model, found.pre, found.merges) == ("llama", "default", None)
    assert found.add_bos and not found.add_eos and found.add_space_prefix
    assert found.special["unk"] == 0 and found.types[0] == TokenType.UNKNOWN
    assert found.types[3 : 3 + 256] == [TokenType.BYTE] * 256
    assert found.scores is not None
    assert all(type(score) is float for score in found.scores)
    # The score of a merge is its rank, whichever of a token's pairs came first.
    assert found.scores[found.tokens.index("".join(merges[0]))] == 0
    assert found.scores[found.tokens.index("".join(merges[1]))] == -1
    assert min(found.scores) == found.scores[1], "tokens that no merge produces come last"


@pytest.mark.parametrize(
    ("name", "pre", "rows"),
    [("llama3", "llama-bpe", 128256), ("qwen3", "qwen2", 151936), ("gpt2", "gpt-2", 50257)],
)
def test_the_pre_tokenizer_is_recognized_by_its_structure(name: str, pre: str, rows: int) -> None:
    folder = REPO / "tmp" / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"the real tokenizer {name} is not in tmp/: run `make tokenizers`")
    found = read_gguf_tokenizer(folder, rows)
    assert (found.model, found.pre) == ("gpt2", pre)
    assert found.needs_nfc == (name == "qwen3") == bool(found.warnings)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__type": "WordPiece"}, "its model is WordPiece"),
        ({"model__dropout": 0.1}, "uses dropout"),
        ({"model__end_of_word_suffix": "</w>"}, "uses end_of_word_suffix"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "not a byte-level BPE"),
        ({"pre_tokenizer__add_prefix_space": True}, "not a byte-level BPE"),
        ({"model__ignore_merges": True}, "does not have its pre-tokenizer"),
        ({"post_processor": {"type": "RobertaProcessing"}}, "post-processor RobertaProcessing"),
        ({"model__byte_fallback": True}, "not normalize text as SentencePiece"),
    ],
)
def test_a_tokenizer_that_gguf_cannot_represent_is_rejected(
    folder: Path, fields, message: str
) -> None:
    change_json(folder / "tokenizer.json", **fields)
    with pytest.raises(GladiusError, match=message) as raised:
        read_gguf_tokenizer(folder, 900)
    assert "cannot be represented in GGUF" in str(raised.value) and "\n" not in str(raised.value)


def test_a_token_that_strips_spaces_is_rejected(folder: Path) -> None:
    added = json.loads((folder / "tokenizer.json").read_bytes())["added_tokens"]
    added[1]["lstrip"] = True
    change_json(folder / "tokenizer.json", added_tokens=added)
    with pytest.raises(GladiusError, match="uses lstrip"):
        read_gguf_tokenizer(folder, 900)


def test_more_tokens_than_rows_and_missing_or_damaged_files_are_errors(folder: Path) -> None:
    with pytest.raises(GladiusError, match="900 tokens, but the model's embedding has 800 rows"):
        read_gguf_tokenizer(folder, 800)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(GladiusError, match="damaged"):
        read_gguf_tokenizer(folder, 900)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(MissingError, match="is missing"):
        read_gguf_tokenizer(folder, 900)


def test_the_default_ids_of_a_config_are_not_taken_for_special_tokens(folder: Path) -> None:
    """LlamaConfig's defaults are 1 and 2; here 700 is an ordinary word."""
    change_json(folder / "tokenizer_config.json", bos_token=None, pad_token=None)
    (folder / "config.json").write_text('{"bos_token_id": 700, "pad_token_id": 1}')
    assert read_gguf_tokenizer(folder, 900).special == {"eos": 2, "pad": 1}
