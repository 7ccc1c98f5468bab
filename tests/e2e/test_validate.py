"""`validate` as a process: exit codes, output streams and the report."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def root(make_root):
    root = make_root("validated")
    result = root.run("--no-ui", "--quiet", *root.training(4))
    assert result.returncode == 0, result.stderr
    return root


def test_without_a_trained_model_it_exits_with_3(make_root):
    line = make_root("nothing").error_of(3, "--no-ui", "validate")
    assert "no trained model in" in line and "gladius_train train" in line


def test_an_intact_model_exits_with_0_and_json_is_the_report(root):
    result = root.run("--no-ui", "--json", "validate")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report == json.loads((root.ws.model_dir / "validation.json").read_bytes())
    assert report["structure"] == "sound" and report["quality"] in ("low", "fair")
    assert {check["verdict"] for check in report["checks"] if check["group"] == "structural"} == {
        "pass"
    }


def test_a_damaged_model_exits_with_1_and_names_the_damage(root):
    weights = root.ws.model_dir / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 4
    weights.write_bytes(data)
    result = root.run("--no-ui", "validate")
    assert result.returncode == 1
    assert "✗ fail  file integrity" in result.stdout
    assert "structurally broken (file integrity)" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "validation.json" in errors[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--tasks", " , "], 2, "--tasks is empty"),
        (["--tasks-path", "."], 2, "needs --tasks"),
        (["--model", "/nonexistent"], 3, "is not a folder"),
        (["--gguf", "none.gguf"], 3, "gladius_train export"),
    ],
)
def test_an_invalid_option_is_a_one_line_error(root, arguments, code, message):
    assert message in root.error_of(code, "--no-ui", "validate", *arguments)
