"""Make text that others wrote safe to show: titles, file names, templates, errors, model output.

A terminal obeys control characters, and bidirectional and zero-width marks make text look different
from what it says. `shown` writes them as escapes, in the form that JSON reads.
"""

from __future__ import annotations

import codecs
import functools
import types
import typing
from typing import Any, TypeVar

import msgspec

_Value = TypeVar("_Value")

_SPACES = frozenset(" \u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))))
"""Spaces with a width, which `isprintable` does not count in."""

LINES = "\n\t"
"""Characters to keep in text of several lines."""


def shown(text: str, limit: int | None = None, keep: str = "") -> str:
    r"""The text with escapes (`\u001b`) for all that is not printable, such as ESC and bidi marks.

    Args:
        limit: most characters; an ellipsis marks a cut.
        keep: characters to leave as they are; `LINES` in text of several lines.
    """
    if not text.isprintable():
        kept = _SPACES.union(keep)
        text = "".join(c if c.isprintable() or c in kept else escape(c) for c in text)
    if limit is not None and len(text) > limit:
        return text[: max(0, limit - 1)] + "…"
    return text


def escape(character: str) -> str:
    r"""A character as JSON escapes it: `\u001b`; two of them beyond U+FFFF."""
    code = ord(character)
    if code <= 0xFFFF:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def without_controls(text: str) -> str:
    """The text in the same number of terminal cells: `�` for what is not printable, nothing where
    that has no width. For text that is laid out already."""
    if text.isprintable():
        return text
    from rich.cells import cell_len

    return "".join(c if c.isprintable() or c in _SPACES else "�" * cell_len(c) for c in text)


def shown_values(value: _Value) -> _Value:
    """A copy of a struct, event or plain data with `shown` applied to every text in it.

    Line breaks and tabs stay: what is shown in one line has to join the lines itself.
    """
    return _shown_value(value)


def _shown_value(value: Any) -> Any:
    if isinstance(value, str):
        return shown(value, keep=LINES)
    if isinstance(value, msgspec.Struct):
        changes = {}
        for name in _text_fields(type(value)):
            old = getattr(value, name)
            new = _shown_value(old)
            if new is not old:
                changes[name] = new
        return msgspec.structs.replace(value, **changes) if changes else value
    if isinstance(value, tuple | list):
        items = [_shown_value(item) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else type(value)(items)
    if isinstance(value, dict):
        return {_shown_value(key): _shown_value(item) for key, item in value.items()}
    return value


@functools.cache
def _text_fields(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """The fields of a struct that may hold text, at any depth."""
    fields = msgspec.structs.fields(struct)
    return tuple(field.name for field in fields if not _is_plain(field.type))


def _is_plain(annotation: Any) -> bool:
    """Whether values of this type hold no text of others: numbers and fixed words."""
    if annotation in (int, float, bool, types.NoneType):
        return True
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return True
    if origin in (types.UnionType, typing.Union):
        return all(_is_plain(part) for part in typing.get_args(annotation))
    return False


def _escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(escape(character) for character in text), error.end


UNENCODABLE = "gladius-escape"
"""Error handler of `str.encode`: writes what the encoding lacks as escapes that JSON reads."""
codecs.register_error(UNENCODABLE, _escape_unencodable)
