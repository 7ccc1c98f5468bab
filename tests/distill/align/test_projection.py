"""A teacher's distribution in the student's tokens, against slow references over bytes."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from engine.distill.align.alignment import align
from engine.distill.align.blocks import ChatEncoder
from engine.distill.align.projection import Projector
from engine.distill.align.tables import ProjectionTables, build_tables, load_tables
from tests.distill.conftest import REAL_TEACHERS
from tests.support.toys import (
    NASTY,
    PROSE,
    Toy,
    block_of,
    chat,
    document,
    project_all,
    projector_of,
    random_logits,
)

ALPHABET = b"ab\xc3\xa9"
MIN_MASS = 0.05


@st.composite
def merges(draw, alphabet: bytes = ALPHABET, most: int = 6, longest: int = 4):
    """Pairs to merge, each of tokens that are there already."""
    tokens = [bytes([b]) for b in alphabet]
    pairs: list[tuple[bytes, bytes]] = []
    for _ in range(draw(st.integers(0, most))):
        pair = (draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens)))
        if len(pair[0] + pair[1]) <= longest and pair not in pairs:
            pairs.append(pair)
            if pair[0] + pair[1] not in tokens:
                tokens.append(pair[0] + pair[1])
    return pairs


def reference(
    teacher: Toy, student: Toy, text: bytes, p: list[list[float]]
) -> list[tuple[dict[int | None, float], float]]:
    """(q with the residual under None, m) of each student position, straight from the five rules.

    p[j][t] is the teacher's probability at its position j; the last one is the end of the text.
    """

    def phi(token: int) -> int | None:
        spelled = teacher.tokens[token]
        if spelled is None:
            return student.end if token == teacher.end else None
        if teacher.rank == student.rank:  # the same tokenizer: every token is its own image
            return token
        return student.phi(spelled)

    def places(toy: Toy) -> list[tuple[int, int, int]]:
        ends = itertools.accumulate(len(token) for token in toy.split(text))
        return [
            (stop - len(token), stop, toy.id[token])
            for token, stop in zip(toy.split(text), ends, strict=True)
        ]

    heard = places(teacher)
    found = []
    for a, b, token in places(student):
        j = next(j for j, (c, d, _) in enumerate(heard) if c <= a < d)
        c, d, written = heard[j]
        q: dict[int | None, float] = {}
        m = 1.0
        if a == c:  # rule 1; ends and specials by rule 4
            for t, mass in enumerate(p[j]):
                q[phi(t)] = q.get(phi(t), 0.0) + mass
            origin = phi(written)
        else:  # rule 2
            u = text[c:a]
            m = 0.0
            for t, mass in enumerate(p[j]):
                spelled = teacher.tokens[t]
                if spelled is not None and spelled.startswith(u) and spelled != u:
                    s = student.phi(spelled[len(u) :])
                    q[s] = q.get(s, 0.0) + mass
                    m += mass
            q = {s: mass / m for s, mass in q.items()}
            origin = student.phi(teacher.tokens[written][len(u) :])
        if b > d:  # rule 3
            pi, k = p[j][written], j + 1
            while k < len(heard) and heard[k][1] <= b:
                pi *= p[k][heard[k][2]]
                k += 1
            rest = text[heard[k - 1][1] : b]
            if rest:
                pi *= sum(
                    mass
                    for t, mass in enumerate(p[k])
                    if teacher.tokens[t] is not None and teacher.tokens[t].startswith(rest)
                )
            q[origin] -= pi / m
            q[token] = q.get(token, 0.0) + pi / m
        found.append((q, m))
    end: dict[int | None, float] = {}
    for t, mass in enumerate(p[-1]):  # rule 4
        end[phi(t)] = end.get(phi(t), 0.0) + mass
    return [*found, (end, 1.0)]


toy_text = st.lists(st.sampled_from(["a", "b", "é"]), min_size=1, max_size=12).map("".join)


@settings(max_examples=120, deadline=None)
@given(
    teacher_merges=merges(),
    student_merges=merges(),
    text=toy_text,
    seed=st.integers(0, 1 << 16),
    chunk=st.sampled_from([1, 3, 64]),
)
# rules 2 and 3 at once; and with something that remains
@example([(b"a", b"b")], [(b"b", b"a")], "aba", 1, 1)
@example([(b"a", b"b"), (b"a", b"a")], [(b"b", b"a")], "abaa", 2, 3)
def test_it_equals_a_slow_reference(teacher_merges, student_merges, text, seed, chunk):
    teacher, student = Toy(ALPHABET, teacher_merges), Toy(ALPHABET, student_merges)
    block = block_of(document(text), student.reader, teacher.reader)
    logits = random_logits(len(teacher.tokens), len(block.teacher_scored), seed, 2.0)
    p = logits.double().softmax(0).t().tolist()
    projected = project_all(projector_of(teacher.reader, student.reader), logits, block, chunk)
    expected = reference(teacher, student, text.encode(), p)
    assert len(expected) == len(block.student_scored)
    for n, (q, m) in enumerate(expected):
        residual = q.get(None, 0.0)
        assert float(projected.mass[n]) == pytest.approx(m, abs=1e-5)
        assert float(projected.residual[n]) == pytest.approx(residual, abs=1e-5)
        if m < MIN_MASS:
            assert float(projected.weight[n]) == 0.0
            assert not projected.q[:, n].any()
            continue
        assert float(projected.weight[n]) == pytest.approx((1 - residual) * m, abs=1e-5)
        for s in range(len(student.tokens)):
            assert float(projected.q[s, n]) == pytest.approx(
                q.get(s, 0.0) / (1 - residual), abs=1e-5
            )


@settings(max_examples=40, deadline=None)
@given(
    teacher_merges=merges(),
    student_merges=merges(),
    text=toy_text,
    seed=st.integers(0, 1 << 16),
)
def test_chunks_of_teacher_positions_change_nothing(teacher_merges, student_merges, text, seed):
    teacher, student = Toy(ALPHABET, teacher_merges), Toy(ALPHABET, student_merges)
    block = block_of(document(text), student.reader, teacher.reader)
    logits = random_logits(len(teacher.tokens), len(block.teacher_scored), seed)
    projector = projector_of(teacher.reader, student.reader)
    whole = project_all(projector, logits, block, 64)
    for chunk in (1, 3):
        part = project_all(projector, logits, block, chunk)
        torch.testing.assert_close(part.q, whole.q)
        torch.testing.assert_close(part.weight, whole.weight)


# --- The true byte process of a Markov teacher, enumerated -----------------


class Markov:
    """A teacher whose next token depends on the last byte only, and never ends."""

    def __init__(self, toy: Toy, seed: int) -> None:
        self.toy = toy
        rng = np.random.default_rng(seed)
        self.table = {b: rng.dirichlet(np.full(len(toy.tokens) - 1, 0.7)) for b in range(256)}

    def next(self, last: int) -> dict[int, float]:
        ids = [t for t, token in enumerate(self.toy.tokens) if token is not None]
        return dict(zip(ids, self.table[last].tolist(), strict=True))

    def logits(self, text: bytes) -> torch.Tensor:
        """(V_t, M) of the tokens of `text`, and of what follows it."""
        columns, at = [], 0
        for token in [*self.toy.split(text), b""]:
            column = torch.full((len(self.toy.tokens),), -1e9)
            for t, mass in self.next(text[at - 1] if at else 0).items():
                column[t] = np.log(max(mass, 1e-30))
            columns.append(column)
            at += len(token)
        return torch.stack(columns, dim=1)

    def paths(self, last: int, depth: int):
        """All sequences of `depth` tokens after the byte `last`, with their probabilities."""
        if depth == 0:
            yield (), 1.0
            return
        for t, mass in self.next(last).items():
            spelled = self.toy.tokens[t]
            for rest, more in self.paths(spelled[-1], depth - 1):
                yield (t, *rest), mass * more


def truth_and_left_out(
    teacher: Markov, student: Toy, block, text: bytes, n: int, depth: int
) -> tuple[np.ndarray, float]:
    """The student's true next-token distribution at position n, and what the rules leave out.

    Truth: over all paths of `depth` teacher tokens from the boundary before the position, given
    that they begin with the bytes u which the student has read since; the token is the first one
    when the student encodes what follows u. Left out: the share of the paths that the rules do not
    look at (a token ends within u or with it: rule 2), or that they give to another token (phi of
    the teacher's token without what follows, unless rule 3 follows the written text).
    """
    toy = teacher.toy
    student_stops = np.cumsum([0, *(len(t) for t in student.split(text))])
    a, b = student_stops[n], student_stops[n + 1]
    heard = toy.split(text)
    starts = np.cumsum([0, *(len(t) for t in heard)])
    j = int(np.searchsorted(starts, a, side="right")) - 1
    c = int(starts[j])
    u = text[c:a]
    written = student.id[text[a:b]]
    first = cache(lambda data: student.id[student.split(data)[0]])
    truth = np.zeros(len(student.tokens))
    left_out = total = 0.0
    for path, mass in teacher.paths(text[c - 1] if c else 0, depth):
        spelled = [toy.tokens[t] for t in path]
        joined = b"".join(spelled)
        if not joined.startswith(u) or len(joined) == len(u):
            continue
        total += mass
        token = first(joined[len(u) :])
        truth[token] += mass
        if u and not (spelled[0].startswith(u) and spelled[0] != u):
            left_out += mass
            continue
        same = toy.rank == student.rank  # the same tokenizer: every token is its own image
        said = path[0] if same else student.phi(spelled[0][len(u) :])
        # the written tokens that end before b or with it, and then what remains of the student's
        inside = [t for t, stop in zip(heard[j:], starts[j + 1 :], strict=False) if stop <= b]
        rest = text[starts[j + len(inside)] : b]
        follows = [*inside, rest] if rest else inside
        if starts[j + 1] < b and spelled[: len(inside)] == inside:
            said = written if spelled[len(follows) - 1].startswith(follows[-1]) else said
        left_out += mass * (said != token)
    return truth / total, left_out / total


@settings(max_examples=40, deadline=None)
@given(
    teacher_merges=merges(b"abc", 4, 3),
    student_merges=merges(b"abc", 4, 3),
    text=st.text("abc", min_size=3, max_size=6),
    seed=st.integers(0, 1 << 16),
)
def test_the_error_against_the_true_byte_process_is_bounded_by_what_the_rules_leave_out(
    teacher_merges, student_merges, text, seed
):
    """TV(q, truth) <= P(the rules do not look at the path, or label it with another token).

    q is the distribution of the rules' label over the paths they look at, so both are marginals of
    one coupling that differs on the paths left out only.
    """
    teacher, student = Toy(b"abc", teacher_merges), Toy(b"abc", student_merges)
    process = Markov(teacher, seed)
    data = text.encode()
    block = block_of(document(text), student.reader, teacher.reader)
    projector = projector_of(teacher.reader, student.reader, min_mass=0.0)
    projected = project_all(projector, process.logits(data), block)
    # every crossing needs at most three more bytes: four tokens see it to its end
    for n in range(len(block.student_scored) - 1):
        if not projected.weight[n]:
            continue
        truth, left_out = truth_and_left_out(process, student, block, data, n, depth=4)
        distance = 0.5 * np.abs(projected.q[:, n].double().numpy() - truth).sum()
        assert distance <= left_out + 1e-5


def test_rule_1_is_exact_where_no_token_crosses_a_boundary():
    """Words of the teacher begin with a space, and no student token holds a space and more."""
    teacher = Toy(
        b" ab", [(b" ", b"a"), (b" a", b"b"), (b" ", b"b"), (b" b", b"b"), (b" ab", b"b")]
    )
    student = Toy(b" ab", [(b"a", b"b"), (b"b", b"b")])
    process = Markov(teacher, 3)
    # only words that begin with a space: no boundary can fall elsewhere
    for masses in process.table.values():
        ids = [t for t, token in enumerate(teacher.tokens) if token is not None]
        masses[[not teacher.tokens[t].startswith(b" ") for t in ids]] = 0.0
        masses /= masses.sum()
    data = b" ab bb a abb"
    block = block_of(document(data.decode()), student.reader, teacher.reader)
    projector = projector_of(teacher.reader, student.reader, min_mass=0.0)
    projected = project_all(projector, process.logits(data), block)
    aligned = [n for n in range(len(block.alignment) - 1) if block.alignment.offset[n] == 0]
    assert len(aligned) == 4
    for n in aligned:
        truth, left_out = truth_and_left_out(process, student, block, data, n, depth=2)
        assert left_out == 0.0
        np.testing.assert_allclose(projected.q[:, n].numpy(), truth, atol=1e-6)


def test_rule_3_gives_a_crossing_token_the_probability_of_the_written_path():
    """The teacher writes bytes, the student pairs: the repaired token is exact, not zero."""
    teacher, student = Toy(b"ab", []), Toy(b"ab", [(b"a", b"b")])
    process = Markov(teacher, 1)
    block = block_of(document("ab"), student.reader, teacher.reader)
    q = project_all(projector_of(teacher.reader, student.reader), process.logits(b"ab"), block).q[
        :, 0
    ]
    a, b = teacher.id[b"a"], teacher.id[b"b"]
    start, after_a = process.next(0), process.next(ord("a"))
    assert float(q[student.id[b"ab"]]) == pytest.approx(start[a] * after_a[b], abs=1e-6)
    assert float(q[student.id[b"a"]]) == pytest.approx(start[a] * (1 - after_a[b]), abs=1e-6)
    assert float(q[student.id[b"b"]]) == pytest.approx(start[b], abs=1e-6)


def test_rule_2_restricts_to_tokens_that_go_on():
    teacher = Toy(b"ab", [(b"a", b"a"), (b"a", b"b")])
    student = Toy(b"ab", [])
    block = block_of(document("ab"), student.reader, teacher.reader)
    p = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])  # a, b, aa, ab, end
    projected = project_all(
        projector_of(teacher.reader, student.reader), p.log()[:, None].repeat(1, 2), block
    )
    assert float(projected.mass[1]) == pytest.approx(0.45)
    assert projected.q[:, 1].tolist() == pytest.approx([0.3 / 0.45, 0.15 / 0.45, 0.0])
    assert float(projected.weight[1]) == pytest.approx(0.45)


def test_below_the_least_mass_a_position_has_no_soft_target():
    teacher, student = Toy(b"ab", [(b"a", b"b")]), Toy(b"ab", [])
    block = block_of(document("ab"), student.reader, teacher.reader)
    p = torch.tensor([0.5, 0.3, 0.04, 0.16])  # a, b, ab, end
    logits = p.log()[:, None].repeat(1, 2)
    projector = projector_of(teacher.reader, student.reader, min_mass=0.05)
    assert project_all(projector, logits, block).weight.tolist()[1] == 0.0
    projector = projector_of(teacher.reader, student.reader, min_mass=0.03)
    assert project_all(projector, logits, block).weight.tolist()[1] == pytest.approx(0.04)


def test_the_end_gets_the_mass_of_all_end_tokens(trained):
    teacher, student = trained["byte_level"], trained["prepend"]
    ends = teacher.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    start = teacher.tokenizer.convert_tokens_to_ids("<|im_start|>")
    eos = student.end_ids[0]
    tables = build_tables(teacher.vocabulary, student.vocabulary, ends, eos)
    block = block_of(chat("hello", "river"), student, teacher)
    logits = random_logits(teacher.vocabulary.size, len(block.teacher_scored), 0)
    projected = project_all(Projector(tables), logits, block)
    p = logits.softmax(0)[:, -1]
    residual = float(p[start])
    assert block.is_end[-1]
    assert float(projected.residual[-1]) == pytest.approx(residual, abs=1e-6)
    assert float(projected.q[eos, -1]) == pytest.approx(
        float(p[ends].sum()) / (1 - residual), abs=1e-6
    )
    assert float(projected.weight[-1]) == pytest.approx(1 - residual, abs=1e-6)


# --- What always holds -----------------------------------------------------


@pytest.mark.parametrize("student", ["byte_level", "prepend", "metaspace"])
@pytest.mark.parametrize("teacher", ["byte_level", "prepend", "metaspace"])
def test_mass_is_kept_on_nasty_text(trained, teacher, student):
    check_masses(
        trained[teacher], trained[student], projector_of(trained[teacher], trained[student])
    )


@pytest.fixture(scope="module")
def real_tables(real_reader):
    """A real teacher's tables for a student, and the processor seconds that they took."""
    held = {}

    def get(name: str, student: ChatEncoder) -> tuple[ProjectionTables, float]:
        if (name, student) not in held:
            teacher, eos = real_reader(name), student.end_ids[0]
            began = time.process_time()
            tables = build_tables(teacher.vocabulary, student.vocabulary, teacher.end_ids, eos)
            held[name, student] = tables, time.process_time() - began
        return held[name, student]

    return get


@pytest.mark.parametrize("student", ["llama2", "byte_level"])
@pytest.mark.parametrize("name", REAL_TEACHERS)
def test_mass_is_kept_on_nasty_text_with_real_tokenizers(
    trained, real_reader, real_tables, name, student
):
    reader = trained[student] if student in trained else real_reader(student)
    tables, _ = real_tables(name, reader)
    check_masses(real_reader(name), reader, Projector(tables))


def check_masses(teacher, student, projector: Projector) -> None:
    """q >= 0, its sum is 1 where it is heard, R and m lie in [0, 1]; with the realised text likely
    and unlikely."""
    turns = [turn for said in (*NASTY, "", PROSE[:80]) for turn in ("Say it.", said)]
    soft = 0
    noise = random_logits(teacher.vocabulary.size, 16, 0)
    for text, likely in (
        (chat(*turns), 0.0),
        (chat(*turns), 12.0),
        (document("".join(NASTY)), 6.0),
    ):
        block = block_of(text, student, teacher)
        known = torch.from_numpy(block.alignment.teacher_ids)
        logits = noise[:, torch.arange(len(known)) % 16]
        logits[known.clamp_min(0), torch.arange(len(known))] += likely
        projected = project_all(projector, logits, block)
        heard = projected.weight > 0
        soft += int(heard.sum())
        assert torch.isfinite(projected.q).all()
        assert (projected.q >= 0).all()
        sums = projected.q.double().sum(0)
        torch.testing.assert_close(sums[heard], torch.ones_like(sums[heard]), atol=1e-5, rtol=0)
        assert (sums[~heard] == 0).all()
        for share in (projected.residual, projected.mass):
            assert ((share >= 0) & (share <= 1 + 1e-5)).all()
        torch.testing.assert_close(
            projected.weight[heard], ((1 - projected.residual) * projected.mass)[heard]
        )
    assert soft > 100


@settings(max_examples=30, deadline=None)
@given(
    teacher_merges=merges(),
    student_merges=merges(),
    text=toy_text,
    seed=st.integers(0, 1 << 16),
    data=st.data(),
)
def test_permuting_the_teachers_ids_changes_nothing(
    teacher_merges, student_merges, text, seed, data
):
    assume(teacher_merges != student_merges)  # the same ids are the identity, by another path
    teacher, student = Toy(ALPHABET, teacher_merges), Toy(ALPHABET, student_merges)
    order = data.draw(st.permutations(range(len(teacher.tokens))))
    other = Toy(ALPHABET, teacher_merges, order)
    block = block_of(document(text), student.reader, teacher.reader)
    logits = random_logits(len(teacher.tokens), len(block.teacher_scored), seed)
    permuted = torch.empty_like(logits)
    permuted[list(order)] = logits
    one = project_all(projector_of(teacher.reader, student.reader), logits, block)
    two = project_all(
        projector_of(other.reader, student.reader),
        permuted,
        block_of(document(text), student.reader, other.reader),
    )
    torch.testing.assert_close(two.q, one.q, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(two.weight, one.weight, atol=1e-6, rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    teacher_merges=merges(),
    student_merges=merges(),
    text=toy_text,
    seed=st.integers(0, 1 << 16),
    data=st.data(),
)
def test_permuting_the_students_ids_permutes_the_projection(
    teacher_merges, student_merges, text, seed, data
):
    assume(teacher_merges != student_merges)  # the same ids are the identity, by another path
    teacher, student = Toy(ALPHABET, teacher_merges), Toy(ALPHABET, student_merges)
    order = data.draw(st.permutations(range(len(student.tokens))))
    other = Toy(ALPHABET, student_merges, order)
    block = block_of(document(text), student.reader, teacher.reader)
    logits = random_logits(len(teacher.tokens), len(block.teacher_scored), seed)
    one = project_all(projector_of(teacher.reader, student.reader), logits, block)
    two = project_all(
        projector_of(teacher.reader, other.reader),
        logits,
        block_of(document(text), other.reader, teacher.reader),
    )
    torch.testing.assert_close(two.q[list(order)], one.q, atol=1e-6, rtol=1e-4)


def test_with_the_same_tokenizer_it_is_the_identity(trained):
    for reader in trained.values():
        block = block_of(chat("Tell me.", PROSE), reader, reader)
        logits = random_logits(reader.vocabulary.size, len(block.teacher_scored), 5)
        projector = projector_of(reader, reader)
        assert projector.same_vocabulary
        projected = project_all(projector, logits, block)
        torch.testing.assert_close(projected.q, logits.softmax(0))
        assert (projected.weight == 1).all()


def test_index_add_and_the_sums_in_bags_agree(trained):
    """A GPU projects by index_add, a CPU by summing bags of rows."""
    teacher, student = trained["byte_level"], trained["prepend"]
    block = block_of(document(PROSE), student, teacher)
    logits = random_logits(teacher.vocabulary.size, len(block.teacher_scored), 6)
    projector = projector_of(teacher, student)
    fast = project_all(projector, logits, block)
    projector._gather = None
    torch.testing.assert_close(project_all(projector, logits, block).q, fast.q)


def test_logits_that_are_not_finite_silence_their_positions_only(trained):
    teacher, student = trained["byte_level"], trained["prepend"]
    block = block_of(document(PROSE), student, teacher)
    logits = random_logits(teacher.vocabulary.size, len(block.teacher_scored), 7)
    clean = project_all(projector_of(teacher, student), logits, block)
    bad = 40
    logits[3, bad] = float("nan")
    logits[4, bad + 1] = float("inf")
    spoilt = project_all(projector_of(teacher, student), logits, block)
    at = torch.from_numpy(block.alignment.at)
    silent = (at == bad) | (at == bad + 1)
    assert silent.any()
    assert torch.isfinite(spoilt.q).all()
    assert (spoilt.weight[silent] == 0).all()
    assert (spoilt.residual[silent] == 1).all()
    untouched = (at > bad + 1) | (at < bad - 8)
    torch.testing.assert_close(spoilt.q[:, untouched], clean.q[:, untouched])


# --- Alignment and tables --------------------------------------------------


def test_alignment_of_aligned_inside_and_crossing_tokens():
    # bytes      0 1 2 3 4 5 6 7
    # teacher   |0    |1|2|3    |
    # student   |0  |1    |2  |3|
    found = align(
        np.arange(10, 14), np.array([3, 1, 1, 3]), np.arange(20, 24), np.array([2, 3, 2, 1])
    )
    assert found.at.tolist() == [0, 0, 3, 3]
    assert found.offset.tolist() == [0, 2, 0, 2]
    assert found.token.tolist() == [20, 21, 22, 23]
    assert found.inside_stop.tolist() == [-1, 3, -1, -1]
    assert found.rest_at.tolist() == [-1, -1, -1, -1]


def test_alignment_of_a_token_that_ends_within_a_later_one():
    found = align(np.arange(3), np.array([1, 1, 3]), np.arange(2), np.array([3, 2]))
    assert found.inside_stop.tolist() == [2, -1]
    assert found.rest_at.tolist() == [2, -1]
    assert found.rest_length.tolist() == [1, 0]
    assert found.offset.tolist() == [0, 1]


def test_tables_are_kept_and_used_again(tmp_path, trained, monkeypatch):
    teacher, student = trained["byte_level"], trained["prepend"]
    arguments = (teacher.vocabulary, student.vocabulary, teacher.end_ids, student.end_ids[0])
    built = load_tables(tmp_path, *arguments)
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr("engine.distill.align.tables.build_tables", None)
    again = load_tables(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == [path]
    for name in ("phi", "order", "rank", "start", "suffix_phi", "prefix_lo", "prefix_hi"):
        np.testing.assert_array_equal(getattr(again, name), getattr(built, name))
    assert again.student_size == built.student_size


def test_other_tokenizers_and_ends_have_other_tables(tmp_path, trained):
    byte_level, prepend = trained["byte_level"], trained["prepend"]
    load_tables(tmp_path, byte_level.vocabulary, prepend.vocabulary, [1], 2)
    load_tables(tmp_path, byte_level.vocabulary, prepend.vocabulary, [1, 0], 2)
    load_tables(tmp_path, byte_level.vocabulary, prepend.vocabulary, [1], 1)
    load_tables(tmp_path, prepend.vocabulary, byte_level.vocabulary, [1], 2)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_damaged_tables_are_built_again(tmp_path, trained, damage):
    teacher, student = trained["byte_level"], trained["prepend"]
    arguments = (teacher.vocabulary, student.vocabulary, teacher.end_ids, student.end_ids[0])
    built = load_tables(tmp_path, *arguments)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-100] ^= 1
    path.write_bytes(
        {
            "cut": good[: len(good) // 2],
            "flipped": flipped,
            "empty": b"",
            "foreign": PROSE.encode(),
        }[damage]
    )
    again = load_tables(tmp_path, *arguments)
    for name in ("phi", "order", "rank", "start", "suffix_phi", "prefix_lo", "prefix_hi"):
        np.testing.assert_array_equal(getattr(again, name), getattr(built, name))
    assert path.read_bytes() == good


def test_prefix_ranges_are_the_tokens_with_that_prefix(trained):
    for reader in trained.values():
        tables = build_tables(reader.vocabulary, reader.vocabulary, reader.end_ids, 0)
        spelled = [reader.vocabulary.token_bytes[t] for t in tables.order]
        assert spelled == sorted(spelled)
        for n, token in enumerate(spelled):
            for k in range(len(token)):
                slot = tables.start[n] + k
                same = [m for m, other in enumerate(spelled) if other.startswith(token[:k])]
                assert (tables.prefix_lo[slot], tables.prefix_hi[slot]) == (same[0], same[-1] + 1)


def test_tables_of_a_vocabulary_of_150000_take_seconds(real_reader, real_tables):
    tables, seconds = real_tables("qwen3", real_reader("llama2"))
    assert seconds < 20
    assert len(tables.phi) > 150_000
    # every token with bytes has an image: Llama's byte fallback can begin anything
    assert (tables.phi[tables.order] >= 0).all()


def test_a_teachers_dummy_space_is_not_one_of_the_texts_bytes(trained):
    """At the start of a document the teacher's first token holds a space that the text has not."""
    teacher, student = trained["prepend"], trained["byte_level"]
    block = block_of(document("river"), student, teacher)
    alignment = block.alignment
    first = teacher.vocabulary.token_bytes[alignment.teacher_ids[0]]
    assert first.startswith(b" ri")
    assert not alignment.soft[0]
    # student positions inside the first token: the bytes before them include the dummy space
    inside = [n for n in range(1, len(alignment)) if alignment.at[n] == 0]
    assert inside
    spelled = np.cumsum([len(student.vocabulary.token_bytes[t]) for t in alignment.token[:-1]])
    assert [alignment.offset[n] for n in inside] == [spelled[n - 1] + 1 for n in inside]
    logits = torch.full((teacher.vocabulary.size, len(alignment.teacher_ids)), -20.0)
    logits[alignment.teacher_ids[0], 0] = 20.0
    projected = project_all(projector_of(teacher, student), logits, replace(block))
    for n in inside:
        assert float(projected.mass[n]) > 0.99
