"""Examples in Parquet files."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.text.sources import check_source, read_source
from tests.support.text_files import write_parquet

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_parquet_holds_documents_or_conversations(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["one", "two"], "capability": ["math", None]}, 1)
    write_parquet(tmp_path / "b.parquet", {"messages": [TALK], "id": [1]}, 1)
    one, two, talk = read_source(str(tmp_path))
    assert (one.text, one.capability, two.capability) == ("one", "math", None)
    assert talk.messages is not None and [m.content for m in talk.messages] == ["hi", "ho"]


def test_parquet_without_a_text_column_lists_its_columns(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["one"], "id": [1]}, 1)
    with pytest.raises(UsageError, match="only body, id"):
        check_source(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    with pytest.raises(UsageError, match="not a readable Parquet file"):
        check_source(str(tmp_path / "a.parquet"))
