"""Streamed text: its order, its windows, and runs that learn from it."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from typing import Any

import msgspec
import pytest

from engine.distill.data import corpus
from engine.distill.data.corpus import is_held_out_by_digest
from engine.distill.data.cursors import Cursor, StreamPosition, cursors_from_json, cursors_to_json
from engine.distill.data.shuffled_text import ShuffledText, open_texts
from engine.distill.data.sources import CachedSource
from engine.distill.data.streams import StreamSource
from engine.errors import GladiusError, UsageError
from engine.events import DataReady, StepDone, Stop, TextsRead
from engine.prompts.prompt import family_digest, is_reserved
from engine.text.examples import Example, read_data_file
from engine.workspace import Workspace
from tests.support.small_run import (
    KeepingLink,
    make_config,
    make_root,
    make_trainer,
    prepare,
    train,
    weights,
)

WORDS = ("river", "town", "bank", "old", "snow", "stone", "bridge", "water", "mill", "field")
STREAM = {"data__stream_above": 0.001, "data__window": 0.004, "data__held_out": 0.1}
"""Everything above a kilobyte is streamed, in windows of four."""


@pytest.fixture
def ws(tmp_path) -> Workspace:
    return make_root(tmp_path)


def write_texts(path, count: int, seed: int = 0, **keys: Any) -> list[str]:
    rng = random.Random(seed)
    texts = [f"{seed} {n} " + " ".join(rng.choices(WORDS, k=9)) for n in range(count)]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, **keys}) + "\n" for t in texts))
    return texts


def texts_of(order: ShuffledText, place: StreamPosition, number: int, most: int = 10**9):
    """The texts read in one window, and the place after them."""
    found = []
    for example, after in order.read(place, number):
        found.append(example.text if isinstance(example, Example) else None)
        place = after
        if len(found) == most:
            break
    return found, place


# --- Order -----------------------------------------------------------------


def test_a_pass_has_each_example_once_and_the_next_one_in_another_order(tmp_path):
    for n in range(12):
        (tmp_path / f"{n}.txt").write_text("x" * 1_100_000 if n < 3 else f"text {n}")
    texts = write_texts(tmp_path / "many.jsonl", 500)
    (text,) = open_texts([str(tmp_path)], tmp_path)
    order = ShuffledText(text, [7])
    first, _ = texts_of(order, StreamPosition(), 0)
    second, _ = texts_of(order, StreamPosition(pass_number=1), 9)
    assert Counter(first) == Counter(second) and first != second
    assert set(texts) <= set(first)
    assert texts_of(ShuffledText(text, [8]), StreamPosition(), 0)[0] != first


def test_the_order_is_a_function_of_seed_place_and_window(tmp_path):
    write_texts(tmp_path / "a.jsonl", 300)
    write_texts(tmp_path / "b.jsonl", 300, seed=1)
    (text,) = open_texts([str(tmp_path)], tmp_path)
    running = ShuffledText(text, [0])
    place, windows = StreamPosition(), []
    for number in range(6):
        found, after = texts_of(running, place, number, 70)
        windows.append((place, found))
        place = after
    for number, (begins, found) in enumerate(windows):
        # opened again, and by one that has read something else meanwhile
        assert texts_of(ShuffledText(text, [0]), begins, number, 70)[0] == found
    texts_of(running, StreamPosition(), 0, 5)
    assert texts_of(running, windows[3][0], 3, 70)[0] == windows[3][1]


def test_a_place_survives_the_checkpoint():
    cursors = {"tiny/text": Cursor(3, 2, 0.25, StreamPosition(1, 9, ((4, 0, 17), (2, 1, 0))))}
    assert cursors_from_json(json.loads(json.dumps(cursors_to_json(cursors)))) == cursors
    # as a run without streams had them
    assert cursors_from_json({"tiny": {"epoch": 1, "row": 2, "credit": 0.5}})["tiny"].row == 2


# --- Windows ---------------------------------------------------------------


def stream_of(ws: Workspace, **fields: Any) -> StreamSource:
    _, prepared = prepare(ws, make_config(ws, **{**STREAM, **fields}))
    (source,) = (s for s, _ in prepared["tiny"].sources.values() if isinstance(s, StreamSource))
    return source


def test_windows_hold_all_text_but_what_is_held_out(ws):
    write_texts(ws.root / "text.jsonl", 400)
    source = stream_of(ws)
    place, seen, number = StreamPosition(), Counter[bytes](), 0
    while place.pass_number == 0:
        source.release_before(number)
        window = source.open_epoch(number, place)
        assert window.begins == place and len(window.token_counts) > 0
        seen.update(source.block(n, number).ids.tobytes() for n in range(len(window.token_counts)))
        place, number = window.ends, number + 1
    assert number > 4 and set(seen.values()) == {1}
    keys = [corpus.example_key(e) for e in read_data_file(ws.root / "text.jsonl")]
    held = sum(corpus.is_held_out_by_digest(key, 0.1) for key in keys)
    assert 15 < held < 80 and len(seen) == 400 - held
    assert source.counts.examples == 400


def test_variants_are_streamed_to_learn_from_or_to_measure_on_together(ws):
    """Of a reserved family nothing is learnt, however little is held out; of all others all is."""
    families = [f"family {n}" for n in range(160)]
    small = {f for f in families if is_held_out_by_digest(family_digest(f), 0.02)}
    held = {f for f in families if is_reserved(f)}
    assert small < held
    lines = [{"family": f, "text": f"{f}: the {word}"} for f in families for word in WORDS[:5]]
    random.Random(0).shuffle(lines)
    (ws.root / "text.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer, parts = prepare(ws, make_config(ws, **{**STREAM, "data__held_out": 0.02}))
    (source,) = (s for s, _ in parts["tiny"].sources.values() if isinstance(s, StreamSource))

    def family_of(ids: Any) -> str:
        return re.findall(r"family \d+(?=:)", tokenizer.decode(ids))[0]

    place, learnt, number = StreamPosition(), Counter[str](), 0
    while place.pass_number == 0:
        source.release_before(number)
        window = source.open_epoch(number, place)
        learnt.update(
            family_of(source.block(n, number).ids) for n in range(len(window.token_counts))
        )
        place, number = window.ends, number + 1
    store = parts["tiny"].held_out
    measured = {family_of(store.block(n).ids) for n in range(len(store))}
    assert set(learnt) == set(families) - held and set(learnt.values()) == {5}
    assert measured and measured <= held


def test_a_row_is_there_until_its_window_is_forgotten(ws):
    source = stream_of(ws)
    first = source.open_epoch(0, StreamPosition())
    source.open_epoch(1, first.ends)
    assert len(source.block(0, 0).ids) == first.token_counts[0]
    source.release_before(1)
    with pytest.raises(KeyError):
        source.block(0, 0)


def test_the_split_by_digest_is_stable_when_text_is_added(ws):
    keys = [corpus.example_key(e) for e in read_data_file(ws.root / "text.jsonl")]
    held = {key for key in keys if corpus.is_held_out_by_digest(key, 0.3)}
    assert {key for key in keys if corpus.is_held_out_by_digest(key, 0.2)} <= held
    assert 0 < len(held) < len(keys)


def test_unreadable_lines_become_a_row_of_the_table_and_never_end_the_run(ws):
    lines = (ws.root / "text.jsonl").read_text().count("\n")
    with open(ws.root / "text.jsonl", "a") as file:
        file.write("{broken\n" * 9)
        file.write(json.dumps({"text": "the last " * 30}) + "\n")
    link = KeepingLink()
    assert train(ws, make_config(ws, **STREAM, schedule__max_steps=9), link) == 0
    table = link.of(TextsRead)[-1]
    (reason,) = table.reasons
    assert (table.expert, table.source) == ("tiny", "tiny/text.jsonl")
    assert (reason.outcome, reason.reason) == ("left_out", "not JSON")
    assert reason.count == table.left_out >= 9
    first = int(reason.where.removeprefix(f"{ws.root / 'text.jsonl'}, line "))
    assert lines < first <= lines + 9


def test_text_that_nobody_can_teach_ends_the_run_with_one_line(ws):
    (ws.root / "text.jsonl").write_text('{"text": "one"}\n' + "{broken\n" * 200)
    with pytest.raises(UsageError, match=r"200 of 201 sampled texts .*not JSON") as raised:
        train(ws, make_config(ws, **STREAM), KeepingLink())
    assert "\n" not in str(raised.value) and "--data-lenient" in str(raised.value)
    with pytest.raises(GladiusError, match="no examples to evaluate on"):
        train(ws, make_config(ws, **STREAM, data__lenient="true"), KeepingLink())


# --- What is streamed, and what is not -------------------------------------


def test_small_files_are_cached_and_large_ones_streamed(ws):
    _, prepared = prepare(ws, make_config(ws))
    assert isinstance(prepared["tiny"].sources["tiny"][0], CachedSource)
    _, prepared = prepare(ws, make_config(ws, **STREAM))
    assert list(prepared["tiny"].sources) == ["tiny/text.jsonl"]


def test_answers_and_streamed_text_share_the_rows(ws):
    (ws.root / "gladius.toml").write_text(
        (ws.root / "gladius.toml").read_text() + 'capabilities = ["json"]\n'
    )
    fields = {
        "data__generate": "true",
        "data__max_answers": 12,
        "data__max_answer_tokens": 6,
        "data__keep_answers": "all",
    }
    config = make_config(ws, **STREAM, **fields, data__stream_share=0.75)
    trainer = make_trainer(ws, config, KeepingLink(), ws.checkpoints_dir)
    mix = trainer.batches.mix(trainer.schedule, 1)
    assert mix == {"tiny": 0.25, "tiny/text.jsonl": 0.75}
    rows, _ = trainer.batches.mixer.next({}, mix)
    assert Counter(row.source for row in rows) == {"tiny": 1, "tiny/text.jsonl": 3}


def test_cached_targets_of_a_large_text_need_a_bound_and_keep_to_it(ws):
    from engine.budget import check_text

    fields = {**STREAM, "targets__source": "cached"}
    with pytest.raises(UsageError, match=r"data\.max_teacher_tokens"):
        check_text(make_config(ws, **fields))
    write_texts(ws.root / "text.jsonl", 400)
    config = make_config(ws, **fields, data__max_teacher_tokens=2000)
    check_text(config)
    link = KeepingLink()
    assert train(ws, config, link) == 0
    (ready,) = link.of(DataReady)
    assert ready.blocks > 0 and 2000 <= ready.teacher_tokens < 4000  # what is held out included


def test_an_example_goes_to_the_experts_that_can_teach_it(ws):
    two = 'repo = "./tiny"\nend_tokens = ["<|im_end|>"]\n'
    (ws.root / "gladius.toml").write_text(
        f'[experts.tiny]\n{two}capabilities = ["math"]\n'
        f'[experts.other]\n{two}capabilities = ["code"]\n'
    )
    write_texts(ws.root / "text.jsonl", 30, seed=1, capability="math")
    code = write_texts(ws.root / "more" / "code.jsonl", 30, seed=2, capability="code")
    for name in ("text.jsonl", "more/code.jsonl"):
        assert len(list(read_data_file(ws.root / name))) == 30
    config = make_config(ws, ("tiny", "other"), **STREAM)
    files = [*config.data.files, str(ws.root / "more")]
    data = msgspec.structs.replace(config.data, files=files)
    tokenizer, prepared = prepare(ws, msgspec.structs.replace(config, data=data))
    ((source, share),) = prepared["other"].sources.values()
    assert share == 1.0 and isinstance(source, StreamSource)
    window = source.open_epoch(0, StreamPosition())
    read = [tokenizer.decode(source.block(n, 0).ids) for n in range(len(window.token_counts))]
    assert read and all(any(t in text for t in code) for text in read)


def test_public_corpora_go_to_the_experts_of_their_capabilities(ws, tmp_path):
    pytest.importorskip("datasets")
    from engine.budget import corpora_in_use
    from tests.text.test_hub import make_repository

    repository = make_repository(tmp_path / "corpus", rows=60)
    two = 'repo = "./tiny"\nend_tokens = ["<|im_end|>"]\n'
    (ws.root / "gladius.toml").write_text(
        f'[experts.tiny]\n{two}capabilities = ["json"]\n'
        f'[experts.other]\n{two}capabilities = ["math"]\n'
    )
    corpora = (
        f'[{{source = "hf:{repository}/prose:train:text", share = 3, capabilities = ["math"]}},'
        f'{{source = "hf:{repository}/talks", capabilities = ["json", "math"]}}]'
    )
    fields = {
        "data__generate": "true",
        "data__max_answers": 4,
        "data__keep_answers": "all",
        "data__max_answer_tokens": 6,
        "data__corpora": corpora,
        "schedule__max_steps": 8,
        "data__held_out": 0.2,
        "data__window": 0.004,
    }
    config = make_config(ws, ("tiny", "other"), **fields)
    link = KeepingLink()
    trainer = make_trainer(ws, config, link, ws.checkpoints_dir)
    shares = {"tiny": 0.15, "tiny/talks": 0.35}
    shares |= {"other": 0.15, "other/prose": 0.2625, "other/talks": 0.0875}
    assert trainer.batches.mix(trainer.schedule, 10**6) == pytest.approx(shares)
    assert trainer.run() == "completed" and link.steps() == list(range(1, 9))
    # Without answers, a run learns from its files alone.
    assert corpora_in_use(make_config(ws, **{**fields, "data__generate": "false"}).data) == []


def test_a_text_that_is_lost_meanwhile_leaves_a_checkpoint_and_is_gone_on_with(ws):
    write_texts(ws.root / "text.jsonl", 60)
    content = (ws.root / "text.jsonl").read_bytes()
    config = make_config(ws, **STREAM, schedule__max_steps=30)

    def lose(event: Any) -> list:
        if isinstance(event, StepDone) and event.step == 4:
            (ws.root / "text.jsonl").unlink()
        return []

    link = KeepingLink(lose)
    with pytest.raises(GladiusError, match=r"text\.jsonl: No such file.*resume"):
        train(ws, config, link)
    reached = link.steps()[-1]
    assert 4 <= reached < 30
    (ws.root / "text.jsonl").write_bytes(content)
    link = KeepingLink()
    assert train(ws, config, link, resume=True) == 0
    assert link.steps() == list(range(reached + 1, 31))


def test_a_text_that_changed_is_not_gone_on_with(ws):
    config = make_config(ws, **STREAM, schedule__max_steps=6, checkpoint__interval_steps=2)
    link = KeepingLink(lambda e: [Stop()] if isinstance(e, StepDone) and e.step == 3 else [])
    assert train(ws, config, link) == 0
    with open(ws.root / "text.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(UsageError, match=r"text\.jsonl has changed.*--fresh"):
        train(ws, config, KeepingLink(), resume=True)


# --- A resumed run is the same run -----------------------------------------


def losses(link: KeepingLink) -> dict[int, str]:
    return {event.step: event.loss.hex() for event in link.of(StepDone) if event.loss is not None}


def test_a_run_over_many_windows_and_passes_goes_on_exactly(ws, tmp_path):
    write_texts(ws.root / "text.jsonl", 60)
    config = make_config(ws, **STREAM, schedule__max_steps=40)
    whole = KeepingLink()
    trainer = make_trainer(ws, config, whole, tmp_path / "whole")
    assert trainer.run() == "completed"
    cursor = trainer.session.progress.cursors["tiny/text.jsonl"]
    assert cursor.epoch > 8 and cursor.position.pass_number >= 2

    links = []
    for attempt, stop_at in enumerate((13, 29, None)):
        link = KeepingLink(
            lambda e, at=stop_at: [Stop()] if isinstance(e, StepDone) and e.step == at else []
        )
        links.append(link)
        part = make_trainer(ws, config, link, tmp_path / "parts")
        if attempt:
            loaded = part.checkpoints.store.load_newest(lambda *_: None)
            assert loaded is not None
            part.restore(loaded[0])
        part.run()
    assert losses(links[0]) | losses(links[1]) | losses(links[2]) == losses(whole)
    theirs, ours = weights(trainer), weights(part)
    assert all((theirs[name] == ours[name]).all() for name in theirs)
