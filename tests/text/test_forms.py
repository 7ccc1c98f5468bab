"""The forms in which people bring text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text.examples import Example, LeftOut, Message, ToolCall, decode_example, encode_example
from engine.text.forms import PASSAGE_BYTES, passages, read_line, read_row, read_table_row
from engine.text.keys import example_key
from engine.text.turns import Unreadable

DOCS = Path(__file__).parents[2] / "docs" / "data.md"
TALK = [
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
CALL = ToolCall("weather", {"city": "Oslo"})


def read(row: Any) -> Example:
    return read_line(json.dumps(row).encode())


def documented() -> list[str]:
    blocks = re.findall(r"```json\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def never_learnt() -> list[tuple[str, str]]:
    return re.findall(r"^\| ([^|`]+) \| `(.*)` \|$", DOCS.read_text(), re.MULTILINE)


# --- docs/data.md ------------------------------------------------------------


@pytest.mark.parametrize("line", documented())
def test_each_documented_row_is_read(line):
    example = read_line(line.encode())
    as_table_row = msgspec.json.decode(line)
    assert read_table_row(as_table_row | {"unused": None}, None, "") == example
    assert decode_example(encode_example(example)) == example


@pytest.mark.parametrize(("reason", "line"), never_learnt())
def test_each_documented_refusal_has_its_reason(reason, line):
    with pytest.raises(Unreadable) as raised:
        read_line(line.encode())
    assert raised.value.reason == reason and "\n" not in raised.value.detail


def test_the_documentation_has_all_forms_and_many_refusals():
    assert len(documented()) >= 14 and len(never_learnt()) >= 20


# --- What each form becomes --------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": [
                {"from": "human", "value": "Capital of France?"},
                {"from": "gpt", "value": "Paris."},
            ]
        },
        {
            "conversation": [
                {"role": "user", "content": "Capital of France?", "toxic": False},
                {"role": "assistant", "content": "Paris.", "timestamp": None},
            ],
            "language": "English",
        },
        {"prompt": "Capital of France?", "completion": "Paris."},
        {"question": "Capital of France?", "answer": "Paris.", "id": 7},
        {"instruction": "Capital of France?", "input": "", "output": "Paris.", "text": "Below ..."},
        {"instruction": "Capital of", "context": "France?", "response": "Paris."},
        {"messages": json.dumps(TALK)},
    ],
)
def test_the_same_conversation_in_many_forms(row):
    messages = read(row).messages
    assert messages is not None
    expected = "Capital of\nFrance?" if "context" in row else "Capital of France?"
    assert messages == (Message("user", expected), Message("assistant", "Paris."))
    assert read_table_row(row | {"tools": None}, None, "") == read(row)


def test_tool_calls_tools_and_reasoning_are_kept():
    openai = {
        "messages": [
            {"role": "user", "content": "Weather in Oslo?"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "Look it up.",
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "4 degrees"},
            {"role": "assistant", "content": "4 degrees."},
        ],
        "functions": [{"name": "weather"}],
    }
    example = read(openai)
    assert example.tools == ({"type": "function", "function": {"name": "weather"}},)
    assert example.messages is not None
    assert example.messages[1] == Message(
        "assistant",
        "",
        reasoning_content="Look it up.",
        tool_calls=(ToolCall("weather", {"city": "Oslo"}, "c1"),),
    )
    assert example.messages[2] == Message("tool", "4 degrees", name="weather", tool_call_id="c1")
    share = read(
        {
            "conversations": [
                {"from": "human", "value": "Weather in Oslo?"},
                {
                    "from": "function_call",
                    "value": '<think>\nLook it up.\n</think>\n\n{"name": "weather", '
                    '"arguments": {"city": "Oslo"}}',
                },
                {"from": "observation", "value": "4 degrees"},
                {"from": "gpt", "value": "4 degrees."},
            ]
        }
    )
    assert share.messages is not None
    assert share.messages[1] == Message(
        "assistant", "", reasoning_content="Look it up.", tool_calls=(CALL,)
    )
    assert [m.role for m in share.messages] == ["user", "assistant", "tool", "assistant"]


def test_nulls_of_a_table_are_no_arguments():
    call = {"name": "weather", "arguments": {"city": "Oslo", "unit": None}}
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [call]}]}
    in_table, in_line = read_row(row, is_table=True), read_row(row)
    assert in_table.messages is not None and in_line.messages is not None
    assert in_table.messages[0].tool_calls == (CALL,)
    assert in_line.messages[0].tool_calls[0].arguments == {"city": "Oslo", "unit": None}


def test_weights_and_answers_within_a_prompt_are_context():
    example = read(
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ],
            "completion": "d",
        }
    )
    assert example.messages is not None
    assert [(m.content, m.weight) for m in example.messages] == [
        ("a", 1), ("b", 0), ("c", 1), ("d", 1),
    ]  # fmt: skip
    turns = [{"role": "assistant", "content": "x", "train": False}]
    with pytest.raises(Unreadable, match="weight 0"):
        read({"messages": turns})


def test_old_lines_have_the_keys_and_bytes_that_they_had():
    """What earlier versions computed for these examples."""
    talk = Example(messages=(Message("user", "hi"), Message("assistant", "ho")), where="f, line 1")
    assert encode_example(talk) == (
        b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"ho"}]}'
    )
    assert example_key(talk) == "5c9a0cebc469aaca9a088ee2781d30ca2faaf26359c203a2fea7920581ce7cc4"
    assert (
        example_key(Example(text="e\u0301"))
        == "e71fb67a7583becb88e037b79f5f75a0ce23db2b01588cf9a5633cc7dda862df"
    )
    assert read({"messages": [{"role": "assistant", "content": "x", "weight": 1}]}) == Example(
        messages=(Message("assistant", "x"),)
    )


def test_a_named_column_holds_conversations_or_text():
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    for value in (turns, json.dumps(turns)):
        example = read_table_row({"dialog": value, "text": "x"}, "dialog", "")
        assert isinstance(example, Example) and example.messages is not None
    example = read_table_row({"code": "[1, 2]"}, "code", "")
    assert isinstance(example, Example) and example.text == "[1, 2]"


# --- Long and strange --------------------------------------------------------


@pytest.mark.parametrize("unit", ["word ", "漢", "x", "é\n"])
def test_passages_of_a_long_document_add_up_to_it(unit):
    text = unit * (200_000 // len(unit))
    parts = list(passages(Example(text=text, where="f, line 1")))
    assert "".join(part.text or "" for part in parts) == text
    assert max(len((part.text or "").encode()) for part in parts) <= PASSAGE_BYTES
    assert [part.complete for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [part.passage for part in parts] == list(range(len(parts)))


def test_deep_nesting_is_a_reason():
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    line = b'{"messages": [{"role": "assistant", "content": "x"}], "tools": [{"a": ' + (
        b"[" * 5000 + b"]" * 5000 + b"}]}"
    )
    with pytest.raises(Unreadable):
        read_line(line)
    assert isinstance(read_table_row({"messages": deep}, None, "f"), LeftOut)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ("role", "content", "from", "value", "tool_calls", "function", "name", "arguments",
             "type", "text", "weight", "reasoning", "x")
        ),
        inner,
        max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip
_turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(("user", "assistant", "tool", "system", "gpt", "?"))},
        optional={"content": _values, "tool_calls": _values, "weight": _values, "value": _values},
    ),
    max_size=4,
)
_rows = st.dictionaries(
    st.sampled_from(
        ("messages", "conversations", "text", "prompt", "completion", "instruction", "output",
         "input", "history", "system", "tools", "images", "label", "complete", "family", "answer",
         "question")
    ),
    _values | _turns,
    max_size=4,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(_rows | _values)
def test_a_row_is_an_example_or_a_reason(row):
    found = read_table_row(row, None, "f, row 1")
    if isinstance(found, LeftOut):
        assert found.reason and found.where == "f, row 1" and "\n" not in found.sentence()
    else:
        assert len(example_key(found)) == 64
        assert decode_example(encode_example(found)) == found
        assert list(passages(found))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | _rows.map(lambda row: json.dumps(row).encode()))
def test_a_line_is_an_example_or_a_reason(line):
    try:
        found = read_line(line, "f, line 1")
    except Unreadable as error:
        assert error.reason
    else:
        assert decode_example(encode_example(found)) == found
