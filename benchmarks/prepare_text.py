"""`prepare_text_ratio`: time to read JSON Lines, relative to decoding them into fixed types.

`long_document_ratio`: time per byte of a document of 32 MiB, relative to one of 2 MiB.
Reading finds each row's form, its file and line, and cuts long documents into passages.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import msgspec

from benchmarks.timing import Figure, interleave, narrate, ratio
from engine.text.examples import Example
from engine.text.pieces import FilePieces

BOUND, LONG_BOUND = 5.0, 4.0
SIZE = 24 << 20
LONG, SHORT = 32 << 20, 2 << 20
REPETITIONS = 7
_WORDS = ("river", "stone", "lamp", "garden", "winter", "copper", "window", "letter", "mountain")


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Row(msgspec.Struct):
    messages: list[_Turn] | None = None
    text: str | None = None


def measure(folder: Path) -> dict[str, Figure]:
    """`folder` is for the files, about 60 MiB."""
    lines, long, short = (folder / f"{name}.jsonl" for name in ("lines", "long", "short"))
    narrate(f"writing {SIZE >> 20} MiB of text")
    _write_rows(lines, SIZE)
    for path, size in ((long, LONG), (short, SHORT)):
        path.write_text(json.dumps({"text": _words(random.Random(0), size)}) + "\n")
    seconds = interleave(
        {"read": lambda _: _read(lines), "decode": lambda _: _decode(lines)}, REPETITIONS
    )
    documents = interleave(
        {"long": lambda _: _read(long), "short": lambda _: _read(short)}, REPETITIONS
    )
    for path in (lines, long, short):
        path.unlink()
    per_byte = [value * LONG / SHORT for value in documents["short"]]
    mib = SIZE >> 20
    return {
        "prepare_text_ratio": ratio(seconds["read"], seconds["decode"], BOUND, mib=mib),
        "long_document_ratio": ratio(documents["long"], per_byte, LONG_BOUND),
    }


def _words(rng: random.Random, size: int) -> str:
    paragraph = " ".join(rng.choice(_WORDS) for _ in range(2000))
    return (paragraph + "\n") * (size // len(paragraph) + 1)


def _write_rows(path: Path, size: int) -> None:
    rng = random.Random(0)
    written = 0
    with open(path, "w") as file:
        while written < size:
            answer = " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(5, 300)))
            turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]
            row = {"messages": turns} if rng.random() < 0.5 else {"text": answer}
            written += file.write(json.dumps(row) + "\n")


def _read(path: Path) -> None:
    text = FilePieces([path])
    items = [item for n in range(text.pieces) for _, item in text.read(n, 0, 0)]
    assert items and all(isinstance(item, Example) for item in items)


def _decode(path: Path) -> None:
    decoder = msgspec.json.Decoder(_Row)
    with open(path, "rb") as file:
        rows = [decoder.decode(line) for line in file]
    assert rows
