"""The reader of small files: a typed value, or the reason why there is none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.small_files import (
    Damaged,
    decode_json,
    decode_signed,
    encode_signed,
    read_bytes,
    read_json,
    read_text,
    read_toml,
)


class Pair(msgspec.Struct):
    name: str
    number: int


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "truncated"),
        (b'{"name": "x", "num', "truncated"),
        (b'{"name": "x", "number": "y"}', "Expected `int`"),
        (b'{"name": "\xff", "number": 1}', "UTF-8"),
        (b"\x00" * 10, "malformed"),
        (b"[]", "Expected `object`"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_damaged_json_has_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "pair.json"
    path.write_bytes(content)
    with pytest.raises(Damaged, match=reason) as caught:
        read_json(path, Pair)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_damage(tmp_path: Path, opening: str) -> None:
    (tmp_path / "deep").write_text(opening * 200_000)
    with pytest.raises(Damaged, match="too deeply"):
        read_json(tmp_path / "deep")


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    try:
        decode_json(data, Pair)
    except Damaged as error:
        assert error.reason


@pytest.mark.parametrize(
    "content", [b"\xff", b"a = " + b"[" * 50_000, b"a = ", b'a = "\x00"'], ids=range(4)
)
def test_damaged_toml_has_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(Damaged):
        read_toml(path)


def test_a_file_that_is_too_large_or_no_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 101)
    assert read_text(path) == "x" * 101
    with pytest.raises(Damaged, match="101 bytes, more than 100"):
        read_bytes(path, limit=100)
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path / "pipe", tmp_path):
        with pytest.raises(Damaged, match="not a plain file"):
            read_bytes(other)
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(tmp_path)
        server.bind("socket")
        with pytest.raises(OSError):
            read_bytes(tmp_path / "socket")
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


@given(st.text(), st.integers(-(2**60), 2**60), st.data())
def test_a_flipped_bit_of_signed_json_is_found(name: str, number: int, data: st.DataObject) -> None:
    pair = Pair(name.encode(errors="replace").decode(), number)
    signed = encode_signed(pair)
    assert decode_signed(signed, Pair, "it") == pair
    flipped = bytearray(signed)
    flipped[data.draw(st.integers(0, len(signed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Damaged):
        decode_signed(bytes(flipped), Pair, "it")
