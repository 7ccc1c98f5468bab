"""A GGUF file of absurd counts is refused in one line before anything is allocated."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from engine.errors import GladiusError
from engine.experts.gguf_header import GgufDamage, check_header, open_gguf
from engine.experts.gguf_source import GGUFExpert
from tests.support.tiny_gguf import reference_tokenizer, tiny_model, write_gguf

UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def header(tensors: int = 0, fields: int = 0, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + body


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + body


def tensor(*dimensions: int, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text("w") + shape + struct.pack("<IQ", 0, offset)


NESTED = b"".join(array(ARRAY, 1) for _ in range(5000)) + array(UINT8, 1, b"x")
DAMAGED = {
    "tensors": (header(tensors=2**62), "announces 4,611,686,018,427,387,904 tensors"),
    "fields": (header(fields=2**63), "metadata fields"),
    "array": (header(fields=1, body=field("a", ARRAY, array(UINT32, 2**61))), "entries of an arr"),
    "many entries": (
        header(fields=1, body=field("a", ARRAY, array(UINT8, 5_000_000, bytes(5_000_000)))),
        "more than 4,000,000 entries",
    ),
    "nested": (header(fields=1, body=field("a", ARRAY, NESTED)), "nested more than 3 deep"),
    "string": (header(fields=1, body=field("a", STRING, struct.pack("<Q", 2**60))), "a string has"),
    "long token": (
        header(fields=1, body=field("a", ARRAY, array(STRING, 1, text("x" * 5000)))),
        "a string has 5,000 bytes",
    ),
    "dimensions": (header(tensors=1, body=tensor(1, 1, 1, 1, 1)), "has 5 dimensions"),
    "shape": (header(tensors=1, body=tensor(2**40, 2**40)), "a tensor has 1,208,925,819,614,"),
    "offset": (header(tensors=1, body=tensor(1, offset=2**50)), "1 weights, the file 57 bytes"),
    "type": (header(fields=1, body=field("a", 77, b"")), "unknown type 77"),
    "version": (header(version=99), "its version is 99"),
    "cut": (header(fields=1, body=field("a", UINT32, b"\0\0") + bytes(0)), "ends within"),
    "empty": (b"", "does not begin with GGUF"),
    "magic": (b"GGML" + bytes(40), "does not begin with GGUF"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_counts_that_the_file_cannot_hold_are_refused_at_once(tmp_path: Path, name):
    data, message = DAMAGED[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    del data
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(GgufDamage, match=message):
            check_header(path)
        assert time.monotonic() - began < 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(GladiusError, match="is not a readable GGUF file") as raised:
        GGUFExpert(path)
    assert "\n" not in str(raised.value)


def write(path: Path) -> bytes:
    """A real file of a tiny llama; returns its content."""
    tokenizer = reference_tokenizer()
    write_gguf(path, tiny_model(tokenizer.get_vocab_size()), tokenizer)
    return path.read_bytes()


def test_a_real_file_passes_and_every_cut_of_its_header_is_found(tmp_path: Path):
    path = tmp_path / "x.gguf"
    data = write(path)
    check_header(path)
    start = int(open_gguf(path).data_offset)
    for length in range(4, start - 32, max(1, start // 40)):
        path.write_bytes(data[:length])
        with pytest.raises(GgufDamage):
            check_header(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.block_count", 3_000_000, "num_hidden_layers 3,000,000"),
        ("llama.embedding_length", 2**31, "hidden_size 2,147,483,648"),
        ("llama.feed_forward_length", 2**31, "intermediate_size 2,147,483,648"),
        ("llama.attention.head_count", 0, "its config can't be read"),
    ],
)
def test_metadata_that_the_weights_cannot_have_is_refused(tmp_path: Path, key, value, message):
    path = tmp_path / "x.gguf"
    data = write(path)
    at = data.index(text(key)) + len(text(key)) + 4
    path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    with pytest.raises(GladiusError, match=message):
        GGUFExpert(path).config()
