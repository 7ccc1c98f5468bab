"""`gladius_train doctor` as a process: its output and exit code."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable

from engine.workspace import Workspace
from tests.support.hub_server import Hub

Doctor = Callable[..., subprocess.CompletedProcess[str]]
NANO = ("--preset", "nano", "--experts", "tiny")


def rows(result) -> dict[str, dict]:
    return {check["topic"]: check for check in json.loads(result.stdout)["checks"]}


def test_nano_passes_with_a_local_expert_without_hub_requests_or_new_files(
    ws: Workspace, doctor: Doctor
):
    hub = Hub()
    result = doctor(*NANO, HF_ENDPOINT=hub.url)
    hub.close()
    assert result.returncode == 0, result.stdout + result.stderr
    assert hub.requests == []
    assert "preset nano can run" in result.stdout.splitlines()[-1]
    assert re.search(r"^✓ tiny +ready", result.stdout, re.MULTILINE)
    assert re.search(r"^  tiny +\d+% .*(good|fair|poor)$", result.stdout, re.MULTILINE)
    assert re.search(r"^[✓!] speed +[\d.]+ TFLOP/s", result.stdout, re.MULTILINE)
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout
    assert [path.name for path in ws.root.iterdir()] == ["gladius.toml"]


def test_1b_reports_every_failure_with_its_remedy(doctor: Doctor):
    result = doctor("--preset", "1b", "--json", HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 3
    found = rows(result)
    for name in ("qwen", "llama", "phi", "tinyllama"):
        assert found[name]["status"] == "fail" and f"download {name}" in found[name]["remedy"]
    assert found["token"]["status"] == "fail" and "hf auth login" in found["token"]["remedy"]
    assert found["hub"]["status"] == "fail" and "127.0.0.1:9" in found["hub"]["figure"]
    assert all(check["remedy"] for check in found.values() if check["status"] in ("warn", "fail"))
    report = json.loads(result.stdout)
    assert report["ready"] is False and "tinyllama" in report["audit_problem"]


def test_a_gated_expert_fails_at_its_row_and_no_token_is_printed(ws: Workspace, doctor: Doctor):
    hub = Hub()
    try:
        files = dict.fromkeys(("config.json", "tokenizer.json", "model.safetensors"), b"{}")
        hub.add("org/open", files)
        hub.add("org/closed", {"config.json": b"{}"}, gated=True)
        hub.tokens.add("hf_secretsecret")
        with open(ws.user_config, "a") as file:
            file.write('[experts.open]\nrepo = "org/open"\n')
            file.write('[experts.closed]\nrepo = "org/closed"\ngated = true\n')
        result = doctor(
            "--preset", "nano", "--experts", "open,closed", "--json",
            HF_ENDPOINT=hub.url, HF_TOKEN="hf_secretsecret",
        )  # fmt: skip
        found = rows(result)
        assert result.returncode == 3
        assert found["hub"]["status"] == "ok"
        assert found["open"]["remedy"] == "gladius_train download open"
        assert "huggingface.co/org/closed" in found["closed"]["remedy"]
        assert found["token"]["figure"] == "found (HF_TOKEN)"
        assert "secretsecret" not in result.stdout + result.stderr
    finally:
        hub.close()


def test_an_expert_that_cant_be_audited_is_a_line_not_a_failure(ws: Workspace, doctor: Doctor):
    folder = ws.root / "odd"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    with open(ws.user_config, "a") as file:
        file.write(f'[experts.odd]\nrepo = "{folder}"\n')
    result = doctor(*NANO)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "  odd:" in result.stdout and "is no tokenizer" in " ".join(result.stdout.split())
    assert "Traceback" not in result.stdout + result.stderr


def test_a_root_that_cant_be_written_is_reported(ws: Workspace, doctor: Doctor):
    (ws.root / "tmp").mkdir()
    (ws.root / "tmp" / "checkpoints").write_text("a file where a folder belongs")
    result = doctor(*NANO, "--json")
    assert "Traceback" not in result.stderr
    assert json.loads(result.stdout)["audit_problem"]
    assert rows(result)["tiny"]["status"] == "ok"


def test_invalid_options_are_usage_errors(doctor: Doctor):
    for arguments in (("--preset", "nono"), ("--experts", "nobody"), ("--set", "a=1")):
        result = doctor(*arguments)
        assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
