"""What becomes of a run's texts: learnt, cut or left out; and when a run is refused."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.budget import check_text, token_budget
from engine.config import RunConfig
from engine.distill.data import corpus
from engine.errors import UsageError
from engine.events import DataReady, StepDone, TextsRead
from engine.experts.registry import load_experts
from engine.run.view import RunView
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink, make_config, make_root, prepared_run, train
from tests.support.text_files import write_parquet

STREAM = {"data__stream_above": 0.001, "data__window": 0.004, "data__held_out": 0.1}
WORDS = ("river", "town", "bank", "old", "snow", "stone", "bridge", "water", "mill", "field")


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return make_root(tmp_path)


def sentence(seed: int, words: int = 12) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def config_for(ws: Workspace, source: Path | str, **fields: Any) -> RunConfig:
    config = make_config(ws, **fields)
    data = msgspec.structs.replace(config.data, files=[str(source)])
    return msgspec.structs.replace(config, data=data)


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def talk(number: int, answer: Any = None) -> dict[str, Any]:
    answer = sentence(number) if answer is None else answer
    return {
        "messages": [
            {"role": "user", "content": f"Question {number}?"},
            {"role": "assistant", "content": answer},
        ]
    }


def opened(number: int) -> dict[str, Any]:
    """A conversation that only the assistant has: there is nothing that it answers."""
    return {"messages": [{"role": "assistant", "content": sentence(number)}]}


def prepared_events(ws: Workspace, config: RunConfig) -> KeepingLink:
    link = KeepingLink()
    prepared_run(ws, config, link)
    return link


def reasons(table: TextsRead) -> dict[str, int]:
    return {reason.reason: reason.count for reason in table.reasons}


# --- Before the first step ---------------------------------------------------


def test_empty_files_cards_and_other_formats_are_named_and_end_nothing(ws):
    """Case 03."""
    folder = ws.root / "folder"
    write_rows(folder / "a.jsonl", [talk(n) for n in range(20)])
    (folder / "empty.txt").write_bytes(b"")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A data set\n")
    (folder / "table.csv").write_text("a,b\n")
    link = prepared_events(ws, config_for(ws, folder))
    (table,) = link.of(TextsRead)
    assert (table.texts, table.learnt, table.left_out) == (20, 20, 0)
    assert {(r.outcome, r.reason, Path(r.where).name) for r in table.reasons} == {
        ("file", "empty file", "empty.txt"),
        ("file", "card or settings of a data set", "README.md"),
        ("file", "format that is not read", "table.csv"),
    }


def test_a_column_of_conversations_is_read_from_a_file_and_as_a_data_set(ws):
    """Case 17: ShareGPT in Parquet; of a small stream whose digests hold nothing out, one is."""
    pytest.importorskip("datasets")
    rows = [
        [{"from": "human", "value": f"Q {n}"}, {"from": "gpt", "value": sentence(n)}]
        for n in range(24)
    ]
    path = ws.root / "set" / "train.parquet"
    path.parent.mkdir()
    write_parquet(path, {"conversations": rows}, 10)
    (ready,) = prepared_events(ws, config_for(ws, path)).of(DataReady)
    assert (ready.blocks, ready.held_out_blocks) == (23, 1)
    source = f"hf:{path.parent}:train:conversations"
    small = {"data__window": 0.01, "data__held_out": 0.0001, "schedule__max_steps": 6}
    link = KeepingLink()
    assert train(ws, config_for(ws, source, **small), link) == 0
    assert link.of(DataReady)[-1].held_out_blocks == 1
    table = link.of(TextsRead)[-1]
    assert table.left_out == 0 and table.learnt > 0


def test_a_book_on_one_line_is_read_and_encoded_in_linear_time(ws):
    """Case 18: four million characters, and one line of usual length."""
    words = sentence(1, 4000)
    text = " ".join(f"{n} {words}" for n in range(200))[:4_000_000]
    path = write_rows(ws.root / "book.jsonl", [{"text": text}, {"text": sentence(2)}])
    fields = {"data__max_teacher_tokens": 3000, "data__max_held_out_blocks": 2}
    link = prepared_events(ws, config_for(ws, path, **fields))
    run = link.of(TextsRead)[0]
    assert (run.texts, run.learnt, run.left_out) == (2, 2, 0)
    (ready,) = link.of(DataReady)
    assert ready.held_out_blocks == 2 and ready.blocks > 10


def test_repeated_lines_are_learnt_once_counted_and_not_available(ws):
    """Case 21: six lines, a hundred times."""
    rows = [talk(n) for n in range(6)]
    path = write_rows(ws.root / "data.jsonl", rows * 100)
    config = config_for(ws, path)
    link = prepared_events(ws, config)
    (table,) = link.of(TextsRead)
    assert (table.texts, table.learnt, table.left_out) == (600, 6, 594)
    (repeated,) = table.reasons
    assert (repeated.reason, repeated.count) == ("repeated", 594)
    assert repeated.where == f"{path}, line 7"
    specs = list(load_experts(ws).values())[:1]
    six = sum(len(m["content"]) for row in rows for m in row["messages"])
    assert token_budget(config, specs).files == six / 4


@pytest.mark.parametrize("where", ["files", "stream"])
def test_text_of_which_most_cant_be_read_is_refused_before_the_run(ws, where):
    """Case 22: nine lines in ten, none of them among the first."""
    rows = [talk(n, None if n < 30 or n % 10 == 0 else {"parts": 1}) for n in range(1500)]
    path = write_rows(ws.root / "data.jsonl", rows)
    fields = STREAM if where == "stream" else {}
    with pytest.raises(UsageError) as raised:
        check_text(config_for(ws, path, **fields))
    message = str(raised.value)
    assert "content is not text" in message and f"{path}, line " in message
    assert "--data-lenient" in message and "\n" not in message
    with pytest.raises(UsageError, match="can't be learnt"):
        train(ws, config_for(ws, path, **fields), KeepingLink())
    lenient = config_for(ws, path, **fields, data__lenient="true")
    (found,) = check_text(lenient)
    if where == "files":
        assert found.table.learnt == 177 and found.table.left_out == 1323


def test_a_tenth_is_the_limit(ws):
    broken: list[Any] = [{"body": "x"}]
    path = write_rows(ws.root / "data.jsonl", [talk(n) for n in range(18)] + broken * 2)
    (found,) = check_text(config_for(ws, path))
    assert (found.table.texts, found.table.left_out) == (20, 2)
    path = write_rows(ws.root / "data.jsonl", [talk(n) for n in range(17)] + broken * 2)
    with pytest.raises(UsageError, match="2 of 19 texts can't be learnt: unknown form 2"):
        check_text(config_for(ws, path))


def test_a_file_that_ends_too_early_is_refused(ws):
    folder = ws.root / "folder"
    write_rows(folder / "a.jsonl", [talk(n) for n in range(30)])
    whole = gzip.compress("".join(json.dumps(talk(n)) + "\n" for n in range(30, 900)).encode())
    (folder / "b.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "c.json").write_text(json.dumps([talk(n) for n in range(900, 920)])[:-9])
    with pytest.raises(UsageError, match=r"not all files can be read: broken file 2 .*b\.jsonl"):
        check_text(config_for(ws, folder))
    (found,) = check_text(config_for(ws, folder, data__lenient="true"))
    assert reasons(found.table) == {"broken file": 2} and found.table.learnt > 30


# --- What an expert can't encode ---------------------------------------------


def test_what_one_expert_cant_encode_is_in_its_table_and_refused_above_a_tenth(ws):
    rows = [talk(n) for n in range(30)]
    lost = [opened(n) for n in range(2)]
    path = write_rows(ws.root / "data.jsonl", rows + lost)
    link = prepared_events(ws, config_for(ws, path))
    run, own = link.of(TextsRead)
    assert (run.expert, run.texts, run.learnt) == ("", 32, 32)
    assert (own.expert, own.texts, own.learnt, own.left_out) == ("tiny", 32, 30, 2)
    assert own.held_out == 2 and own.reasons[0].where == f"{path}, line 31"
    again = prepared_events(ws, config_for(ws, path))  # from shards
    assert [msgspec.structs.replace(t, time=0) for t in again.of(TextsRead)] == [run, own]
    lost = [opened(n) for n in range(8)]
    path = write_rows(ws.root / "data.jsonl", rows + lost)
    with pytest.raises(UsageError, match="Tiny: 8 of 38 texts can't be learnt"):
        prepared_events(ws, config_for(ws, path))


def test_a_fault_in_the_middle_of_a_stream_is_a_row_of_the_table(ws):
    """Also where the run is resumed behind it."""
    rows: list[Any] = [talk(n) for n in range(200)]
    rows[120:128] = [opened(n) for n in range(4)] + ["no row"] * 4
    path = write_rows(ws.root / "data.jsonl", rows)
    steps = {"schedule__max_steps": 16, "checkpoint__interval_steps": 4}
    link = KeepingLink()
    assert train(ws, config_for(ws, path, **STREAM, **steps), link) == 0
    assert link.of(StepDone)[-1].step == 16
    view = RunView()
    view.take(link.events)  # type: ignore[arg-type]
    table = view.texts["tiny", "tiny/data.jsonl"]
    assert reasons(table)["row is not an object"] >= 4
    assert reasons(table)["the assistant opens the conversation"] >= 4
    longer = {**steps, "schedule__max_steps": 20}
    link = KeepingLink()
    assert train(ws, config_for(ws, path, **STREAM, **longer), link, resume=True) == 0
    assert link.steps()[-4:] == [17, 18, 19, 20]


# --- What is held out --------------------------------------------------------


@pytest.mark.parametrize("size", [12_000, 30_000, 60_000])
def test_of_one_document_a_share_of_the_blocks_is_held_out(ws, size):
    path = ws.root / "one.txt"
    path.write_text(sentence(3, size // 5)[:size])
    (ready,) = prepared_events(ws, config_for(ws, path)).of(DataReady)
    share = ready.held_out_blocks / (ready.blocks + ready.held_out_blocks)
    assert 0 < share < 0.15


def test_small_texts_are_held_out_as_before(ws):
    examples = corpus.read_files([str(ws.root / "text.jsonl")]).examples
    held = corpus.held_out_keys({"tiny": examples}, 0.1, 64)
    budget = 0.1 * corpus.total_bytes({"tiny": examples})
    divided, keys = corpus.split_large_documents({"tiny": examples}, held, budget, 512)
    assert divided == {"tiny": examples} and keys == held
