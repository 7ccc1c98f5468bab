"""Answers of an expert: choice of prompts, checks, storage and resumption."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch

from engine.config import DataConfig
from engine.distill.data.conversations import choose, kept_examples, write_answers
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.teacher import Teacher
from engine.events import AnswersJudged, Event, Progress
from engine.experts.registry import CAPABILITIES
from engine.generation import Answer
from engine.prompts.answers import answer_files
from engine.prompts.prompt import NumberCheck, Prompt, load_prompts
from engine.text.examples import Example, Message, read_data_file
from engine.workspace import assets_dir
from tests.support.tiny_expert import SPEC, make_expert

DATA = DataConfig(
    max_answer_tokens=12, generation_batch=4, answer_temperature=1.0, keep_answers="all"
)
BATCH_BEATS = 12 + 2 + 4  # at most: a batch's tokens, its expert's layers, its verdicts
PROMPTS = [
    Prompt(
        f"p{n}", "math" if n % 2 else "code", (Message("user", "write the text " * (n % 5 + 1)),)
    )
    for n in range(14)
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = make_expert(tmp_path_factory.mktemp("expert"))
    return load_teacher(folder, SPEC, "cpu", torch.float32)


def _nothing(_: object) -> None:
    """Ignores events and heartbeats."""


class Stop(Exception):
    """Raised by a heartbeat to interrupt."""


def _write(
    teacher: Teacher,
    cache: Path,
    stop_at: int | None = None,
    data: DataConfig = DATA,
    seed: int = 0,
    events: list[Event] | None = None,
) -> tuple[list[Example], int]:
    """The answers, and how many tokens' steps were taken; `stop_at` interrupts at that one."""
    heartbeats = 0

    def heartbeat(doing: str) -> None:
        nonlocal heartbeats
        if heartbeats == stop_at:
            raise Stop
        heartbeats += 1

    kept: list[Event] = [] if events is None else events
    chosen = [(prompt, n) for prompt in PROMPTS for n in range(data.answers_per_prompt)]
    judged = write_answers(teacher, chosen, cache, data, seed, kept.append, heartbeat)
    return kept_examples(judged, teacher.spec.name), heartbeats


# The prompts that ship


def test_a_few_answers_cover_every_capability() -> None:
    chosen = choose(CAPABILITIES, 1, 8, 0)
    assert [prompt.capability for prompt, _ in chosen] == list(CAPABILITIES)


def test_each_prompt_is_answered_answers_per_prompt_times() -> None:
    counts = Counter(prompt.id for prompt, _ in choose(["math", "code"], 3, None, 0))
    assert set(counts.values()) == {3}
    assert len(counts) == len(load_prompts(["math", "code"]))


def test_more_answers_than_prompts_use_variants_after_the_same_beginning() -> None:
    few, many = choose(["math", "json"], 1, 100, 0), choose(["math", "json"], 1, 900, 0)
    assert many[:100] == few
    assert len({prompt.id for prompt, _ in many}) == len(many) == 900
    written = {prompt.id for prompt in load_prompts(["math", "json"])}
    assert written < {prompt.id for prompt, _ in many}
    assert choose(["math"], 1, 400, 1) != choose(["math"], 1, 400, 2)


# Answers


def test_answers_have_prompt_expert_capability_and_completeness(
    teacher: Teacher, tmp_path: Path
) -> None:
    examples, _ = _write(teacher, tmp_path)
    assert {example.expert for example in examples} == {"tiny"}
    assert {example.capability for example in examples} == {"math", "code"}
    assert {example.complete for example in examples} == {True, False}
    prompts = {prompt.messages for prompt in PROMPTS}
    for example in examples:
        assert example.messages is not None
        assert example.messages[:-1] in prompts
        assert example.messages[-1].role == "assistant"
        assert unicodedata.is_normalized("NFC", example.messages[-1].content)


@pytest.mark.parametrize("stop_at", [0, 5, 13, 25, 40])
def test_an_interrupted_run_resumes_to_the_same_answers(
    teacher: Teacher, tmp_path: Path, stop_at: int
) -> None:
    undisturbed, steps = _write(teacher, tmp_path / "a")
    with pytest.raises(Stop):
        _write(teacher, tmp_path / "b", stop_at)
    resumed, more = _write(teacher, tmp_path / "b")
    assert resumed == undisturbed
    finished = 0 if stop_at < BATCH_BEATS else BATCH_BEATS
    assert more <= steps - finished + BATCH_BEATS


def test_stored_answers_are_not_written_again(teacher: Teacher, tmp_path: Path) -> None:
    first, steps = _write(teacher, tmp_path)
    assert steps > 0
    assert _write(teacher, tmp_path) == (first, 0)


def test_a_torn_last_line_costs_one_batch(teacher: Teacher, tmp_path: Path) -> None:
    first, _ = _write(teacher, tmp_path)
    path = next((tmp_path / "tiny").glob("answers-*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    resumed, steps = _write(teacher, tmp_path)
    assert resumed == first
    assert 0 < steps <= BATCH_BEATS
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [
        {"answer_temperature": 0.5},
        {"answer_temperature": None},
        {"max_answer_tokens": 6},
        {"generation_batch": 7},
    ],
)
def test_other_settings_do_not_reuse_answers(
    teacher: Teacher, tmp_path: Path, change: dict[str, float | None]
) -> None:
    _write(teacher, tmp_path)
    _, steps = _write(teacher, tmp_path, data=msgspec.structs.replace(DATA, **change))
    assert steps > 0


def test_another_seed_writes_other_answers(teacher: Teacher, tmp_path: Path) -> None:
    assert _write(teacher, tmp_path)[0] != _write(teacher, tmp_path, seed=1)[0]


def test_samples_of_one_prompt_differ(teacher: Teacher, tmp_path: Path) -> None:
    data = msgspec.structs.replace(DATA, answers_per_prompt=3)
    examples, _ = _write(teacher, tmp_path, data=data)
    texts = [example.messages[-1].content for example in examples if example.messages]
    assert len(set(texts)) > len(PROMPTS)


def test_empty_answers_are_left_out(teacher: Teacher, tmp_path: Path) -> None:
    class Silent(Teacher):
        def generate(self, conversations, **settings):  # type: ignore[no-untyped-def]
            return [Answer("" if n % 2 else "yes", True) for n in range(len(conversations))]

    silent = Silent(teacher.model, teacher.tokenizer, teacher.spec)
    examples, _ = _write(silent, tmp_path)
    assert len(examples) == 7
    assert {example.messages[-1].content for example in examples if example.messages} == {"yes"}


def test_progress_includes_stored_answers(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _write(teacher, tmp_path, 25)
    events: list[Event] = []
    _write(teacher, tmp_path, events=events)
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.task for event in progress} == {"answers:tiny"}
    assert [event.done for event in progress][-1] == len(PROMPTS) == progress[-1].total
    assert progress[-1].finished
    assert [e.done for e in progress] == sorted(e.done for e in progress)


def test_a_dialogue_is_answered_turn_by_turn_and_kept_as_one_example(
    teacher: Teacher, tmp_path: Path
) -> None:
    received: list[list[str]] = []

    class Recording(Teacher):
        def generate(self, conversations, **settings):  # type: ignore[no-untyped-def]
            received.append([" | ".join(m.content for m in chat) for chat in conversations])
            return [Answer(f"answer {len(received)}.{n}", True) for n in range(len(conversations))]

    long = Prompt("long", "math", (Message("user", "one"),), then=("two", "three"))
    short = Prompt("short", "math", (Message("user", "once"),))
    recording = Recording(teacher.model, teacher.tokenizer, teacher.spec)
    judged = write_answers(
        recording, [(short, 0), (long, 0)], tmp_path, DATA, 0, _nothing, _nothing
    )
    first, second = kept_examples(judged, "tiny")
    assert [m.content for m in first.messages or ()] == ["once", "answer 1.1"]
    turns = ["one", "answer 1.0", "two", "answer 2.0", "three", "answer 3.0"]
    assert [m.content for m in second.messages or ()] == turns
    assert received == [["one", "once"], ["one | answer 1.0 | two"], [" | ".join(turns[:5])]]


def test_each_capability_has_its_own_sampling(teacher: Teacher, tmp_path: Path) -> None:
    settings: list[dict] = []

    class Recording(Teacher):
        def generate(self, conversations, **given):  # type: ignore[no-untyped-def]
            settings.append(given)
            return [Answer("so it is", True)] * len(conversations)

    recording = Recording(teacher.model, teacher.tokenizer, teacher.spec)
    data = msgspec.structs.replace(DATA, answer_temperature=None, max_answer_tokens=300)
    chosen = [(Prompt(n, n, (Message("user", n),)), 0) for n in ("json", "fluency")]
    judged = write_answers(recording, chosen, tmp_path, data, 0, _nothing, _nothing)
    (given,) = settings
    assert sorted(given["temperature"]) == [0.3, 0.9]
    assert sorted(given["max_new_tokens"]) == [256, 300]
    assert [one.answer.sampling.temperature for one in judged] == [0.3, 0.9]


def test_verdicts_are_counted_and_a_changed_check_reuses_the_answers(
    teacher: Teacher, tmp_path: Path
) -> None:
    calls = 0

    class Counting(Teacher):
        def generate(self, conversations, **given):  # type: ignore[no-untyped-def]
            nonlocal calls
            calls += 1
            return [Answer(f"The answer is {n}.", True) for n in range(len(conversations))]

    counting = Counting(teacher.model, teacher.tokenizer, teacher.spec)
    data = msgspec.structs.replace(DATA, keep_answers="right")
    texts = ("how many numbers are there", "sum it all up", "what is the first number here")

    def reasons(value: float) -> list[str]:
        check = NumberCheck(value=value)
        chosen = [(Prompt(t, "math", (Message("user", t),), check=check), 0) for t in texts]
        events: list[Event] = []
        found = write_answers(counting, chosen, tmp_path, data, 0, events.append, _nothing)
        (event,) = [event for event in events if isinstance(event, AnswersJudged)]
        assert event.written == 3 and event.kept == sum(one.kept for one in found) == 1
        counts = {count.reason: count.count for count in event.counts}
        assert counts == {"": 1, "wrong_number": 2}
        (file,) = answer_files(tmp_path / teacher.spec.name)
        (batch,) = file.read()[1].values()
        assert all(one.prompt.check == check for one in batch.answers)  # for who only reads
        return [one.reason for one in found]

    assert reasons(0) != reasons(1)
    assert calls == 1


# The conversations that ship


def test_the_demo_conversations_are_complete_and_cover_every_capability() -> None:
    path = assets_dir() / "conversations" / "demo.jsonl"
    assert path.stat().st_size < 1_000_000
    examples = list(read_data_file(path))
    assert {example.capability for example in examples} == set(CAPABILITIES)
    assert {example.expert for example in examples} == {"smollm2"}
    prompts = {prompt.messages: prompt.group for prompt in load_prompts(CAPABILITIES)}
    for example in examples:
        assert example.messages is not None
        assert prompts[example.messages[:-1]] == example.family
    texts = [json.dumps(msgspec.to_builtins(example.messages)) for example in examples]
    assert len(set(texts)) == len(texts) >= 300
