"""Files, folders and data sets as text in pieces."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from engine.errors import MissingError, UsageError
from engine.text.examples import Example
from engine.text.sources import (
    PASSAGE_BYTES,
    PIECE_BYTES,
    FileText,
    HubText,
    absolute_source,
    check_source,
    parse_hub,
    read_source,
    source_bytes,
    source_files,
)


def whole(text: FileText, warn=lambda problem: None) -> list[Example | None]:
    return [example for n in range(text.pieces) for _, example in text.read(n, 0, 0, warn)]


def write_lines(path: Path, count: int, size: int = 200, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = [f"{n} " + "word " * rng.randrange(1, size) for n in range(count)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return texts


def write_parquet(path: Path, columns: dict[str, list], rows_per_group: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)


# --- What a source is ------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf:org/name", HubText("org/name")),
        ("hf:org/name:test", HubText("org/name", split="test")),
        ("hf:org/name:train:content", HubText("org/name", column="content")),
        ("hf:org/name/part@abc:train:text", HubText("org/name", "part", "abc", column="text")),
        ("hf:name", HubText("name")),
    ],
)
def test_a_data_set_is_named_by_its_parts(source, expected):
    assert parse_hub(source) == expected
    assert absolute_source(source) == source


@pytest.mark.parametrize("source", ["hf:", "hf:a:b:c:d", "hf:org/name@", "hf:/nowhere/at/all"])
def test_what_names_no_data_set_is_a_usage_error_of_one_line(source):
    with pytest.raises(UsageError) as raised:
        parse_hub(source)
    assert "\n" not in str(raised.value)


def test_a_local_data_set_is_the_folder_and_the_rest_its_config(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    where = absolute_source("hf:./set/part:train:text")
    assert parse_hub(where) == HubText(str(tmp_path / "set"), "part", column="text")


def test_a_folder_is_read_whole_in_the_order_of_names_without_what_is_hidden(tmp_path):
    for name in ("b/two.md", "a.txt", "b/one.jsonl", ".hidden/x.txt", "b/.y.txt", "b/picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "x"}')
    names = [str(file.relative_to(tmp_path)) for file in source_files(str(tmp_path))]
    assert names == ["a.txt", "b/one.jsonl", "b/two.md"]
    assert source_bytes(str(tmp_path)) == 3 * 13
    (tmp_path / "c").mkdir()
    with pytest.raises(UsageError, match=r"\*\.jsonl"):
        source_files(str(tmp_path / "c"))
    with pytest.raises(UsageError, match="doesn't exist"):
        source_files(str(tmp_path / "d"))


# --- Pieces ----------------------------------------------------------------


def test_each_line_is_in_one_piece_wherever_the_cuts_fall(tmp_path):
    texts = write_lines(tmp_path / "a.jsonl", 4000, 400)
    text = FileText([tmp_path / "a.jsonl"])
    assert text.size is not None and text.pieces == -(-text.size // PIECE_BYTES) >= 3
    assert [e.text for e in whole(text) if e] == texts


def test_a_line_longer_than_a_piece_is_read_once(tmp_path):
    texts = ["short", "x" * (3 * PIECE_BYTES), "last"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in texts))
    assert [e.text for e in whole(FileText([path])) if e] == texts


def test_reading_goes_on_from_any_place(tmp_path):
    write_lines(tmp_path / "a.jsonl", 300)
    write_lines(tmp_path / "b.jsonl", 50, seed=1)
    (tmp_path / "c.txt").write_text("A small text.")
    write_parquet(tmp_path / "d.parquet", {"text": [f"row {n}" for n in range(90)]}, 40)
    text = FileText(source_files(str(tmp_path)))
    assert text.pieces == 4  # the small files share one, each row group is one
    for piece in range(text.pieces):
        rows = list(text.read(piece, 0, 0, print))
        at: dict[int, int] = {}
        for n, (part, _) in enumerate(rows):
            assert list(text.read(piece, part, at.get(part, 0), print)) == rows[n:]
            at[part] = at.get(part, 0) + 1


def test_a_long_text_file_comes_in_passages_that_give_it_back(tmp_path):
    rng = random.Random(0)
    words = ("héllo", "漢字", "🙂", "plain", "text\n", "line\n\n")
    content = " ".join(rng.choice(words) for _ in range(400_000))
    path = tmp_path / "long.txt"
    path.write_text(content)
    text = FileText([path])
    passages = [e for e in whole(text) if e]
    assert text.pieces > 1 and len(passages) > 40
    assert "".join("".join(e.text.split()) for e in passages) == "".join(content.split())
    assert max(len(e.text.encode()) for e in passages) <= PASSAGE_BYTES
    assert [e.complete for e in passages] == [False] * (len(passages) - 1) + [True]


def test_text_without_white_space_is_never_cut_inside_a_character(tmp_path):
    path = tmp_path / "dense.txt"
    path.write_text("漢" * 900_000)
    problems: list[str] = []
    passages = [e for e in whole(FileText([path]), problems.append) if e]
    assert not problems and "".join(e.text for e in passages) == "漢" * 900_000


def test_what_cant_be_read_is_left_out_and_told_with_file_and_line(tmp_path):
    good = json.dumps({"text": "good " * 50}) + "\n"
    (tmp_path / "a.jsonl").write_text(good * 9000 + "{broken\n" + good * 5)
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait " * 3000)
    problems: list[str] = []
    examples = whole(FileText(source_files(str(tmp_path))), problems.append)
    assert sum(e is not None for e in examples) == 9005
    assert examples.count(None) == len(problems) == 3
    assert f"{tmp_path / 'a.jsonl'}, line 9001: " in problems[0]
    assert "b.txt, byte 3: not UTF-8" in problems[1]


def test_the_fingerprint_sees_a_file_that_came_or_grew(tmp_path):
    write_lines(tmp_path / "a.jsonl", 5)
    before = FileText(source_files(str(tmp_path))).fingerprint
    assert FileText(source_files(str(tmp_path))).fingerprint == before
    (tmp_path / "b.txt").write_text("more")
    assert FileText(source_files(str(tmp_path))).fingerprint != before


# --- Tables ----------------------------------------------------------------

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def test_parquet_holds_documents_or_conversations(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"text": ["one", "two"], "capability": ["math", None]}, 1)
    write_parquet(tmp_path / "b.parquet", {"messages": [TALK], "id": [1]}, 1)
    one, two, talk = read_source(str(tmp_path))
    assert (one.text, one.capability, two.capability) == ("one", "math", None)
    assert talk.messages is not None and [m.content for m in talk.messages] == ["hi", "ho"]


def test_parquet_without_a_column_of_text_names_those_that_it_has(tmp_path):
    write_parquet(tmp_path / "a.parquet", {"body": ["one"], "id": [1]}, 1)
    with pytest.raises(UsageError, match="only body, id"):
        check_source(str(tmp_path))
    (tmp_path / "a.parquet").write_bytes(b"no such thing")
    with pytest.raises(UsageError, match="no Parquet file"):
        check_source(str(tmp_path / "a.parquet"))


# --- A look before the start -----------------------------------------------


def test_the_check_reads_the_beginning_and_no_more(tmp_path):
    write_lines(tmp_path / "a.jsonl", 4000, 400)
    with open(tmp_path / "a.jsonl", "a") as file:
        file.write("{broken far behind\n")
    check_source(str(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{broken\n')
    with pytest.raises(UsageError, match=r"b\.jsonl, line 2: "):
        check_source(str(tmp_path))
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="byte 0: not UTF-8"):
        check_source(str(tmp_path))


def test_a_data_set_without_the_library_names_the_remedy(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'gladius\[data\]'"):
        check_source("hf:org/name")
