"""Open GGUF files of others: every count in the header is compared with the file's size first.

`gguf.GGUFReader` believes the counts: it makes several objects for each entry of an array, follows
nested arrays to any depth, and maps tensors of any shape.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from gguf import GGUFReader

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type number; 8 is a string, 9 an array."""
_STRING, _ARRAY = 8, 9
_MAX_DEPTH = 3
_MAX_DIMENSIONS = 4
_MAX_ENTRIES = 4_000_000
"""Array entries in a file; the largest vocabularies with their merges have under a million."""
_MAX_STRING = 16 << 20
"""Bytes of a single string, such as a chat template."""
_MAX_ENTRY = 4096
"""Bytes of a string in an array, such as a token or a merge."""
_MAX_NAME = 1024
_LEAST_FIELD, _LEAST_TENSOR = 13, 24
"""Least bytes of a metadata field and of a tensor's description."""


class GgufDamage(ValueError):
    """Why a file is not a GGUF file that can be opened, in a few words."""


def open_gguf(path: Path) -> GGUFReader:
    """The file, opened after its header was checked.

    Raises GgufDamage, or what the reader raises (ValueError, OSError, IndexError, KeyError).
    """
    check_header(path)
    return GGUFReader(path)


def check_header(path: Path) -> None:
    """Raise GgufDamage unless every count and size of the header fits into the file.

    Reads the header once and allocates nothing larger than a string. Raises OSError.
    """
    with open(path, "rb") as file:
        _Header(file, path.stat().st_size).check()


class _Header:
    """Reads the header of an open file of `size` bytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._entries = 0

    def check(self) -> None:
        if self._file.read(4) != _MAGIC:
            raise GgufDamage("it does not begin with GGUF")
        version = self._number("<I")
        if version not in _VERSIONS:
            raise GgufDamage(f"its version is {version}; 2 and 3 are read")
        tensors, fields = self._number("<Q"), self._number("<Q")
        self._require(tensors, _LEAST_TENSOR, "tensors")
        self._require(fields, _LEAST_FIELD, "metadata fields")
        for _ in range(fields):
            self._skip_string(_MAX_NAME, "a metadata key")
            self._skip_value(self._number("<I"), 0, _MAX_STRING)
        for _ in range(tensors):
            self._check_tensor()

    def _check_tensor(self) -> None:
        self._skip_string(_MAX_NAME, "a tensor's name")
        dimensions = self._number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise GgufDamage(f"a tensor has {dimensions:,} dimensions")
        elements = 1
        for _ in range(dimensions):
            elements *= self._number("<Q")
        self._number("<I")
        offset = self._number("<Q")
        # The smallest type has more than one bit for a weight.
        if elements > 8 * self._size or offset > self._size:
            raise GgufDamage(f"a tensor has {elements:,} weights, the file {self._size:,} bytes")

    def _skip_value(self, kind: int, depth: int, longest: int) -> None:
        if kind == _STRING:
            self._skip_string(longest, "a string")
        elif kind == _ARRAY:
            self._skip_array(depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise GgufDamage(f"a metadata field has the unknown type {kind}")

    def _skip_array(self, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise GgufDamage(f"an array is nested more than {_MAX_DEPTH} deep")
        kind, count = self._number("<I"), self._number("<Q")
        self._require(count, _SIZES.get(kind, 8), "entries of an array")
        self._entries += count
        if self._entries > _MAX_ENTRIES:
            raise GgufDamage(f"its arrays have more than {_MAX_ENTRIES:,} entries")
        if kind in _SIZES:
            self._skip(count * _SIZES[kind])
            return
        for _ in range(count):
            self._skip_value(kind, depth, _MAX_ENTRY)

    def _skip_string(self, longest: int, what: str) -> None:
        length = self._number("<Q")
        if length > longest:
            raise GgufDamage(f"{what} has {length:,} bytes")
        self._skip(length)

    def _require(self, count: int, least: int, what: str) -> None:
        """Raise unless `count` things of at least so many bytes fit into the rest of the file."""
        left = self._size - self._file.tell()
        if count * least > left:
            raise GgufDamage(f"it announces {count:,} {what}, and {left:,} bytes follow")

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._size:
            raise GgufDamage("it ends within its header")
        self._file.seek(count, 1)

    def _number(self, format: str) -> int:
        data = self._file.read(struct.calcsize(format))
        if len(data) < struct.calcsize(format):
            raise GgufDamage("it ends within its header")
        return struct.unpack(format, data)[0]
