"""Sources of training text: files, folders and data sets."""

from __future__ import annotations

import pytest

from engine.errors import MissingError, UsageError
from engine.text.sources import (
    HubText,
    absolute_source,
    check_hub,
    parse_hub,
    source_bytes,
    source_files,
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:org/name", HubText("org/name")),
        ("hf:org/name:test", HubText("org/name", split="test")),
        ("hf:org/name:train:content", HubText("org/name", column="content")),
        ("hf:org/name/part@abc:train:text", HubText("org/name", "part", "abc", column="text")),
        ("hf:name", HubText("name")),
    ],
)
def test_a_data_set_source_is_parsed_into_its_parts(source, expected):
    assert parse_hub(source) == expected
    assert absolute_source(source) == source


@pytest.mark.parametrize("source", ["hf:", "hf:a:b:c:d", "hf:org/name@", "hf:/nowhere/at/all"])
def test_an_invalid_data_set_source_is_a_one_line_usage_error(source):
    with pytest.raises(UsageError) as raised:
        parse_hub(source)
    assert "\n" not in str(raised.value)


def test_a_local_data_set_is_a_folder_and_the_rest_of_the_path_its_config(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    where = absolute_source("hf:./set/part:train:text")
    assert parse_hub(where) == HubText(str(tmp_path / "set"), "part", column="text")


def test_a_folder_is_read_in_name_order_without_hidden_files(tmp_path):
    for name in ("b/two.md", "a.txt", "b/one.jsonl", ".hidden/x.txt", "b/.y.txt", "b/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    names = [str(file.relative_to(tmp_path)) for file in source_files(str(tmp_path))]
    assert names == ["a.txt", "b/one.jsonl", "b/two.md"]
    assert source_bytes(str(tmp_path)) == 3 * 13
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match=r"\*\.jsonl"):
        source_files(str(tmp_path / "c"))
    with pytest.raises(UsageError, match="doesn't exist"):
        source_files(str(tmp_path / "d"))


def test_without_the_library_datasets_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'gladius\[data\]'"):
        check_hub("hf:org/name")
