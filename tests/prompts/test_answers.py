"""Answer files, verdicts and the selection of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.config import DataConfig
from engine.experts.registry import CAPABILITIES
from engine.prompts.answers import (
    Answer,
    AnswerFile,
    Batch,
    Head,
    count_reasons,
    reason_of,
    select,
    to_example,
)
from engine.prompts.prompt import AnyCheck, NumberCheck, Prompt, RefusalCheck
from engine.prompts.sampling import Sampling, sampling_of
from engine.text.examples import Message

HEAD = Head("tiny", "me/tiny", "abc", "bfloat16", 0, "d")
SAMPLING = Sampling(0.5, 0.9, 64)
SUM = NumberCheck(value=4)


def written(
    text: str,
    *,
    name: str = "p",
    capability: str = "math",
    check: AnyCheck | None = SUM,
    complete: bool = True,
) -> Answer:
    prompt = Prompt(name, capability, (Message("user", f"ask {name} this"),), check=check)
    return Answer(prompt, 0, (text,), (complete,), SAMPLING)


def outcomes(*answers: Answer, keep="right") -> list[str]:  # type: ignore[no-untyped-def]
    judged = select([(one, reason_of(one)) for one in answers], keep)
    return ["kept" if one.kept else one.reason for one in judged]


ANSWERS = (
    written("It is 4.", name="a"),
    written("It is 5, I think.", name="b"),
    written("", name="c"),
    written("and on " * 20, name="d"),
    written("So it would be 4", name="e", complete=False),
    written("A tale that has no", name="f", check=None, complete=False),
    written("It is 4.", name="a"),
)


def test_wrong_cut_off_and_repeated_answers_are_dropped() -> None:
    expected = ["kept", "wrong_number", "empty", "looping", "truncated", "kept", "near_duplicate"]
    assert outcomes(*ANSWERS) == expected


def test_keep_sound_keeps_wrong_answers() -> None:
    expected = ["kept", "kept", "empty", "looping", "kept", "kept", "near_duplicate"]
    assert outcomes(*ANSWERS, keep="sound") == expected


def test_keep_all_drops_only_empty_answers() -> None:
    assert outcomes(*ANSWERS, keep="all") == ["kept", "kept", "empty", *["kept"] * 4]


def test_the_first_of_near_duplicates_within_a_capability_is_kept() -> None:
    text = "The sea lay calm and grey below the tower on which the keeper slept that night"
    same = [written(text, name="a", capability=c, check=None) for c in ("fluency", "reasoning")]
    assert outcomes(*same, same[0]) == ["kept", "kept", "near_duplicate"]


def test_a_dialogue_with_a_cut_off_earlier_answer_is_dropped() -> None:
    prompt = Prompt("p", "fluency", (Message("user", "tell"),), then=("go on",))
    texts = ("The sea lay calm", "and grey it was too")
    first, last = (
        Answer(prompt, 0, texts, complete, SAMPLING) for complete in ((False, True), (True, False))
    )
    assert outcomes(first) == ["truncated"] and outcomes(last) == ["kept"]
    example = to_example(last, "tiny")
    assert [m.role for m in example.messages or ()] == ["user", "assistant"] * 2
    assert not example.complete and example.family == "p" and example.capability == "fluency"


def test_a_cut_off_answer_that_rightly_helps_or_refuses_is_kept() -> None:
    no, yes = (RefusalCheck(refuse=refuse) for refuse in (True, False))
    help_, decline = "Take a bowl of warm water and then", "I can't help with that, because it"
    answers = [
        written(text, name=f"{text} {check.refuse}", check=check, complete=False)
        for text in (help_, decline)
        for check in (no, yes)
    ]
    assert outcomes(*answers) == ["not_refused", "kept", "kept", "refused"]


def test_reasons_are_counted_by_capability() -> None:
    judged = select([(one, reason_of(one)) for one in ANSWERS])
    table = count_reasons(judged)["math"]
    assert sum(table.values()) == len(ANSWERS) and table["kept"] == 2


def test_head_and_batches_are_read_back(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers-x.jsonl")
    assert file.read() == (None, {})
    file.begin(HEAD)
    batches = [Batch(str(n), n, (ANSWERS[n],)) for n in range(3)]
    for batch in batches:
        file.add(batch)
    file.begin(HEAD)
    assert file.read() == (HEAD, {batch.key: batch for batch in batches})


def test_incomplete_and_invalid_lines_are_skipped(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers-x.jsonl")
    file.begin(HEAD)
    file.add(Batch("one", 1, ANSWERS[:1]))
    file.add(Batch("two", 1, ANSWERS[1:2]))
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-9])
    assert set(file.read()[1]) == {"one"}
    file.add(Batch("two", 1, ANSWERS[1:2]))  # starts on a new line after the incomplete one
    assert file.path.read_bytes() == data
    file.path.write_bytes(b"junk\n\xff\n" + data)
    assert set(file.read()[1]) == {"one", "two"}


def test_a_batch_is_judged_once_for_the_same_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AnswerFile(tmp_path / "answers-x.jsonl")
    batch = Batch("one", 1, ANSWERS[:2])
    assert file.judge(batch, {}) == ("", "wrong_number")
    monkeypatch.setattr("engine.prompts.answers.reason_of", lambda written: "empty")
    assert file.judge(batch, file.read_verdicts()) == ("", "wrong_number")
    other = Batch("one", 1, (written("It is 4.", name="a", check=NumberCheck(value=5)),))
    assert file.judge(other, file.read_verdicts()) == ("empty",)


def test_sampling_defaults_depend_on_the_capability() -> None:
    own = {name: sampling_of(name, DataConfig(max_answer_tokens=10_000)) for name in CAPABILITIES}
    assert own["json"].temperature < own["reasoning"].temperature < own["fluency"].temperature
    data = DataConfig(answer_temperature=0.0, answer_top_p=0.5, max_answer_tokens=20)
    assert {sampling_of(name, data) for name in CAPABILITIES} == {Sampling(0.0, 0.5, 20)}
