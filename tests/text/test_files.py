"""Files in the formats, encodings and sizes that people bring."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from engine.text.examples import Example, LeftOut, Message
from engine.text.pieces import PIECE_BYTES, FilePieces
from engine.text.sources import open_files, read_items, source_bytes, source_files
from engine.text.survey import survey
from engine.text.tally import TextTally
from tests.support.text_files import write_lines

ROWS: list[dict[str, Any]] = [
    {"text": "first"},
    {"prompt": "a", "completion": "b"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "é"}]},
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def read(path: Path) -> list[Example | LeftOut]:
    return list(read_items(open_files([str(path)])))


def examples(path: Path) -> list[Example]:
    return [item for item in read(path) if isinstance(item, Example)]


EXPECTED = [
    Example(text="first"),
    Example(messages=(Message("user", "a"), Message("assistant", "b"))),
    Example(messages=(Message("user", "q"), Message("assistant", "é"))),
]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES.encode()),
        ("a.JSONL", LINES.encode()),
        ("a.ndjson", LINES.encode("utf-8-sig")),
        ("a.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.jsonl", b"\xff\xfe\x00\x00" + LINES.encode("utf-32-le")),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("a.JSONL.GZ", gzip.compress(LINES.encode("utf-16"))),
        ("a.json", LINES.encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", json.dumps(ROWS, indent=2).encode("utf-16")),
        ("a.json", json.dumps({"version": "1", "data": ROWS}).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode())),
        ("without_suffix", LINES.encode()),
    ],
)
def test_rows_of_mixed_forms_are_read_from_each_format(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    assert examples(path) == EXPECTED
    text = FilePieces([path])
    for skip in range(4):
        assert [item for _, item in text.read(0, 0, skip)] == read(path)[skip:]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("packed", [False, True])
def test_documents_are_read_in_each_encoding(tmp_path, encoding, packed):
    text = "Grüße, 漢字.\n" * 4000
    data = text.encode(encoding)
    path = tmp_path / ("a.TXT.gz" if packed else "a.TXT")
    path.write_bytes(gzip.compress(data) if packed else data)
    found = examples(path)
    assert "\n".join(e.text or "" for e in found) == text.strip("\n")
    assert [e.complete for e in found] == [False] * (len(found) - 1) + [True]


def test_items_of_a_pretty_list_name_their_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": "a"}, {"body": "b"}, 7, {"text": "c"}], indent=1))
    found = read(path)
    assert [item.where for item in found] == [f"{path}, line {n}" for n in (2, 5, 8, 9)]
    assert [type(item) for item in found] == [Example, LeftOut, LeftOut, Example]


def test_a_large_list_and_a_large_packed_file_are_one_piece_each(tmp_path):
    texts = write_lines(tmp_path / "a.jsonl", 3000, 400)
    data = (tmp_path / "a.jsonl").read_bytes()
    rows = [json.loads(line) for line in data.splitlines()]
    assert len(data) > 2 * PIECE_BYTES
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_bytes(data)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(data, 1))
    for name, pieces in (
        ("b.json", 1),
        ("c.json", -(-len(data) // PIECE_BYTES)),
        ("d.jsonl.gz", 1),
    ):
        text = FilePieces([tmp_path / name])
        assert text.pieces == pieces, name
        assert [e.text for e in examples(tmp_path / name)] == texts
    assert source_bytes(str(tmp_path / "d.jsonl.gz")) == len(data)


def test_a_document_of_twenty_megabytes_takes_linear_time(tmp_path):
    def seconds(size: int) -> float:
        path = tmp_path / f"{size}.jsonl"
        path.write_text(json.dumps({"text": "seven words of a river and stones " * (size // 34)}))
        began = time.perf_counter()
        tally = TextTally()
        for item in read(path):
            assert isinstance(item, Example)
            tally.add(item, "learnt")
        assert (tally.table().texts, tally.table().learnt) == (1, 1)
        return time.perf_counter() - began

    small = min(seconds(1 << 20) for _ in range(3))
    assert seconds(20 << 20) < 20 * small * 4 + 0.5


def test_ten_thousand_small_files_are_read(tmp_path):
    for n in range(10_000):
        (tmp_path / f"{n:05d}.txt").write_text(f"text {n}")
    found = survey([str(tmp_path)], is_large=False)
    assert found.table.texts == found.table.learnt == 10_000
    assert open_files([str(tmp_path)]).pieces == 1


def test_strange_files_are_left_out_and_end_nothing(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"M\0Z\0")
    (tmp_path / "b.jsonl").write_text(" \n\n")
    (tmp_path / "c.jsonl.gz").write_bytes(b"not packed")
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    (tmp_path / "e.json").write_text("3")
    (tmp_path / "f.jsonl").write_bytes(b'{"text": "\xe9"}\n{"text": "fine"}\n')
    (tmp_path / "LICENSE").write_text("MIT")
    (tmp_path / "dataset_infos.json").write_text("{}")
    found = read(tmp_path)
    assert [item.text for item in found if isinstance(item, Example)] == ["fine"]
    left = {Path(i.where.split(", ")[0]).name: i for i in found if isinstance(i, LeftOut)}
    assert {name: (item.reason, item.is_file) for name, item in left.items()} == {
        "a.txt": ("binary data", False),
        "b.jsonl": ("empty file", True),
        "c.jsonl.gz": ("broken file", True),
        "d.parquet": ("broken file", True),
        "e.json": ("broken file", True),
        "f.jsonl": ("not JSON", False),
        "LICENSE": ("format that is not read", True),
        "dataset_infos.json": ("card or settings of a data set", True),
    }


def test_a_card_alone_is_no_text_but_can_be_named(tmp_path):
    card = tmp_path / "README.md"
    card.write_text("# About")
    with pytest.raises(UsageError, match=r"not read: README\.md"):
        source_files(str(tmp_path))
    assert [e.text for e in examples(card)] == ["# About"]
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match="format is not read"):
        source_files(str(tmp_path / "table.csv"))


# --- The table ---------------------------------------------------------------


def test_a_document_counts_once_whatever_becomes_of_its_passages():
    def passage(number: int, last: bool = False) -> Example:
        return Example(text="x", passage=number, complete=last, where="f, line 1")

    tally = TextTally()
    tally.add(passage(0), "left_out", "odd")
    assert (tally.table().left_out, tally.table().cut) == (1, 0)
    tally.add(passage(1), "learnt")
    tally.add(passage(2, last=True), "held_out")
    table = tally.table()
    assert (table.texts, table.learnt, table.cut, table.left_out) == (1, 1, 1, 0)
    (reason,) = table.reasons
    assert (reason.outcome, reason.reason, reason.count) == ("cut", "odd", 1)
