"""Data sets laid out as repositories of the Hub, read by the library `datasets` from a folder."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

pytest.importorskip("datasets")

import pyarrow
import pyarrow.parquet

from engine.errors import MissingError, UsageError
from engine.text.hub import HubPieces
from engine.text.sources import parse_hub

CARD = """---
configs:
- config_name: prose
  data_files:
  - split: train
    path: prose/train-*
  - split: test
    path: prose/test-*
- config_name: talks
  data_files:
  - split: train
    path: talks/*.jsonl.gz
---
# A corpus
"""
QUESTION = {"role": "user", "content": "hi"}


def make_repository(folder: Path, files: int = 3, rows: int = 50) -> Path:
    """Two configs: Parquet of several row groups, and compressed JSON Lines."""
    (folder / "prose").mkdir(parents=True)
    (folder / "talks").mkdir()
    (folder / "README.md").write_text(CARD)
    for n in range(files):
        texts = [f"text {n} {row} " + "word " * 20 for row in range(rows)]
        table = pyarrow.table({"text": texts, "url": ["u"] * rows, "body": texts[::-1]})
        name = f"train-{n:05d}-of-{files:05d}.parquet"
        pyarrow.parquet.write_table(table, folder / "prose" / name, row_group_size=20)
    one = pyarrow.table({"text": ["only"], "url": ["u"], "body": ["b"]})
    pyarrow.parquet.write_table(one, folder / "prose" / "test-00000-of-00001.parquet")
    for n in range(2):
        with gzip.open(folder / "talks" / f"{n}.jsonl.gz", "wt") as file:
            for turn in range(5):
                answer = {"role": "assistant", "content": f"ho {n} {turn}"}
                file.write(json.dumps({"messages": [QUESTION, answer]}) + "\n")
    return folder


@pytest.fixture
def repository(tmp_path) -> Path:
    return make_repository(tmp_path / "org" / "corpus")


def opened(source: str, cache: Path) -> HubPieces:
    return HubPieces(parse_hub(source), source, cache)


def test_a_config_of_parquet_is_read_file_by_file_from_any_position(repository, tmp_path):
    text = opened(f"hf:{repository}/prose:train:text", tmp_path)
    assert text.pieces == 3
    for piece in range(3):
        rows = list(text.read(piece, 0, 0))
        assert [part for part, _ in rows] == [0] * 20 + [1] * 20 + [2] * 10
        assert [e.text.split()[1:3] for _, e in rows] == [[str(piece), str(n)] for n in range(50)]
        assert list(text.read(piece, 1, 7)) == rows[27:]
        assert list(text.read(piece, 2, 10)) == []


def test_split_and_column_are_chosen_by_the_source(repository, tmp_path):
    assert opened(f"hf:{repository}/prose:test", tmp_path).pieces == 1
    ((_, example),) = opened(f"hf:{repository}/prose:test:body", tmp_path).read(0, 0, 0)
    assert example is not None and example.text == "b"


def test_conversations_in_compressed_lines(repository, tmp_path):
    text = opened(f"hf:{repository}/talks", tmp_path)
    rows = [example for n in range(text.pieces) for _, example in text.read(n, 0, 0)]
    assert len(rows) == 10
    assert all(e and e.messages and e.messages[1].content.startswith("ho") for e in rows)
    assert len(list(text.read(0, 0, 3))) == 2


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("hf:{}/nothing", UsageError, "prose"),
        ("hf:{}/prose:dev", UsageError, "no split dev, only"),
        ("hf:{}/prose:train:title", UsageError, "title"),
    ],
)
def test_an_unknown_config_split_or_column_is_one_line_with_the_known_ones(
    repository, tmp_path, source, kind, message
):
    with pytest.raises(kind) as raised:
        opened(source.format(repository), tmp_path)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_unreachable_hub_is_one_line_with_the_remedy(tmp_path, monkeypatch):
    import datasets
    import huggingface_hub

    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingError) as raised:
        opened("hf:nobody/nothing-at-all:train:text", tmp_path)
    assert "data.corpora=[]" in str(raised.value) and "\n" not in str(raised.value)


def test_the_fingerprint_changes_with_the_files(repository, tmp_path):
    source = f"hf:{repository}/prose"
    before = opened(source, tmp_path).fingerprint
    assert opened(source, tmp_path).fingerprint == before
    table = pyarrow.table({"text": ["x"], "url": ["u"], "body": ["b"]})
    pyarrow.parquet.write_table(table, repository / "prose" / "train-00009-of-00010.parquet")
    assert opened(source, tmp_path).fingerprint != before
