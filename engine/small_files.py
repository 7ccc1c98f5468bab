"""Read small files whose content may be damaged: a typed value, or `Damaged` with the reason.

Every file of JSON, TOML or text that the program keeps (state, locks, configs, journals, manifests,
reports, settings) is read with these functions. A missing file raises FileNotFoundError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from engine.errors import GladiusError

SMALL = 64 << 20
"""Bytes that a small file has at most; a larger one is damaged."""
BAD_JSON = (msgspec.MsgspecError, ValueError, RecursionError)
"""What decoding invalid JSON raises: wrong types, not UTF-8, nested too deeply."""

T = TypeVar("T")


class Damaged(GladiusError):
    """The content of a file can't be used.

    Attributes:
        reason: what is wrong, in a few words.
    """

    def __init__(self, source: str | Path, reason: str) -> None:
        super().__init__(f"{source} is damaged: {reason}")
        self.source = str(source)
        self.reason = reason


def read_bytes(path: Path, limit: int = SMALL) -> bytes:
    """The content of a plain file; raises OSError, or Damaged when it is too large or no file."""
    # Without O_NONBLOCK, opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise Damaged(path, "it is not a plain file")
        if found.st_size > limit:
            raise Damaged(path, f"it has {found.st_size:,} bytes, more than {limit:,}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


@overload
def decode_json(data: bytes | str, type: type[T], source: str | Path = ...) -> T: ...
@overload
def decode_json(data: bytes | str, type: Any = ..., source: str | Path = ...) -> Any: ...
def decode_json(data: bytes | str, type: Any = Any, source: str | Path = "the data") -> Any:
    """The JSON as a value of `type`; raises Damaged, whose message names `source`."""
    try:
        return msgspec.json.decode(data, type=type)
    except BAD_JSON as error:
        raise Damaged(source, _reason(error)) from error


@overload
def read_json(path: Path, type: type[T], limit: int = ...) -> T: ...
@overload
def read_json(path: Path, type: Any = ..., limit: int = ...) -> Any: ...
def read_json(path: Path, type: Any = Any, limit: int = SMALL) -> Any:
    """The JSON file as a value of `type`; raises OSError or Damaged."""
    return decode_json(read_bytes(path, limit), type, path)


def read_text(path: Path, limit: int = SMALL) -> str:
    """The UTF-8 text of a file; raises OSError or Damaged."""
    return _parse(path, limit, str)


def read_toml(path: Path, limit: int = SMALL) -> dict[str, Any]:
    """The tables of a TOML file; raises OSError or Damaged."""
    import tomllib

    return _parse(path, limit, tomllib.loads)


def _parse(path: Path, limit: int, parse: Callable[[str], T]) -> T:
    try:
        return parse(read_bytes(path, limit).decode())
    except (ValueError, RecursionError) as error:
        raise Damaged(path, _reason(error)) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(error).split())[:200]


# JSON that carries its own digest


def encode_signed(value: msgspec.Struct) -> bytes:
    """The struct as JSON with the SHA-256 of all before it as its last field."""
    body = msgspec.json.encode(value)
    return body[:-1] + _signature(body)


def decode_signed(data: bytes, type: type[T], source: str | Path) -> T:
    """The inverse of `encode_signed`; raises Damaged when a single bit differs."""
    size = len(_signature(b""))
    body = data[:-size] + b"}"
    if data[-size:] != _signature(body):
        raise Damaged(source, "its SHA-256 differs")
    return decode_json(body, type, source)


def _signature(body: bytes) -> bytes:
    import hashlib  # imported here because `status` does not need it

    return b',"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}'
