"""Owns the JSON Lines format of text that is learnt from: conversations and documents.

One object a line: {"messages": [{"role", "content"}, ...]} or {"text": "..."}, with the optional
keys capability, expert, family and complete. It does not own how a model reads the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import UsageError


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A conversation (`messages`) or a document (`text`); exactly one of the two is set."""

    messages: tuple[Message, ...] | None = None
    text: str | None = None
    capability: str | None = None
    """What it teaches, such as `math`."""
    expert: str | None = None
    """Name of the expert that wrote it."""
    family: str | None = None
    """What it is a variant of: texts of one family are learnt from or held out together."""
    complete: bool = True
    """False where the last answer (or the document) was cut short: its end is not learnt."""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise ValueError('either "messages" or "text" is needed, and not both')
        if self.messages is not None and not any(m.role == "assistant" for m in self.messages):
            raise ValueError('"messages" has no assistant turn to learn from')
        if self.text is not None and not self.text:
            raise ValueError('"text" is empty')


OPTIONAL = ("capability", "expert", "family", "complete")
"""Columns of a table that say more of its text."""
_decoder = msgspec.json.Decoder(Example)
_encoder = msgspec.json.Encoder()


def encode_example(example: Example) -> bytes:
    """The example as one line of JSON, without the newline."""
    return _encoder.encode(example)


def decode_line(line: bytes) -> Example:
    """The example of a line; ValueError where it is none."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def example_of(values: Mapping[str, Any], column: str) -> Example:
    """The example of a row of a table: a conversation in `messages`, else the text of `column`.

    ValueError where it is none.
    """
    content = values.get(column)
    known = {k: values[k] for k in OPTIONAL if values.get(k) is not None}
    if isinstance(content, list):
        # Tables give every turn all keys that any turn has.
        turns = [{"role": t.get("role"), "content": t.get("content")} for t in content]
        known["messages"] = turns
    else:
        known["text"] = content
    try:
        return msgspec.convert(known, Example)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def read_data_file(path: str | Path) -> Iterator[Example]:
    """The examples of a JSON Lines file, in order; blank lines are passed over.

    UsageError names the file (and the line) where it can't be opened or a line is no example, and
    a file without any example.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 (entered below; only the opening is guarded here)
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{path}: {reason}; give --data a JSON Lines file") from error
    with file:
        found = False
        try:
            for number, line in enumerate(file, start=1):
                # A byte-order mark is what some editors leave at the start.
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.strip():
                    continue
                try:
                    yield _decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    problem = " ".join(str(error).split())
                    raise UsageError(
                        f"{path}, line {number}: {problem}; each line is an object with "
                        '"messages" or "text"'
                    ) from error
                found = True
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from error
    if not found:
        raise UsageError(f"{path} is empty; it needs at least one line with an example")


def check_data_file(path: str | Path) -> int:
    """Read the whole file and return its number of examples; UsageError as `read_data_file`."""
    return sum(1 for _ in read_data_file(path))
