"""Generated conversations of all kinds that people bring, and what of them must be learnt."""

from __future__ import annotations

import random
from typing import Any

from engine.chat_tools import answer_text
from engine.distill.align.blocks import ChatEncoder, EncodedExample, TextBlock, normalise
from engine.text.examples import Example, Message, ToolCall
from tests.support.toys import PROSE, UNUSUAL_TEXTS

_WORDS = PROSE.split()
_ODD = (
    *UNUSUAL_TEXTS,
    *("<think>", "</think>", "<tool_call>", "[/INST]", "Instruct: x\nOutput: y", "{{ x }}"),
    *("\u2028", "\ufffd", "\u202e", "\u0000", "ﬁ", "\r\n\r\n", "  ", "\t", "'", '"', "\\n"),
)
TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a place.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
    {
        "type": "function",
        "function": {"name": "search", "parameters": {"type": "object", "properties": {}}},
    },
)


class Conversations:
    """Conversations that follow from the seed."""

    def __init__(self, seed: int, longest: int) -> None:
        """longest: bytes of a turn, about."""
        self._random = random.Random(seed)
        self._longest = longest

    def text(self, least: int = 1) -> str:
        """Words, or odd characters, of 1 byte to `longest`, short ones more often."""
        r = self._random
        size = max(least, int(self._longest ** (r.random() ** 4)))
        parts: list[str] = []
        length = 0
        while length < size:
            part = r.choice(_ODD) if r.random() < 0.1 else r.choice(_WORDS)
            parts.append(part if r.random() < 0.9 else part + "\n")
            length += len(part) + 1
        text = " ".join(parts)[: max(1, size)]
        return r.choice(("", "", "", " ", "\n")) + text + r.choice(("", "", "", " ", "\n\n"))

    def call(self) -> ToolCall:
        r = self._random
        values: list[Any] = [self.text()[:80], 3, -1.5, True, None, ["a", {"é": "ü"}], {}]
        arguments = {r.choice(("city", "q", "日本", 'a"b')): r.choice(values) for _ in range(3)}
        return ToolCall(r.choice(("get_weather", "search")), arguments, f"call{r.random():.3f}")

    def example(self) -> Example:
        r = self._random
        with_tools, thinks = r.random() < 0.3, r.random() < 0.25
        turns: list[Message] = []
        if r.random() < 0.3:
            turns.append(Message("system", self.text()))
        if r.random() < 0.05:
            turns.append(Message("assistant", self.text()))
        for _ in range(r.choice((1, 1, 2, 3, 6))):
            turns += [Message("user", self.text()) for _ in range(1 + (r.random() < 0.05))]
            if with_tools and r.random() < 0.7:
                calls = tuple(self.call() for _ in range(r.choice((1, 1, 2))))
                content = self.text()[:200] if r.random() < 0.3 else ""
                thought = self.text() if thinks and r.random() < 0.5 else None
                turns.append(Message("assistant", content, thought, calls))
                turns += [Message("tool", self.text(), tool_call_id=c.id) for c in calls]
            thought = self.text() if thinks and r.random() < 0.7 else None
            weight = 0 if r.random() < 0.1 else 1
            turns.append(Message("assistant", self.text(), thought, weight=weight))
            if r.random() < 0.03:
                turns.append(Message("assistant", self.text()))
            if r.random() < 0.03:
                turns.append(Message("system", self.text()))
        return Example(
            messages=tuple(turns),
            tools=TOOLS if with_tools and r.random() < 0.9 else None,
            complete=r.random() < 0.9,
        )


def answers_of(example: Example) -> list[str]:
    """What has to be learnt: the answers that have a weight and follow a user's turn."""
    messages = normalise(example).messages or ()
    return [
        answer_text(m)
        for n, m in enumerate(messages)
        if m.role == "assistant"
        and m.weight > 0
        and any(before.role in ("user", "tool") for before in messages[:n])
    ]


def scored_runs(encoder: ChatEncoder, ids: Any, scored: Any, is_end: Any) -> list[bytes]:
    """The bytes of each run of scored tokens that stand side by side, without ends of turn."""
    runs: list[bytes] = []
    last = -2
    for index, end in zip(scored.tolist(), is_end.tolist(), strict=True):
        if index != last + 1:
            runs.append(b"")
        last = -2 if end else index
        if not end:
            runs[-1] += encoder.vocabulary.token_bytes[ids[index]] or b"\xff?"
    return runs


def runs_of(block: TextBlock, student: ChatEncoder, teacher: ChatEncoder) -> list[list[bytes]]:
    """The runs of the student, and those of the expert."""
    ends = block.alignment.teacher_ids < 0
    return [
        scored_runs(student, block.student_ids, block.student_scored, block.is_end),
        scored_runs(teacher, block.teacher_ids, block.teacher_scored, ends),
    ]


def check_round_trip(
    example: Example, encoded: EncodedExample, student: ChatEncoder, teacher: ChatEncoder
) -> None:
    """What is scored, as bytes, is what has to be learnt; or there is a reason why it is not.

    With a reason, what is learnt is nothing but answers, in their order, or beginnings of them.
    """
    answers = [answer.encode() for answer in answers_of(example) if answer]
    if not encoded.problem:
        assert sum(b.text_bytes for b in encoded.blocks) == sum(map(len, answers))
    for side in range(2):
        runs = [r for b in encoded.blocks for r in runs_of(b, student, teacher)[side] if r]
        left = list(answers)
        for run in runs:
            while left and not (took := _taken(left[0], run)):
                assert encoded.problem, (left[0][:80], run[:80])
                left.pop(0)
            assert left, f"{run[:80]!r} is no answer"
            left[0] = left[0][took:]
            if not left[0]:
                left.pop(0)
        assert encoded.problem or not left


def _taken(answer: bytes, run: bytes) -> int:
    """Bytes at the start of the answer that the run is; a space of the template may precede."""
    if run and answer.startswith(run):
        return len(run)
    return len(run) - 1 if run[:1] == b" " and answer.startswith(run[1:]) else 0
