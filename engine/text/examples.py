"""A training text: a conversation or a document, and its stored form as a line of JSON.

`engine.text.forms` reads the forms in which people bring text; `distill.align` encodes a text for
a model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.errors import UsageError

Role = Literal["system", "user", "assistant", "tool"]


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    """A call of a function in an assistant's turn."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.id))


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation, with the keys that transformers' chat templates read."""

    role: Role
    content: str
    reasoning_content: str | None = None
    """What the assistant thought before it answered."""
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    """Name of the speaker, or of the function whose result a `tool` turn holds."""
    tool_call_id: str | None = None
    weight: float = 1
    """0: the turn is context only; no loss is taken on it."""


class Example(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, eq=False):
    """A conversation (`messages`) or a document (`text`); exactly one of the two is set.

    Two examples are equal where their stored forms are: `where` and `passage` don't count.
    """

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
    tools: tuple[dict[str, Any], ...] | None = None
    """JSON schemas of the functions that the assistant may call."""
    where: str = ""
    """FILE, line N; never stored."""
    passage: int = 0
    """Number, from 0, of the passage of a long document that was cut when it was read; never
    stored."""

    def __post_init__(self) -> None:
        if (self.messages is None) == (self.text is None):
            raise ValueError('needs either "messages" or "text", not both')
        if self.messages is not None and not any(m.role == "assistant" for m in self.messages):
            raise ValueError('"messages" has no assistant turn to train on')
        if self.text is not None and not self.text:
            raise ValueError('"text" is empty')

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Example) and self._stored() == other._stored()

    def __hash__(self) -> int:
        return hash((self.messages, self.text, self.expert, self.family))

    def _stored(self) -> tuple[Any, ...]:
        content = self.messages, self.text, self.tools, self.complete
        return *content, self.capability, self.expert, self.family


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """A text that is not learnt, or a file that is not read."""

    reason: str
    """In a few words, the same for all texts with this problem."""
    where: str = ""
    """FILE, line N."""
    detail: str = ""
    """What exactly is wrong with this text."""
    is_file: bool = False
    """Whether it is a file of a folder; such files are no texts."""
    passage: int = 0
    """Number, from 0, of the passage of a long document that is left out."""
    complete: bool = True
    """False if further passages of the document follow."""

    def sentence(self) -> str:
        """Where, and what is wrong, in one line."""
        return " ".join(f"{self.where}: {self.detail or self.reason}".split())


_decoder = msgspec.json.Decoder(Example)
_encoder = msgspec.json.Encoder()


def encode_example(example: Example) -> bytes:
    """The example as one line of JSON, without the newline."""
    if example.where or example.passage:
        example = msgspec.structs.replace(example, where="", passage=0)
    return _encoder.encode(example)


def decode_example(line: bytes) -> Example:
    """The example of a line that `encode_example` wrote; raises ValueError if it is not one."""
    try:
        return _decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error


def read_data_file(path: str | Path) -> Iterator[Example]:
    """The examples of a file that this program wrote, in order; blank lines are skipped.

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
