"""The JSON Lines format of training text."""

from __future__ import annotations

import pytest

from engine.errors import UsageError
from engine.text.examples import (
    Example,
    Message,
    encode_example,
    read_data_file,
)

TALK = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'


def test_conversations_and_documents_are_read_in_order(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'\ufeff{TALK}\n\n{{"text": "à", "expert": "qwen", "complete": false}}')
    talk, document = read_data_file(path)
    assert talk.messages == (Message("user", "hi"), Message("assistant", "ho"))
    assert talk.complete and talk.text is None
    assert document == Example(text="à", expert="qwen", complete=False)
    assert len(list(read_data_file(path))) == 2


def test_examples_survive_a_round_trip(tmp_path):
    path = tmp_path / "data.jsonl"
    examples = [
        Example(text="line\nbreak\u2028 and more"),
        Example(messages=(Message("assistant", ""),), capability="math", complete=False),
    ]
    path.write_bytes(b"\n".join(encode_example(example) for example in examples))
    assert list(read_data_file(path)) == examples


@pytest.mark.parametrize(
    "line",
    [
        "{broken",
        "[1]",
        "{}",
        '{"text": ""}',
        '{"text": 3}',
        '{"text": "a", "messages": []}',
        '{"messages": [{"role": "user", "content": "no answer"}]}',
        '{"messages": [{"role": "robot", "content": "x"}]}',
        '{"messages": [{"role": "assistant"}]}',
        '{"text": "\\ud800"}',
        b'{"text": "\xff"}',
    ],
)
def test_a_broken_line_is_named_with_its_file_and_number(tmp_path, line):
    path = tmp_path / "data.jsonl"
    data = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(TALK.encode() + b"\n\n" + data + b"\n")
    with pytest.raises(UsageError) as raised:
        list(read_data_file(path))
    assert f"{path}, line 3: " in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match="empty"):
        list(read_data_file(path))


def test_a_file_that_cant_be_read_is_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match=str(path)):
            list(read_data_file(path))
