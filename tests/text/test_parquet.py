"""Examples in Parquet files."""

from __future__ import annotations

from pathlib import Path

from engine.text.examples import Example, LeftOut
from engine.text.sources import open_files, read_items
from tests.support.text_files import write_parquet


def read(path: Path) -> list[Example | LeftOut]:
    return list(read_items(open_files([str(path)])))


TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_parquet_holds_documents_or_conversations(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["one", "two"], "capability": ["math", None]}, 1)
    write_parquet(tmp_path / "b.parquet", {"messages": [TALK], "id": [1]}, 1)
    one, two, talk = read(tmp_path)
    assert (one.text, one.capability, two.capability) == ("one", "math", None)
    assert talk.messages is not None and [m.content for m in talk.messages] == ["hi", "ho"]


def test_parquet_without_a_text_column_lists_its_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["one"], "id": [1]}, 1)
    (left,) = read(tmp_path)
    assert isinstance(left, LeftOut) and left.is_file and "only body, id" in left.detail
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    (left,) = read(tmp_path)
    assert isinstance(left, LeftOut) and "not a readable Parquet file" in left.detail
