"""Read a row of a data set as a training text, whatever form it has.

Forms: `messages`, ShareGPT's `conversations`, Alpaca's `instruction` and `output`, `prompt` and
`completion`, other pairs of question and answer, and `text`. docs/data.md has an example of each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.text.examples import Example, LeftOut, Message, Role, encode_example
from engine.text.turns import MEDIA, Unreadable, read_turns

PASSAGE_BYTES = 1 << 15
"""A longer document is read in passages of at most this size, all but its last marked as cut
(`Example.complete` is False)."""
MAX_DEPTH = 64
"""Levels of nesting of a tool's schema or a call's arguments, at most."""

OPTIONAL = ("capability", "expert", "family", "complete")
"""Optional keys of a row that are this program's own."""
CHATS = ("messages", "conversations", "conversation")
"""Keys of conversations."""
INSTRUCTION_ANSWERS = ("output", "response")
_PAIRS = (
    ("prompt", ("completion",)),
    ("prompt", ("response",)),
    ("question", ("answer", "response")),
    ("query", ("response", "answer")),
)
"""Keys of a request and its answer; those but the first only where the row has no `text`."""
_SYSTEM = ("system", "system_prompt")
_CONTEXT = ("context", "input", "passage", "choices", "options", "history", "document")
"""Keys that change what a pair means, and of which this reader knows no order."""
KEYS = (
    *(*CHATS, "text", "instruction", "input", "context", "history", *INSTRUCTION_ANSWERS),
    *("prompt", "completion", "question", "answer", "query", "chosen", "rejected", "label"),
    *(*_SYSTEM, "tools", "functions", "weight", *MEDIA, *_CONTEXT, *OPTIONAL),
)
"""All keys that the reader looks at."""

_FORMS = (
    "a row needs messages, conversations, text, instruction and output, prompt and completion, or "
    "another form of docs/data.md"
)


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Role
    content: str


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """The most usual lines, which msgspec reads several times faster than `read_row` does."""

    messages: list[_Plain] | None = None
    text: str | None = None
    capability: str | None = None
    expert: str | None = None
    family: str | None = None
    complete: bool = True


_line_decoder = msgspec.json.Decoder(_Line)


def read_line(line: bytes, where: str = "") -> Example:
    """The text of a line of JSON; raises Unreadable."""
    try:
        usual = _line_decoder.decode(line)
    except (ValueError, RecursionError):
        usual = None
    if usual is not None and (example := _usual(usual, where)) is not None:
        return example
    try:
        row = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        raise Unreadable("not JSON", f"not JSON ({str(error)[:160]})") from None
    return read_row(row, where=where)


def _usual(line: _Line, where: str) -> Example | None:
    """The line's example; None where `read_row` has to say what is wrong."""
    messages = None
    if line.messages is not None:
        if line.text is not None:
            return None
        answered = False
        turns: list[Message] = []
        for turn in line.messages:
            answered = answered or (turn.role == "assistant" and turn.content != "")
            turns.append(Message(turn.role, turn.content))
        if not answered:
            return None
        messages = tuple(turns)
    elif not line.text or line.text.isspace():
        return None
    return Example(
        messages=messages,
        text=line.text,
        capability=line.capability,
        expert=line.expert,
        family=line.family,
        complete=line.complete,
        where=where,
    )


def read_row(
    row: object, *, column: str | None = None, is_table: bool = False, where: str = ""
) -> Example:
    """The text of a row.

    Args:
        column: the only column to read; None: the form that the row has.
        is_table: whether the row is from a table, where a missing key is None and all structs of a
            column have the same keys.

    Raises Unreadable.
    """
    if not isinstance(row, Mapping):
        raise Unreadable("row is not an object", f"expected `object`: {_FORMS}")
    values: dict[str, Any] = {
        str(key): without_nulls(value) if is_table else value
        for key, value in row.items()
        if value is not None
    }
    if any(values.get(key) not in (None, "", [], {}) for key in MEDIA):
        raise Unreadable("image, audio or video", "images, audio and video are not learnt")
    fields = _own_keys(values)
    if column is not None:
        content = _of_column(values.get(column), column)
    else:
        content = _of_form(values, is_table)
    if isinstance(content, str):
        if not content or content.isspace():
            raise Unreadable("empty text", '"text" is empty')
        return Example(text=content, where=where, **fields)
    messages = _with_system(content, values)
    tools = _tools(values)
    _check_answers(messages, values)
    example = Example(messages=messages, tools=tools, where=where, **fields)
    if tools or any(message.tool_calls for message in messages):
        _check_depth(example)
    return example


def read_table_row(row: object, column: str | None, where: str) -> Example | LeftOut:
    """The text of a table's row, or why it is not learnt."""
    try:
        example = read_row(row, column=column, is_table=True, where=where)
        encode_example(example)  # what can't be written as UTF-8 can't be learnt
    except Unreadable as error:
        return LeftOut(reason=error.reason, where=where, detail=error.detail)
    except (ValueError, TypeError, RecursionError) as error:
        return LeftOut(reason="can't be read", where=where, detail=str(error)[:160])
    return example


def has_form(columns: Sequence[str]) -> bool:
    """Whether a table with these columns has a form that is read."""
    names = set(columns)
    answers = any(key in names for key in INSTRUCTION_ANSWERS)
    return (
        bool(names & {*CHATS, "text"})
        or ("instruction" in names and answers)
        or any(first in names and names & set(seconds) for first, seconds in _PAIRS)
    )


def _of_column(value: object, column: str) -> str | tuple[Message, ...]:
    """The document or conversation of a column that the user named."""
    if isinstance(value, str) and column != "text":
        turns = _json_turns(value)
        return value if turns is None else read_turns(turns)
    if isinstance(value, list):
        return read_turns(value)
    if value is None:
        raise Unreadable("empty text", f'"{column}" is empty')
    if not isinstance(value, str):
        raise Unreadable("text is not a string", f'"{column}" is not a string')
    return value


def _of_form(values: Mapping[str, Any], is_table: bool) -> str | tuple[Message, ...]:
    chats = [key for key in CHATS if key in values]
    if chats:
        if "text" in values and not is_table:
            raise Unreadable("two forms in one row", 'needs either "messages" or "text", not both')
        turns = values[chats[0]]
        if isinstance(turns, str):
            turns = _json_turns(turns)
        return read_turns(turns)
    if "instruction" in values and any(key in values for key in INSTRUCTION_ANSWERS):
        return _instruction(values)
    pairs = [
        (first, second)
        for first, seconds in _PAIRS
        for second in seconds
        if first in values and second in values
    ]
    if "text" in values and pairs != [("prompt", "completion")]:
        if not isinstance(values["text"], str):
            raise Unreadable("text is not a string", '"text" is not a string')
        return values["text"]
    if len(pairs) > 1:
        names = ", ".join(sorted({key for pair in pairs for key in pair}))
        raise Unreadable("two forms in one row", f"more than one form: {names}")
    if pairs:
        return _pair(values, *pairs[0])
    if "chosen" in values or "rejected" in values:
        raise Unreadable("preference pair", "pairs of chosen and rejected answers are not learnt")
    names = ", ".join(list(values)[:8])
    raise Unreadable("unknown form", f"{_FORMS}; it has {names or 'no keys'}"[:300])


def _instruction(values: Mapping[str, Any]) -> tuple[Message, ...]:
    """Alpaca's row, and Dolly's (`context`, `response`), joined as LLaMA-Factory joins them."""
    if any(key in values for key in ("choices", "options", "passage", "document")):
        raise Unreadable("unknown form", "there are keys beside the instruction that are not read")
    messages: list[Message] = []
    history = values.get("history", [])
    if not isinstance(history, list):
        raise Unreadable("history is not a list of pairs")
    for pair in history:
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unreadable("history is not a list of pairs")
        messages += [
            Message("user", _text(pair[0], "history")),
            Message("assistant", _text(pair[1], "history")),
        ]
    parts = [_text(values["instruction"], "instruction")]
    parts += [_text(values[key], key) for key in ("input", "context") if key in values]
    answer = next(key for key in INSTRUCTION_ANSWERS if key in values)
    messages += [
        Message("user", "\n".join(part for part in parts if part)),
        Message("assistant", _text(values[answer], answer)),
    ]
    return tuple(messages)


def _pair(values: Mapping[str, Any], request: str, answer: str) -> tuple[Message, ...]:
    """A request and its answer, each a string or a list of turns; answers in a request that is a
    list are context, as TRL has it."""
    beside = [key for key in _CONTEXT if values.get(key) not in (None, "", [], {})]
    if beside:
        raise Unreadable(
            "unknown form", f"{', '.join(beside)} is beside {request} and {answer}, and is not read"
        )
    if values.get("label") is False:
        raise Unreadable("preference pair", "a completion labelled as bad is not learnt")
    before: tuple[Message, ...]
    if isinstance(values[request], list):
        turns = [*values[request], {"role": "assistant", "content": ""}]
        before = read_turns(turns)[:-1]
        before = tuple(
            msgspec.structs.replace(m, weight=0) if m.role == "assistant" else m for m in before
        )
    else:
        before = (Message("user", _text(values[request], request)),)
    if isinstance(values[answer], list):
        return before + read_turns(values[answer])
    return (*before, Message("assistant", _text(values[answer], answer)))


def _with_system(messages: tuple[Message, ...], values: Mapping[str, Any]) -> tuple[Message, ...]:
    """The conversation with the system prompt of its row."""
    given = [_text(values[key], key) for key in _SYSTEM if values.get(key)]
    if not given:
        return messages
    if messages[0].role == "system":
        if messages[0].content == given[0]:
            return messages
        raise Unreadable("two system prompts", "the row and its first turn have a system prompt")
    return (Message("system", given[0]), *messages)


def _check_answers(messages: Sequence[Message], values: Mapping[str, Any]) -> None:
    """Raises Unreadable where no turn is learnt."""
    answers = [m for m in messages if m.role == "assistant"]
    if values.get("weight") in (0,) or not any(m.weight for m in answers):
        raise Unreadable("every answer has weight 0")
    if not any(m.content or m.reasoning_content or m.tool_calls for m in answers if m.weight):
        raise Unreadable("empty answer", "the answers are empty")


def _tools(values: Mapping[str, Any]) -> tuple[dict[str, Any], ...] | None:
    tools = values.get("tools")
    if isinstance(tools, str) and tools.strip():
        tools = _json_value(tools)
    if tools in (None, "", [], {}):
        functions = values.get("functions")
        if isinstance(functions, str) and functions.strip():
            functions = _json_value(functions)
        if functions in (None, "", [], {}):
            return None
        tools = functions
        if isinstance(tools, list):
            tools = [{"type": "function", "function": function} for function in tools]
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise Unreadable("tools that can't be read", '"tools" is not a list of objects')
    return tuple(dict(tool) for tool in tools)


def _own_keys(values: Mapping[str, Any]) -> dict[str, Any]:
    fields = {key: values[key] for key in OPTIONAL if key in values}
    for key, value in fields.items():
        kind = bool if key == "complete" else str
        if not isinstance(value, kind):
            raise Unreadable(
                f"{key} is not a {'boolean' if kind is bool else 'string'}",
                f'"{key}" is {str(value)[:40]!r}',
            )
    return fields


def _text(value: object, key: str) -> str:
    if not isinstance(value, str):
        raise Unreadable("content is not text", f'"{key}" is not text')
    return value


def _json_turns(text: str) -> list[Any] | None:
    """The turns in a string of JSON; None where it is something else."""
    if not text.lstrip().startswith("["):
        return None
    try:
        found = msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    is_turn = (isinstance(t, dict) and ("role" in t or "from" in t) for t in found)
    return found if found and all(is_turn) else None


def _json_value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        raise Unreadable("tools that can't be read", '"tools" is not JSON') from None


def _check_depth(example: Example) -> None:
    """Raises Unreadable where schemas or arguments can't be stored as JSON again."""
    values: list[Any] = [*(example.tools or ())]
    values += [call.arguments for m in example.messages or () for call in m.tool_calls]
    depth = 0
    while values:
        depth += 1
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply", f"nested more than {MAX_DEPTH} levels deep")
        inner = []
        for value in values:
            inner += value.values() if isinstance(value, Mapping) else ()
            inner += value if isinstance(value, list) else ()
        values = inner
    try:
        encode_example(example)
    except (TypeError, ValueError, OverflowError) as error:
        raise Unreadable("tools that can't be read", str(error)[:160]) from None


def without_nulls(value: Any) -> Any:
    """A table's value without the keys that only other rows have."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [without_nulls(inner) for inner in value]
    return value


def passages(example: Example) -> Iterator[Example]:
    """The example, or the passages of a long document; linear in its length."""
    text = example.text
    if text is None or len(text) * 4 <= PASSAGE_BYTES:
        yield example
        return
    data = text.encode()
    if len(data) <= PASSAGE_BYTES:
        yield example
        return
    at, number = 0, example.passage
    while at < len(data):
        piece = data[at : at + PASSAGE_BYTES]
        if at + len(piece) < len(data):
            piece = piece[: passage_end(piece)]
        at += len(piece)
        passage = piece.decode()
        if passage.isspace():
            continue
        is_last = at >= len(data)
        yield msgspec.structs.replace(
            example, text=passage, complete=example.complete and is_last, passage=number
        )
        number += 1


def passage_end(data: bytes) -> int:
    """The length of a passage that continues: up to a blank line, line, word or character end."""
    half = len(data) // 2
    for mark in (b"\n\n", b"\n", b" "):
        if (found := data.rfind(mark, half)) >= 0:
            return found + len(mark)
    end = len(data)
    while end > half and data[end - 1] & 0xC0 == 0x80:
        end -= 1
    return end - 1 if data[end - 1] >= 0xC0 else len(data)
