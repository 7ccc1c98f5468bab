"""The lens shows what an evaluation measured, and its keys reach all of it."""

from __future__ import annotations

import pytest
from textual.app import App

from engine.events import ProbePosition, ProbeRead, ProbeToken
from engine.run.view import RunView
from gladius_tui.app.dialogs.lens import Lens
from gladius_tui.app.dialogs.lens_text import (
    agreement_sign,
    agrees,
    bar_lines,
    overall_line,
    position_lines,
    sentence_lines,
    visible,
)
from tests.support.recording import recorded

EVENTS = recorded()


def position(*tokens: tuple[str, float, float], kept: float = 1.0, follows: int = 0):
    return ProbePosition(
        text=tokens[follows][0],
        rule="aligned",
        kept=kept,
        kl=1.0 if kept else None,
        tokens=tuple(ProbeToken(*token) for token in tokens),
        follows=follows,
    )


SAME = position(("gold", 0.6, 0.9), ("tin", 0.1, 0.05))
NEAR = position(("gold", 0.3, 0.9), ("tin", 0.5, 0.05))
FAR = position(
    ("gold", 0.0, 0.9), ("a", 0.4, 0.0), ("b", 0.3, 0.0), ("c", 0.2, 0.0), ("d", 0.1, 0.0)
)
NO_TARGET = position(("gold", 0.6, 0.0), ("tin", 0.1, 0.0), kept=0.0)


def test_agreement_has_a_sign():
    assert [agreement_sign(p) for p in (SAME, NEAR, FAR, NO_TARGET)] == ["=", "~", "≠", " "]
    assert [agrees(p) for p in (SAME, NEAR, FAR, NO_TARGET)] == [True, False, False, None]


def test_the_top_tokens_are_shown_and_starred_where_few_have_room():
    tokens = [(f"t{n}", 0.01, 0.09 - n / 100) for n in range(8)]
    tokens[6] = ("best", 0.7, 0.001)
    crowded = position(*tokens, follows=7)
    lines = [line.plain for line in bar_lines(crowded, 53, 4)]
    assert len(lines) == 4
    (student,) = (line for line in lines if "70%★" in line)
    assert "best" in student
    (expert,) = (line for line in lines if "★9.0%" in line.replace(" ", ""))
    assert "t0" in expert and any("▸" in line for line in lines)


def test_bars_grow_from_the_middle_and_first_choices_are_starred():
    lines = [line.plain for line in bar_lines(NEAR, 80, 9)]
    assert len({len(line) for line in lines}) == 1
    gold, tin = lines
    assert gold.index("gold") > gold.index("█") and gold.rindex("█") > gold.index("gold")
    assert "▸" in gold and "▸" not in tin, "gold is what follows"
    assert "★90%" in gold.replace(" ", "") and "50%★" in tin.replace(" ", "")
    middle = gold.index("gold") + 2
    student = gold[:middle].count("█") / tin[:middle].count("█")
    assert student == pytest.approx(0.3 / 0.5, abs=0.1)


@pytest.mark.parametrize("width", [40, 60, 105])
def test_it_fits_its_width(width):
    for event in EVENTS:
        if isinstance(event, ProbeRead):
            lines = sentence_lines(event, 3, width)
            for one in event.positions:
                lines += bar_lines(one, width, 9)
            assert max(line.cell_length for line in lines) <= width


def test_the_predictions_are_shown_in_words():
    text = "\n".join(line.plain for line in position_lines(NEAR, SAME, "Qwen"))
    assert "the student predicts “tin”, Qwen “gold”" in text
    assert "KL 1.00 nats (was 1.00)" in text and "kept by the projection 100%" in text
    assert "both predict “gold”" in position_lines(SAME, None, "Qwen")[0].plain
    assert "no target from Qwen here" in position_lines(NO_TARGET, None, "Qwen")[0].plain


def test_white_space_is_visible():
    assert [visible(text) for text in (" a", "\n", "\t", "", "\x1b")] == [
        *("·a", "⏎", "⇥", "∅"),
        "\\u001b",
    ]


def test_the_whole_sentence_is_summarized():
    reading = ProbeRead(
        expert="a", probe=0, probes=1, prompt="", positions=(SAME, NEAR, NO_TARGET), step=9
    )
    assert overall_line(reading, None).plain == "agree at 1 of 2 positions · mean KL 1.00"
    assert overall_line(reading, reading).plain.endswith("was 1.00 at step 9")


async def test_keys_move_through_positions_sentences_and_experts():
    run = RunView()
    run.take(EVENTS)
    other = [e for e in EVENTS if isinstance(e, ProbeRead)][-4:]
    import msgspec

    run.take([msgspec.structs.replace(e, seq=0, expert="zeta") for e in other])
    app = App()
    async with app.run_test(size=(120, 36)) as pilot:
        lens = Lens(run)
        await app.push_screen(lens)
        await pilot.pause()

        def text() -> str:
            return str(lens.query_one("#lens-body").render())  # type: ignore[union-attr]

        title = lens.query_one("#lens")
        first = text()
        assert "SmolLM2 135M" in str(title.border_title) and "step 220" in str(title.border_title)
        await pilot.press("right")
        assert text() != first
        await pilot.press("left", "left")
        assert text() == first, "it stays at the first"
        await pilot.press("end", "right", "home")
        assert text() == first
        await pilot.press("down")
        assert "sentence 2/4" in str(title.border_title)
        await pilot.press("up", "up")
        assert "sentence 4/4" in str(title.border_title)
        await pilot.press("e")
        assert "zeta" in str(title.border_title)
        await pilot.press("escape")
        assert app.screen is not lens


async def test_without_readings_it_shows_when_they_are_made():
    app = App()
    async with app.run_test(size=(80, 24)) as pilot:
        lens = Lens(RunView())
        await app.push_screen(lens)
        await pilot.press("right", "down", "e")
        assert "at every evaluation" in str(lens.query_one("#lens-body").render())  # type: ignore[union-attr]
