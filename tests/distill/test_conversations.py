from __future__ import annotations

import json
import unicodedata
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_expert import SPEC, make_expert

from engine.config import DataConfig
from engine.distill.conversations import Prompt, choose, load_prompts, write_answers
from engine.distill.teacher import Answer, Teacher, load_teacher
from engine.errors import GladiusError
from engine.experts.registry import CAPABILITIES
from engine.run.events import Event, Progress
from engine.textdata import Example, Message, read_data_file
from engine.workspace import assets_dir

DATA = DataConfig(max_answer_tokens=12, generation_batch=4, answer_temperature=1.0)
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


class Stop(Exception):
    """What a test's `beat` raises to interrupt."""


def _write(
    teacher: Teacher,
    cache: Path,
    stop_at: int | None = None,
    data: DataConfig = DATA,
    seed: int = 0,
    events: list[Event] | None = None,
) -> tuple[list[Example], int]:
    """The answers, and how many tokens' steps were taken; `stop_at` interrupts at that one."""
    beats = 0

    def beat(doing: str) -> None:
        nonlocal beats
        if beats == stop_at:
            raise Stop
        beats += 1

    kept: list[Event] = [] if events is None else events
    return write_answers(teacher, PROMPTS, cache, data, seed, kept.append, beat), beats


# The prompts that ship


def test_every_capability_has_at_least_forty_prompts_of_its_own() -> None:
    prompts = load_prompts(CAPABILITIES)
    counts = Counter(prompt.capability for prompt in prompts)
    assert set(counts) == set(CAPABILITIES)
    assert min(counts.values()) >= 40
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({prompt.messages for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.messages[-1].role == "user"
        assert prompt.id.startswith(prompt.capability)


def test_only_the_asked_capabilities_are_read_and_an_unknown_one_has_no_prompts() -> None:
    assert {p.capability for p in load_prompts(["math", "juggling"])} == {"math"}


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    good = msgspec.json.encode(PROMPTS[0])
    (tmp_path / "math.jsonl").write_bytes(good + b'\n{"id": "x"}\n')
    with pytest.raises(GladiusError, match=r"math\.jsonl, line 2"):
        load_prompts(["math"], tmp_path)


def test_prompts_are_nfc(tmp_path: Path) -> None:
    prompt = Prompt("a", "math", (Message("user", "cafe\u0301"),))
    (tmp_path / "math.jsonl").write_bytes(msgspec.json.encode(prompt))
    assert load_prompts(["math"], tmp_path)[0].messages[0].content == "caf\u00e9"


def test_a_few_answers_hear_of_every_capability() -> None:
    chosen = choose(load_prompts(CAPABILITIES), 1, 8)
    assert [prompt.capability for prompt, _ in chosen] == list(CAPABILITIES)


def test_each_prompt_is_answered_as_often_as_asked() -> None:
    counts = Counter(prompt.id for prompt, _ in choose(PROMPTS, 3, None))
    assert set(counts.values()) == {3}
    assert len(counts) == len(PROMPTS)


# Answers


def test_answers_carry_prompt_expert_capability_and_whether_they_are_whole(
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
def test_an_interrupted_run_goes_on_and_ends_with_the_same_answers(
    teacher: Teacher, tmp_path: Path, stop_at: int
) -> None:
    undisturbed, steps = _write(teacher, tmp_path / "a")
    with pytest.raises(Stop):
        _write(teacher, tmp_path / "b", stop_at)
    resumed, more = _write(teacher, tmp_path / "b")
    assert resumed == undisturbed
    finished = 0 if stop_at < 12 else 12  # a batch takes 12 steps at most
    assert more <= steps - finished + 12


def test_what_is_written_is_not_written_again(teacher: Teacher, tmp_path: Path) -> None:
    first, steps = _write(teacher, tmp_path)
    assert steps > 0
    assert _write(teacher, tmp_path) == (first, 0)


def test_a_torn_last_line_costs_one_batch(teacher: Teacher, tmp_path: Path) -> None:
    first, _ = _write(teacher, tmp_path)
    path = next((tmp_path / "tiny").glob("answers-*.jsonl"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    again, steps = _write(teacher, tmp_path)
    assert again == first
    assert 0 < steps <= 12
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "change",
    [{"answer_temperature": 0.5}, {"max_answer_tokens": 6}, {"generation_batch": 7}],
)
def test_other_settings_do_not_reuse_answers(
    teacher: Teacher, tmp_path: Path, change: dict[str, float]
) -> None:
    _write(teacher, tmp_path)
    _, steps = _write(teacher, tmp_path, data=msgspec.structs.replace(DATA, **change))
    assert steps > 0
    assert len(list((tmp_path / "tiny").iterdir())) == 2


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


def test_progress_counts_answers_and_knows_what_was_there(teacher: Teacher, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        _write(teacher, tmp_path, 25)
    events: list[Event] = []
    _write(teacher, tmp_path, events=events)
    progress = [event for event in events if isinstance(event, Progress)]
    assert {event.task for event in progress} == {"answers:tiny"}
    assert [event.done for event in progress][-1] == len(PROMPTS) == progress[-1].total
    assert progress[-1].finished
    assert [e.done for e in progress] == sorted(e.done for e in progress)


# The conversations that ship


def test_the_demos_conversations_are_whole_lines_of_every_capability() -> None:
    path = assets_dir() / "conversations" / "demo.jsonl"
    assert path.stat().st_size < 1_000_000
    examples = list(read_data_file(path))
    assert {example.capability for example in examples} == set(CAPABILITIES)
    assert {example.expert for example in examples} == {"smollm2"}
    prompts = {prompt.messages for prompt in load_prompts(CAPABILITIES)}
    for example in examples:
        assert example.messages is not None
        assert example.messages[:-1] in prompts
    texts = [json.dumps(msgspec.to_builtins(example.messages)) for example in examples]
    assert len(set(texts)) == len(texts) >= 300
