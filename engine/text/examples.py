"""The JSON Lines format of training text: conversations and documents.

Each line is an object, {"messages": [{"role", "content"}, ...]} or {"text": "..."}, with the
optional keys capability, expert, family and complete. `distill.data.conversations` encodes it for
a model.
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
    """The capability that it trains, such as `math`."""
    expert: str | None = None
    """Name of the expert that wrote it."""
    family: str | None = None
    """Groups variants of one text: all of a family is either trained on or held out."""
    complete: bool = True
    """False if the last answer (or the document) was cut off: its end is no training target."""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise ValueError('needs either "messages" or "text", not both')
        if self.messages is not None and not any(m.role == "assistant" for m in self.messages):
            raise ValueError('"messages" has no assistant turn to train on')
        if self.text is not None and not self.text:
            raise ValueError('"text" is empty')


OPTIONAL = ("capability", "expert", "family", "complete")
"""Optional keys of a line, and optional columns of a table."""
_decoder = msgspec.json.Decoder(Example)
_encoder = msgspec.json.Encoder()


def encode_example(example: Example) -> bytes:
    """The example as one line of JSON, without the newline."""
    return _encoder.encode(example)


def decode_line(line: bytes) -> Example:
    """The example of a line; raises ValueError if it is not valid."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def example_of(values: Mapping[str, Any], column: str) -> Example:
    """The example of a table row: `column` holds a conversation (a list of turns) or a text.

    Raises ValueError if it is not valid.
    """
    content = values.get(column)
    fields = {k: values[k] for k in OPTIONAL if values.get(k) is not None}
    if isinstance(content, list):
        # In a table every turn has all the keys that any turn has; keep only ours.
        turns = [{"role": t.get("role"), "content": t.get("content")} for t in content]
        fields["messages"] = turns
    else:
        fields["text"] = content
    try:
        return msgspec.convert(fields, Example)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def read_data_file(path: str | Path) -> Iterator[Example]:
    """The examples of a JSON Lines file, in order; blank lines are skipped.

    Raises UsageError, with file and line, if the file can't be opened, has an invalid line or
    has no example.
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
                # Some editors write a byte-order mark at the start.
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not line.strip():
                    continue
                try:
                    yield _decoder.decode(line)
                except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                    problem = " ".join(str(error).split())
                    raise UsageError(
                        f"{path}, line {number}: {problem}; each line must be an object with "
                        '"messages" or "text"'
                    ) from error
                found = True
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from error
    if not found:
        raise UsageError(f"{path} is empty; write at least one example into it")


def check_data_file(path: str | Path) -> int:
    """The number of examples in a file, all of it read; raises as `read_data_file` does."""
    return sum(1 for _ in read_data_file(path))
