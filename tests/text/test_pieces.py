"""Text files cut into pieces."""

from __future__ import annotations

import json
import random

from engine.text.examples import Example, LeftOut
from engine.text.pieces import PASSAGE_BYTES, PIECE_BYTES, FilePieces, located
from engine.text.sources import source_files
from tests.support.text_files import write_lines, write_parquet


def whole(text: FilePieces) -> list[Example]:
    return [item for item in items(text) if isinstance(item, Example)]


def items(text: FilePieces) -> list[Example | LeftOut]:
    return [item for n in range(text.pieces) for _, item in text.read(n, 0, 0)]


def test_each_line_belongs_to_exactly_one_piece(tmp_path):
    texts = write_lines(tmp_path / "a.jsonl", 4000, 400)
    text = FilePieces([tmp_path / "a.jsonl"])
    assert text.size is not None and text.pieces == -(-text.size // PIECE_BYTES) >= 3
    assert [e.text for e in whole(text)] == texts


def test_a_line_longer_than_a_piece_is_read_once(tmp_path):
    texts = ["short", "x" * (3 * PIECE_BYTES), "last"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    passages = whole(FilePieces([path]))
    assert "".join(e.text or "" for e in passages) == "".join(texts)
    assert [e.passage for e in passages] == [0, *range(96), 0]
    assert [e.complete for e in passages] == [True, *[False] * 95, True, True]
    assert {e.where for e in passages[1:-1]} == {f"{path}, line 2"}


def test_reading_resumes_from_any_position(tmp_path):
    write_lines(tmp_path / "a.jsonl", 300)
    write_lines(tmp_path / "b.jsonl", 50, seed=1)
    (tmp_path / "c.txt").write_text("A small text.")
    write_parquet(tmp_path / "d.parquet", {"text": [f"row {n}" for n in range(90)]}, 40)
    text = FilePieces(source_files(str(tmp_path)))
    assert text.pieces == 4  # the small files share one, each row group is one
    for piece in range(text.pieces):
        rows = list(text.read(piece, 0, 0))
        at: dict[int, int] = {}
        for n, (part, _) in enumerate(rows):
            assert list(text.read(piece, part, at.get(part, 0))) == rows[n:]
            at[part] = at.get(part, 0) + 1


def test_the_passages_of_a_long_text_file_add_up_to_the_file(tmp_path):
    rng = random.Random(0)
    words = ("héllo", "漢字", "🙂", "plain", "text\n", "line\n\n")
    content = " ".join(rng.choice(words) for _ in range(400_000))
    path = tmp_path / "long.txt"
    path.write_text(content)
    text = FilePieces([path])
    passages = whole(text)
    assert text.pieces > 1 and len(passages) > 40
    assert "".join("".join(e.text.split()) for e in passages) == "".join(content.split())
    assert max(len(e.text.encode()) for e in passages) <= PASSAGE_BYTES
    assert [e.complete for e in passages] == [False] * (len(passages) - 1) + [True]


def test_text_without_white_space_is_never_cut_inside_a_character(tmp_path):
    path = tmp_path / "dense.txt"
    path.write_text("漢" * 900_000)
    passages = whole(FilePieces([path]))
    assert "".join(e.text for e in passages) == "漢" * 900_000


def test_unreadable_examples_are_left_out_with_a_reason_and_their_file_and_line(tmp_path):
    good = json.dumps({"text": "good " * 50}) + "\n"
    (tmp_path / "a.jsonl").write_text(good * 9000 + "{broken\n" + good * 5)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait " * 3000)
    found = items(FilePieces(source_files(str(tmp_path))))
    assert sum(isinstance(item, Example) for item in found) == 9005
    broken, *latin = [item for item in found if isinstance(item, LeftOut)]
    assert broken.reason == "not JSON"
    assert located(broken.where) == f"{tmp_path / 'a.jsonl'}, line 9001"
    assert [left.reason for left in latin] == ["not UTF-8"] * 2
    assert "b.txt: byte 3: not UTF-8" in latin[0].sentence()


def test_the_fingerprint_changes_with_the_files(tmp_path):
    write_lines(tmp_path / "a.jsonl", 5)
    before = FilePieces(source_files(str(tmp_path))).fingerprint
    assert FilePieces(source_files(str(tmp_path))).fingerprint == before
    (tmp_path / "b.txt").write_text("more")
    assert FilePieces(source_files(str(tmp_path))).fingerprint != before
