"""Generated answers: batching, stopping and sampling, against transformers and plain formulas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.teacher import Teacher
from engine.generation import Answer, GreedySampler, MultinomialSampler, sample_top_p
from engine.text.examples import Message
from tests.support.tiny_expert import SPEC, make_expert

CHATS = [
    [Message("user", text)]
    for text in ("hi", "write the text of the test, please", "a b c", "write the tiny text " * 4)
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return load_teacher(make_expert(tmp_path_factory.mktemp("expert")), SPEC, "cpu", torch.float32)


# Answers


def generate(
    teacher: Teacher, chats: list[list[Message]] = CHATS, **changes: object
) -> list[Answer]:
    settings: dict = {
        "max_new_tokens": 24,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "batch_size": 4,
    }
    return teacher.generate(chats, **{**settings, **changes})


def test_answers_are_the_same_when_memory_holds_fewer_rows(teacher, monkeypatch) -> None:
    settings: dict = {"temperature": 0.9, "top_p": 0.95, "max_new_tokens": 12}
    expected = generate(teacher, **settings)
    rows: list[int] = []
    real = Teacher._next_logits

    def limited(self, input_ids, *rest):
        rows.append(len(input_ids))
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(self, input_ids, *rest)

    monkeypatch.setattr(Teacher, "_next_logits", limited)
    fresh = Teacher(teacher.model, teacher.tokenizer, SPEC)
    assert generate(fresh, **settings) == expected
    rows.clear()
    generate(fresh, **settings)
    assert max(rows) == 2, "what did not fit is not tried again"


def test_greedy_answers_of_a_padded_batch_are_those_of_transformers(teacher: Teacher) -> None:
    answers = generate(teacher)
    for chat, answer in zip(CHATS, answers, strict=True):
        ids = torch.tensor([teacher.encode_prompt(chat)])
        expected = teacher.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=[2, 0],
            pad_token_id=2,
        )[0, ids.shape[1] :]
        text = str(teacher.tokenizer.decode(expected, skip_special_tokens=True))
        assert answer.text == text.rstrip("\ufffd").strip()
        assert answer.complete == (int(expected[-1]) in (0, 2))


def test_the_same_seed_gives_the_same_answers_and_another_seed_does_not(teacher: Teacher) -> None:
    first = generate(teacher, temperature=1.0, seed=5)
    assert generate(teacher, temperature=1.0, seed=5) == first
    assert generate(teacher, temperature=1.0, seed=6) != first


def test_answers_are_in_the_order_of_the_conversations(teacher: Teacher) -> None:
    assert generate(teacher, CHATS[::-1], batch_size=2) == generate(teacher, batch_size=1)[::-1]


def test_rows_that_finish_early_do_not_change_the_others(teacher: Teacher) -> None:
    chats = [[Message("user", f"{letter} write the text")] for letter in "abcdefghijklmnop"]
    together = generate(teacher, chats, temperature=1.0, top_p=0.9, batch_size=16)
    assert 0 < sum(answer.complete for answer in together) < 16  # some were dropped on the way

    class Unending(Teacher):
        """Keeps every row to the end; what follows an end token is cut afterwards."""

        def decode(self, ids: Sequence[int]) -> str:
            ends = [n for n, i in enumerate(ids) if i in (0, 2)]
            return super().decode(ids[: min(ends, default=len(ids))])

    unending = Unending(teacher.model, teacher.tokenizer, teacher.spec)
    unending.end_ids = (10**9,)
    apart = generate(unending, chats, temperature=1.0, top_p=0.9, batch_size=16)
    assert [answer.text for answer in apart] == [answer.text for answer in together]


def test_an_answer_cut_by_the_token_limit_is_not_complete(teacher: Teacher) -> None:
    long = generate(teacher, temperature=1.0)
    short = generate(teacher, temperature=1.0, max_new_tokens=1)
    assert any(answer.complete for answer in long)
    assert not any(answer.complete for answer in short if answer.text)


def test_no_answer_is_longer_than_the_context(tmp_path: Path) -> None:
    small = load_teacher(make_expert(tmp_path, context=48), SPEC, "cpu", torch.float32)
    prompt = small.encode_prompt(CHATS[0])
    answers = generate(small, [CHATS[0]], max_new_tokens=1000, temperature=1.0)
    assert len(small.tokenizer.encode(answers[0].text)) <= 48 - len(prompt)
    full = [[Message("user", "write " * 60)]]
    assert generate(small, full, max_new_tokens=1000) == [Answer("", False)]


def test_a_stop_string_ends_the_answer_before_it(teacher: Teacher) -> None:
    plain = generate(teacher)[3].text
    stop = plain[4:8]
    spec = msgspec.structs.replace(teacher.spec, stop_strings=(stop,))
    answer = generate(Teacher(teacher.model, teacher.tokenizer, spec))[3]
    assert answer == Answer(plain[: plain.index(stop)].strip(), True)


def test_the_heartbeat_is_called_at_every_token_and_may_interrupt(teacher: Teacher) -> None:
    calls: list[str] = []

    def heartbeat(doing: str) -> None:
        calls.append(doing)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teacher.generate(
            CHATS,
            max_new_tokens=24,
            temperature=1.0,
            top_p=1.0,
            seed=0,
            batch_size=4,
            heartbeat=heartbeat,
        )
    assert len(calls) == 3


# Sampling


@pytest.mark.parametrize(("vocabulary", "top_p"), [(40, 0.8), (3000, 0.95), (3000, 1.0)])
def test_samples_follow_the_truncated_distribution(vocabulary: int, top_p: float) -> None:
    """Draws on a fine grid against the nucleus computed plainly; 3000 flat tokens need the sort."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(vocabulary, generator=generator)
    draws = (torch.arange(4000) + 0.5) / 4000
    tokens = torch.cat(
        [sample_top_p(logits.expand(500, -1), part, 0.7, top_p) for part in draws.split(500)]
    )
    found = torch.bincount(tokens, minlength=vocabulary) / 4000
    probabilities = (logits.double() / 0.7).softmax(-1)
    ordered, index = probabilities.sort(descending=True)
    kept = torch.zeros(vocabulary, dtype=torch.double)
    mass = 0.0
    for value, token in zip(ordered.tolist(), index.tolist(), strict=True):
        if mass >= top_p:
            break
        kept[token] = value
        mass += value
    assert (found - kept / kept.sum()).abs().max() < 5e-4


def test_a_rows_sample_depends_on_its_own_logits_and_draw_only() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(8, 2000, generator=generator)
    logits[::2] *= 8  # peaked rows beside flat ones
    draws = torch.rand(8, generator=generator)
    together = sample_top_p(logits, draws, 0.8, 0.95)
    apart = torch.cat(
        [sample_top_p(logits[n : n + 1], draws[n : n + 1], 0.8, 0.95) for n in range(8)]
    )
    assert torch.equal(together, apart)


def test_draws_at_the_very_ends_stay_inside_the_nucleus() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0, -40.0]] * 2)
    ends = torch.tensor([0.0, 1.0 - 2**-24])
    assert sample_top_p(logits, ends, 1.0, 0.99).tolist()[0] == 0
    assert sample_top_p(logits, ends, 1.0, 0.99).tolist()[1] in (0, 1)
    assert sample_top_p(logits, ends, 1.0, 1.0).tolist()[1] != 3


def test_completions_are_raw_tokens_with_the_reason_they_ended(teacher: Teacher) -> None:
    prompts = [teacher.encode_prompt(chat) for chat in CHATS]
    completions = teacher.complete(prompts, [24] * len(prompts), GreedySampler())
    assert [teacher.to_answer(one) for one in completions] == generate(teacher)
    for one in completions:
        assert not set(one.ids) & set(teacher.end_ids)
        assert one.finish_reason == ("eos" if len(one.ids) < 24 else "length")


def test_sampling_ends_where_the_logits_are_not_finite() -> None:
    sampler = MultinomialSampler(0.7, torch.Generator().manual_seed(0))
    assert sampler(torch.full((1, 5), float("nan")), [0]) is None
    assert sampler(torch.tensor([[0.0, 50.0, 0.0]]), [0]).tolist() == [1]  # type: ignore[union-attr]
