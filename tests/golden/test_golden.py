"""Two small training runs through the command line, compared bit for bit with recorded numbers.

Compared are the loss, KL, cross-entropy, gradient norm and learning rate of every step, every
evaluation, and the final weights. A refactoring must not change them. The record, golden.json, is
valid for one kind of processor and one version of torch, transformers and tokenizers; elsewhere
the tests are skipped, and pytest prints the reason.

After a change that is meant to change the numbers, record them again and note it in the commit:

    GOLDEN_RECORD=1 .venv/bin/python -m pytest tests/golden

On another kind of processor, run the same command at a commit with correct numbers to add a record
to the file. The names of fields and commands are in golden_run.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from golden_run import RECORDING, Run, check, make_inputs, recorded


@pytest.fixture
def run(tmp_path: Path, runtime: Path) -> Run:
    """A root with two experts (byte-level and SentencePiece-style tokenizers) and a text."""
    make_inputs(tmp_path)
    return Run(tmp_path, runtime)


def skip_without_record(name: str) -> None:
    expected, reason = recorded(name)
    if expected is None and not RECORDING:
        pytest.skip(reason)


def test_cached_targets_with_a_stop_and_a_resume(run: Run) -> None:
    """All text is scored before the first step. The recorded run was not stopped."""
    skip_without_record("cached")
    steps = 36
    if RECORDING:
        run.train(steps, "targets.source=cached")
    else:
        run.train(steps, "targets.source=cached", stop_at=10)
        assert run.steps()[-1] < steps, "the run was not stopped in time"
        run.resume()
    check("cached", run.numbers())


def test_streamed_text_with_online_targets_and_generated_answers(run: Run) -> None:
    """The finished run is then given more steps: it resumes from before its decay, a fixed step."""
    skip_without_record("online")
    run.train(
        16,
        "data.stream_above=0.001",
        "data.window=0.002",
        "data.generate=true",
        'data.capabilities=["fluency"]',
        "data.max_answers=6",
    )
    run.resume("schedule.max_steps=28")
    check("online", run.numbers())
