"""The export as a job: what it makes, what it says, and what it leaves when it fails."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from safetensors.torch import load_file, save_file

from engine.checkpoint.model_record import describe_run, read_record, write_record
from engine.config import load_config
from engine.errors import GladiusError, MissingError, UsageError
from engine.events import Exported, LogLine, Progress, RunEnded, RunStarted, Stop
from engine.experts.registry import load_experts
from engine.export import llama_runtime
from engine.export.parity import parity_checks
from engine.workspace import Workspace
from tests.support.exported import (
    byte_level_tokenizer,
    change_json,
    export,
    make_model,
    needs_llama_cpp,
    root_with,
)
from tests.support.paths import REPO
from tests.support.small_run import KeepingLink, make_config, make_root, train


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), byte_level_tokenizer())


@pytest.fixture
def root(model: Path, tmp_path: Path) -> Workspace:
    """A finished model that says it was of the preset 1b, taught by Qwen and Llama."""
    workspace = root_with(model, tmp_path / "root")
    config = load_config(workspace, preset="1b")
    experts = load_experts(workspace)
    record = describe_run(
        config,
        [experts["qwen"], experts["llama"]],
        step=1200,
        tokens_seen=39_321_600,
        training_seconds=7200.0,
        evaluations=[(0, 8.5), (1200, 1.75)],
    )
    write_record(workspace.model_dir, record)
    return workspace


@pytest.fixture(autouse=True)
def no_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_runtime, "find_python", lambda: None)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_file_lies_beside_the_model_with_a_modelfile_and_a_card(root: Workspace) -> None:
    before = files(root.model_dir)
    link = export(root)
    made = files(root.model_dir) - before
    assert made == {"gladius-1b.gguf", "Modelfile", "README.md"}
    told = link.of(Exported)[-1]
    assert told.path == str(root.model_dir / "gladius-1b.gguf") and told.weights == "f16"
    assert told.bytes == Path(told.path).stat().st_size
    assert "tensors ✓" in told.parity and "logits not compared" in told.parity
    assert link.of(RunEnded)[-1].status == "completed"
    stages = {event.label for event in link.of(Progress) if event.finished}
    assert {"writing", "comparing tensors"} <= stages
    assert link.of(RunStarted)[0].job == "export"
    checks = list(parity_checks(Path(told.path), root.model_dir))
    assert {row.verdict for row in checks} == {"pass", "skip"}


def test_the_card_says_what_the_experts_licences_ask(root: Workspace) -> None:
    link = export(root)
    card = (root.model_dir / "README.md").read_text()
    assert card.startswith("---\nlicense: llama3.2\n")
    assert "# Llama-gladius-1b" in card and "**Built with Llama.**" in card
    assert "- Qwen/Qwen2.5-1.5B-Instruct" in card and "Apache License 2.0" in card
    assert "8.500 at step 0, 1.750 at step 1,200" in card
    assert "39,321,600" in card and "2.00 h" in card
    assert any("Llama 3.2 Community License" in line.text for line in link.of(LogLine))


def test_a_card_that_a_person_wrote_is_left_alone(root: Workspace) -> None:
    (root.model_dir / "README.md").write_text("mine")
    export(root)
    assert (root.model_dir / "README.md").read_text() == "mine"
    assert "# Llama-gladius-1b" in (root.model_dir / "README.gladius.md").read_text()


def test_a_second_export_replaces_the_first_and_the_card(root: Workspace) -> None:
    export(root)
    export(root, type="q8_0")
    assert "type q8_0" in (root.model_dir / "README.md").read_text()
    assert "README.gladius.md" not in files(root.model_dir)


def test_output_may_be_a_file_or_a_folder(root: Workspace, tmp_path: Path) -> None:
    export(root, output=str(tmp_path / "new" / "x.gguf"))
    assert files(tmp_path / "new") == {"x.gguf", "Modelfile", "README.md"}
    assert "FROM ./x.gguf" in (tmp_path / "new" / "Modelfile").read_text()
    export(root, output=f"{tmp_path}/folder/")
    assert "gladius-1b.gguf" in files(tmp_path / "folder")
    with pytest.raises(UsageError, match=r"ends in \.gguf"):
        export(root, output=str(tmp_path / "x.bin"))


def test_without_a_finished_model_the_newest_checkpoint_that_verifies_is_taken(tmp_path) -> None:
    workspace = make_root(tmp_path)
    config = make_config(workspace, schedule__max_steps=4, student__max_position_embeddings=2048)
    train(workspace, config, KeepingLink())
    finished = read_record(workspace.model_dir)
    assert finished is not None and finished.step == 4 and "config.json" in finished.files
    last = export(workspace).of(Exported)[-1]
    shutil.rmtree(workspace.model_dir)
    link = export(workspace)
    told = link.of(Exported)[-1]
    assert told.source == "the checkpoint of step 4"
    assert Path(told.path).stat().st_size == last.bytes
    assert any("no finished model here" in line.text for line in link.of(LogLine))
    newest = workspace.checkpoints_dir / "step-000000004" / "model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    older = sorted(workspace.checkpoints_dir.glob("step-*"))[:-1]
    if older:
        assert export(workspace).of(Exported)[-1].source != told.source
    else:
        with pytest.raises(MissingError, match="no checkpoint that verifies"):
            export(workspace)
    with pytest.raises(GladiusError, match="is damaged"):
        export(workspace, checkpoint="4")
    with pytest.raises(MissingError, match="available steps: "):
        export(workspace, checkpoint="999")
    with pytest.raises(UsageError, match="give latest, best, or a step"):
        export(workspace, checkpoint="newest")
    best = export(workspace, checkpoint="best").of(Exported)[-1]
    assert "best checkpoint" in best.source
    assert not list(workspace.checkpoints_dir.glob(".export-tmp*")), "temporary folders are gone"


def test_nothing_trained_is_told_with_the_command_that_helps(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    with pytest.raises(MissingError, match=r"no trained model.*gladius_train train"):
        export(workspace)


def test_stop_ends_it_and_leaves_nothing(root: Workspace) -> None:
    before = files(root.model_dir)

    def react(event):
        return [Stop()] if isinstance(event, Progress) and event.label == "writing" else []

    link = export(root, KeepingLink(react))
    assert link.of(RunEnded)[-1].status == "stopped"
    assert files(root.model_dir) == before


def test_a_former_file_stays_when_the_new_one_is_not_the_model(root, monkeypatch) -> None:
    export(root)
    former = (root.model_dir / "gladius-1b.gguf").read_bytes()
    from engine.export import gguf as gguf_file

    monkeypatch.setattr(gguf_file, "permute", lambda tensor, heads: tensor)
    with pytest.raises(GladiusError, match=r"is not the model.*former file is untouched"):
        export(root)
    assert (root.model_dir / "gladius-1b.gguf").read_bytes() == former
    assert not [name for name in files(root.model_dir) if name.endswith(".tmp")]


def test_a_type_that_nobody_here_can_make_says_how_to_get_it(root, monkeypatch) -> None:
    monkeypatch.setattr(llama_runtime, "find_quantizer", lambda: None)
    with pytest.raises(MissingError, match=r"LLAMA_CPP.*make llama-cpp"):
        export(root, type="q4_k_m")
    with pytest.raises(UsageError, match="did you mean 'q4_k_m'"):
        export(root, type="q4_km")


def test_llama_quantize_is_found_and_asked(root, tmp_path, monkeypatch) -> None:
    """A program that only copies stands for it: what it made is not what was asked for."""
    folder = tmp_path / "llama.cpp" / "build" / "bin"
    folder.mkdir(parents=True)
    program = folder / "llama-quantize"
    program.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/asked"\ncp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    with pytest.raises(GladiusError, match=r"general\.file_type is 32, should be 15"):
        export(root, type="q4_k_m")
    asked = (folder / "asked").read_text().split()
    assert asked[2] == "Q4_K_M" and asked[0].endswith(".tmp") and asked[1].endswith(".tmp")
    program.write_text("#!/bin/sh\necho out of luck >&2; exit 3\n")
    with pytest.raises(GladiusError, match="out of luck"):
        export(root, type="q4_k_m", output=str(tmp_path / "o" / "x.gguf"))
    assert files(tmp_path / "o") == set()


@needs_llama_cpp
def test_q4_k_m_from_start_to_end(root, monkeypatch) -> None:
    monkeypatch.undo()
    change = root.model_dir / "config.json"
    assert change.is_file()
    link = export(root, type="q8_0")
    assert "logits" in link.of(Exported)[-1].parity
    link = export(root, type="q4_k_m")
    assert link.of(Exported)[-1].weights == "q4_k_m"
    # 64 columns are no multiple of 256: llama.cpp takes other types, and the user is told.
    assert any("no multiple of 256" in line.text for line in link.of(LogLine))


@pytest.mark.parametrize("part", ["shard", "short", "flipped", "nan"])
def test_sources_that_are_not_whole_are_one_line(root: Workspace, part: str) -> None:
    weights = root.model_dir / "model.safetensors"
    if part == "shard":
        names = list(load_file(weights))
        placed = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        weights.unlink()
        (root.model_dir / "model.safetensors.index.json").write_bytes(
            msgspec.json.encode({"weight_map": placed})
        )
        error, why = MissingError, "model-00001-of-00002.safetensors is missing"
    elif part == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
        error, why = GladiusError, "is damaged"
    elif part == "flipped":
        data = bytearray(weights.read_bytes())
        data[-1000] ^= 1
        weights.write_bytes(data)
        error, why = GladiusError, "is damaged.*--checkpoint latest"
    else:
        (root.model_dir / "gladius.json").unlink()
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
        error, why = GladiusError, "not finite"
    before = files(root.model_dir)
    with pytest.raises(error, match=why) as raised:
        export(root)
    assert "\n" not in str(raised.value)
    assert files(root.model_dir) == before


def test_a_full_disk_is_one_line_and_leaves_nothing(root: Workspace) -> None:
    export(root)
    former = (root.model_dir / "gladius-1b.gguf").read_bytes()
    before = files(root.model_dir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(GladiusError, match=r"ran full.*make room") as raised:
            export(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert files(root.model_dir) == before
    assert (root.model_dir / "gladius-1b.gguf").read_bytes() == former


def test_a_folder_without_room_is_told_before_anything_is_written(root, monkeypatch) -> None:
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: shutil._ntuple_diskusage(10, 9, 1),  # type: ignore
    )
    with pytest.raises(GladiusError, match="MiB free; make room"):
        export(root)


_SLOW = """
import os, sys, time
from tests.support.exported import export
from engine.export import gguf as gguf_file
from engine.workspace import Workspace
real = gguf_file.converted
def slow(*arguments):
    for piece in real(*arguments):
        yield piece
        print("writing", flush=True)
        time.sleep(0.2)
gguf_file.converted = slow
export(Workspace.find({root!r}))
"""


def test_kill_9_in_the_middle_leaves_no_half_file_and_the_next_one_cleans_up(root) -> None:
    script = _SLOW.format(root=str(root.root))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    ) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [name for name in files(root.model_dir) if name.endswith(".tmp")]
    assert len(left) == 1 and "gladius-1b.gguf" not in files(root.model_dir)
    time.sleep(0.1)
    export(root)
    assert not [name for name in files(root.model_dir) if name.endswith(".tmp")]
    assert "gladius-1b.gguf" in files(root.model_dir)


def test_a_tokenizer_that_cannot_be_expressed_leaves_nothing(root: Workspace) -> None:
    before = files(root.model_dir)
    change_json(root.model_dir / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(GladiusError, match="can't be expressed in GGUF"):
        export(root)
    assert files(root.model_dir) == before
