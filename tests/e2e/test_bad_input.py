"""Invalid input before a run: a one-line error with the remedy and the documented exit code."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.support.program import LAUNCHER


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--preset", "nanno"], 2, ["unknown preset 'nanno'", "'nano'"]),
        (["--experts", "tinny"], 2, ["unknown expert 'tinny'", "'tiny'"]),
        (["--experts", "qwen,phi"], 3, ["no expert is ready", "qwen", "phi", "download"]),
        (["--experts", "tiny,qwen"], 3, ["qwen", "download qwen", "--experts tiny"]),
        (["--set", "student.tokenizer=qwen"], 3, ["tokenizer", "download qwen"]),
        (["--data", "gone.jsonl"], 2, ["gone.jsonl doesn't exist"]),
    ],
)
def test_an_invalid_option_is_a_one_line_error(root, arguments, code, parts):
    line = root.error_of(code, *root.training(4), *arguments)
    for part in parts:
        assert part in line


def test_all_problems_of_a_config_are_named(root):
    result = root.run(
        *root.training(4, optimizer__lr=-1, loss__alfa=1, device__device="tpu"),
    )
    assert result.returncode == 2 and result.stdout == "" and "Traceback" not in result.stderr
    for part in ("3 problems", "optimizer.lr", "loss.alfa", "device.device"):
        assert part in result.stderr


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('{"text": "good"}\n{"text": "good"}\n{"text": \n', ["line 3"]),
        ('{"text": "good"}\n{"messages": "no list"}\n', ["line 2"]),
        ("", ["is empty"]),
        ("\n\n", ["is empty"]),
    ],
)
def test_an_invalid_data_file_is_named_with_its_line(root, content, parts):
    root.text = root.path / "mine.jsonl"
    root.text.write_text(content)
    line = root.error_of(2, *root.training(4))
    for part in ("mine.jsonl", *parts):
        assert part in line
    assert root.saved_steps() == []


def test_a_run_with_many_bad_lines_starts_when_the_remedy_of_the_error_is_followed(root):
    data = root.path / "mine.jsonl"
    data.write_bytes(root.text.read_bytes() + b"{broken\n" * 20)
    root.text = data
    line = root.error_of(2, *root.training(2))
    assert "20 of 80 texts can't be learnt: not JSON 20" in line and "--data-lenient" in line
    result = root.run(*root.training(2), "--data-lenient")
    assert result.returncode == 0, result.stderr
    for output in (result.stdout, root.run("status").stdout):
        assert "80 read, 60 learnt" in output and "not JSON 20" in output
    state = json.loads(root.run("status", "--json").stdout)
    assert state["texts"][0]["reasons"][0]["where"].endswith("line 61")


def test_a_text_that_is_too_short_to_train_on_is_an_error(root):
    data = root.path / "mine.jsonl"
    data.write_text('{"text": "one"}\n')
    root.text = data
    line = root.error_of(2, *root.training(4))
    assert "1 texts give" in line and "--data" in line


def test_a_root_that_cant_be_written_is_an_error():
    for root in ("/dev/null/x", "/proc/x"):
        result = subprocess.run(
            [str(LAUNCHER), "--root", root, "train", "--preset", "nano"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 1 and result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and root in line and "--root" in line
