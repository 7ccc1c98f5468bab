"""The seal: which lines of a text have changed, and which files of an expert."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint import seal
from engine.checkpoint.hashing import FileRecord
from engine.checkpoint.seal import (
    changed_lines,
    files_problem,
    seal_expert,
    seal_text,
    text_problem,
)
from engine.workspace import moved_path

LINES = [f"line {n} of the text\n" for n in range(200)]


def problem(path: Path, before: list[str], after: list[str]) -> str | None:
    path.write_text("".join(before))
    sealed = seal_text(path)
    path.write_text("".join(after))
    return text_problem(str(path), sealed, seal_text(path))


def test_the_lines_that_changed_are_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    assert problem(path, LINES, LINES) is None
    changed = [*LINES[:60], *(line.upper() for line in LINES[60:120]), *LINES[120:]]
    assert str(problem(path, LINES, changed)).endswith("lines 61 to 120 (of 200) differ")
    one = [*LINES[:7], "other\n", *LINES[8:]]
    assert str(problem(path, LINES, one)).endswith("line 8 (of 200) differ")
    inserted = [*LINES[:10], "new\n", "newer\n", *LINES[10:]]
    assert str(problem(path, LINES, inserted)).endswith("lines 11 to 12 (of 202) differ")
    removed = [*LINES[:10], *LINES[13:]]
    assert str(problem(path, LINES, removed)).endswith("lines were removed after line 10 (of 197)")
    assert str(problem(path, LINES, LINES[:50])).endswith("removed after line 50 (of 50)")
    assert str(problem(path, LINES, [*LINES, "new"])).endswith("line 201 (of 201) differ")
    assert "line 1 (of 1) differ" in str(problem(path, [], ["x"]))
    assert "removed after line 0" in str(problem(path, LINES, []))
    assert "is gone" in str(text_problem(str(path), seal_text(path), None))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_change_is_within_the_named_lines(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    count = data.draw(st.integers(1, 60))
    before = LINES[:count]
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first, count - 1))
    after = list(before)
    after[first], after[last] = "x\n", "y\n"
    path.write_text("".join(before))
    sealed = seal_text(path)
    path.write_text("".join(after))
    assert changed_lines(path, sealed) == (first + 1, last + 1, count)


def test_a_large_file_names_a_range_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "_BY_LINE_BYTES", 1000)
    monkeypatch.setattr(seal, "_MIN_PIECE", 256)
    path = tmp_path / "text.jsonl"
    after = [*LINES[:100], LINES[100].upper(), *LINES[101:]]
    path.write_text("".join(LINES))
    sealed = seal_text(path)
    path.write_text("".join(after))
    first, last, total = changed_lines(path, sealed)
    assert first <= 101 <= last and last - first < 40 and total == 200


def test_files_of_an_expert_are_compared(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "chat_template.jinja", "README.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "manifest.json").write_text("{}")
    sealed = seal_expert(tmp_path)
    assert set(sealed) == {"model.safetensors", "config.json", "chat_template.jinja"}
    (tmp_path / "README.md").write_text("another text")
    assert files_problem(sealed, seal_expert(tmp_path)) is None
    assert files_problem(sealed, {}) == "chat_template.jinja is gone"
    other = {**sealed, "config.json": FileRecord(11, "0" * 64)}
    assert files_problem(sealed, other) == "config.json has changed (its SHA-256 differs)"
    (tmp_path / "added_tokens.json").write_text("{}")
    assert files_problem(sealed, seal_expert(tmp_path)) == "added_tokens.json was added"


def test_paths_move_with_their_root() -> None:
    assert moved_path("/a/b/text", "/a/b", "/c") == "/c/text"
    assert moved_path("/a/b", "/a/b", "/c") == "/c"
    assert moved_path("/a/bc/text", "/a/b", "/c") == "/a/bc/text"
