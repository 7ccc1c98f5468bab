"""The export job: the files it writes, the events it emits, and what it leaves after a failure."""

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

from engine import programs
from engine.checkpoint.model_record import describe_run, read_record, write_record
from engine.config import load_config
from engine.errors import GladiusError, MissingError, UsageError
from engine.events import Exported, LogLine, Progress, RunEnded, RunStarted, Stop
from engine.experts.registry import load_experts
from engine.export import llama_runtime
from engine.export.parity.checks import parity_checks
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
    """A finished model whose record says: preset 1b, experts Qwen and Llama."""
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
    for module in (llama_runtime, programs):
        monkeypatch.setattr(module, "find_python", lambda: None)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_gguf_file_modelfile_and_card_are_written_beside_the_model(root: Workspace) -> None:
    before = files(root.model_dir)
    link = export(root)
    made = files(root.model_dir) - before
    assert made == {"gladius-1b.gguf", "Modelfile", "README.md"}
    exported = link.of(Exported)[-1]
    assert exported.path == str(root.model_dir / "gladius-1b.gguf") and exported.weights == "f16"
    assert exported.bytes == Path(exported.path).stat().st_size
    assert "tensors ✓" in exported.parity and "logits not compared" in exported.parity
    assert link.of(RunEnded)[-1].status == "completed"
    stages = {event.label for event in link.of(Progress) if event.finished}
    assert {"writing", "comparing tensors"} <= stages
    assert link.of(RunStarted)[0].job == "export"
    checks = list(parity_checks(Path(exported.path), root.model_dir))
    assert {row.verdict for row in checks} == {"pass", "skip"}


def test_the_card_lists_the_requirements_of_the_experts_licences(root: Workspace) -> None:
    link = export(root)
    card = (root.model_dir / "README.md").read_text()
    assert card.startswith("---\nlicense: llama3.2\n")
    assert "# Llama-gladius-1b" in card and "**Built with Llama.**" in card
    assert "- Qwen/Qwen2.5-1.5B-Instruct" in card and "Apache License 2.0" in card
    assert "8.500 at step 0, 1.750 at step 1,200" in card
    assert "39,321,600" in card and "2.00 h" in card
    assert any("Llama 3.2 Community License" in line.text for line in link.of(LogLine))


def test_a_card_written_by_the_user_is_not_overwritten(root: Workspace) -> None:
    (root.model_dir / "README.md").write_text("mine")
    export(root)
    assert (root.model_dir / "README.md").read_text() == "mine"
    assert "# Llama-gladius-1b" in (root.model_dir / "README.gladius.md").read_text()


def test_a_second_export_replaces_the_file_and_the_card(root: Workspace) -> None:
    export(root)
    export(root, type="q8_0")
    assert "type q8_0" in (root.model_dir / "README.md").read_text()
    assert "README.gladius.md" not in files(root.model_dir)


def test_output_can_be_a_file_or_a_folder(root: Workspace, tmp_path: Path) -> None:
    export(root, output=str(tmp_path / "new" / "x.gguf"))
    assert files(tmp_path / "new") == {"x.gguf", "Modelfile", "README.md"}
    assert "FROM ./x.gguf" in (tmp_path / "new" / "Modelfile").read_text()
    export(root, output=f"{tmp_path}/folder/")
    assert "gladius-1b.gguf" in files(tmp_path / "folder")
    with pytest.raises(UsageError, match=r"ends in \.gguf"):
        export(root, output=str(tmp_path / "x.bin"))


def test_without_a_finished_model_the_newest_intact_checkpoint_is_exported(tmp_path) -> None:
    workspace = make_root(tmp_path)
    config = make_config(workspace, schedule__max_steps=4, student__max_position_embeddings=2048)
    train(workspace, config, KeepingLink())
    finished = read_record(workspace.model_dir)
    assert finished is not None and finished.step == 4 and "config.json" in finished.files
    last = export(workspace).of(Exported)[-1]
    shutil.rmtree(workspace.model_dir)
    link = export(workspace)
    exported = link.of(Exported)[-1]
    assert exported.source == "the checkpoint of step 4"
    assert Path(exported.path).stat().st_size == last.bytes
    assert any("no finished model in" in line.text for line in link.of(LogLine))
    newest = workspace.checkpoints_dir / "step-000000004" / "model.safetensors"
    damaged = bytearray(newest.read_bytes())
    damaged[-5] ^= 1
    newest.write_bytes(damaged)
    older = sorted(workspace.checkpoints_dir.glob("step-*"))[:-1]
    if older:
        assert export(workspace).of(Exported)[-1].source != exported.source
    else:
        with pytest.raises(MissingError, match="no intact checkpoint"):
            export(workspace)
    with pytest.raises(GladiusError, match="is damaged"):
        export(workspace, checkpoint="4")
    with pytest.raises(MissingError, match="available steps: "):
        export(workspace, checkpoint="999")
    with pytest.raises(UsageError, match="give latest, best, or a step"):
        export(workspace, checkpoint="newest")
    best = export(workspace, checkpoint="best").of(Exported)[-1]
    assert "best checkpoint" in best.source
    assert not list(workspace.checkpoints_dir.glob(".export-tmp*")), "temporary folders are removed"


def test_without_a_trained_model_the_error_names_the_train_command(tmp_path: Path) -> None:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    with pytest.raises(MissingError, match=r"no trained model.*gladius_train train"):
        export(workspace)


def test_stop_removes_the_incomplete_file(root: Workspace) -> None:
    before = files(root.model_dir)

    def react(event):
        return [Stop()] if isinstance(event, Progress) and event.label == "writing" else []

    link = export(root, KeepingLink(react))
    assert link.of(RunEnded)[-1].status == "stopped"
    assert files(root.model_dir) == before


def test_a_previous_file_stays_when_the_new_one_does_not_match_the_model(root, monkeypatch) -> None:
    export(root)
    previous = (root.model_dir / "gladius-1b.gguf").read_bytes()
    from engine.export import gguf as gguf_file

    monkeypatch.setattr(gguf_file, "permute", lambda tensor, heads: tensor)
    with pytest.raises(GladiusError, match=r"does not match the model.*previous file is unchanged"):
        export(root)
    assert (root.model_dir / "gladius-1b.gguf").read_bytes() == previous
    assert not [name for name in files(root.model_dir) if name.endswith(".tmp")]


def test_files_of_several_types_lie_side_by_side(root) -> None:
    export(root)
    plain = (root.model_dir / "gladius-1b.gguf").read_bytes()
    export(root, type="q8_0")
    assert {"gladius-1b.gguf", "gladius-1b-q8_0.gguf"} <= files(root.model_dir)
    assert (root.model_dir / "gladius-1b.gguf").read_bytes() == plain


def test_a_type_that_needs_llama_cpp_says_how_to_install_it(root, monkeypatch) -> None:
    monkeypatch.setattr(programs, "find_quantizer", lambda: None)
    with pytest.raises(MissingError, match=r"LLAMA_CPP.*make llama-cpp"):
        export(root, type="q4_k_m")
    with pytest.raises(UsageError, match="did you mean 'q4_k_m'"):
        export(root, type="q4_km")


def test_llama_quantize_is_found_and_run(root, tmp_path, monkeypatch) -> None:
    """The stand-in only copies the file, so its type is not the requested one."""
    folder = tmp_path / "llama.cpp" / "build" / "bin"
    folder.mkdir(parents=True)
    program = folder / "llama-quantize"
    program.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/arguments"\ncp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    with pytest.raises(GladiusError, match=r"general\.file_type is 32, expected 15"):
        export(root, type="q4_k_m")
    arguments = (folder / "arguments").read_text().split()
    assert arguments[2] == "Q4_K_M"
    assert arguments[0].endswith(".tmp") and arguments[1].endswith(".tmp")
    program.write_text("#!/bin/sh\necho out of luck >&2; exit 3\n")
    with pytest.raises(GladiusError, match="out of luck"):
        export(root, type="q4_k_m", output=str(tmp_path / "o" / "x.gguf"))
    assert files(tmp_path / "o") == set()


@needs_llama_cpp
def test_q4_k_m_is_quantized_and_compared(root, monkeypatch) -> None:
    monkeypatch.undo()
    change = root.model_dir / "config.json"
    assert change.is_file()
    link = export(root, type="q8_0")
    assert "logits" in link.of(Exported)[-1].parity
    link = export(root, type="q4_k_m")
    assert link.of(Exported)[-1].weights == "q4_k_m"
    # 64 columns are not a multiple of 256: llama.cpp uses other types, and the log warns.
    assert any("not a multiple of 256" in line.text for line in link.of(LogLine))


@pytest.mark.parametrize("part", ["shard", "short", "flipped", "nan"])
def test_a_damaged_model_is_a_one_line_error(root: Workspace, part: str) -> None:
    weights = root.model_dir / "model.safetensors"
    if part == "shard":
        names = list(load_file(weights))
        placed = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        weights.unlink()
        (root.model_dir / "model.safetensors.index.json").write_bytes(
            msgspec.json.encode({"weight_map": placed})
        )
        error, reason = MissingError, "model-00001-of-00002.safetensors is missing"
    elif part == "short":
        weights.write_bytes(weights.read_bytes()[:-1000])
        error, reason = GladiusError, "is damaged"
    elif part == "flipped":
        data = bytearray(weights.read_bytes())
        data[-1000] ^= 1
        weights.write_bytes(data)
        error, reason = GladiusError, "is damaged.*--checkpoint latest"
    else:
        (root.model_dir / "gladius.json").unlink()
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(tensors, weights, {"format": "pt"})
        error, reason = GladiusError, "not finite"
    before = files(root.model_dir)
    with pytest.raises(error, match=reason) as raised:
        export(root)
    assert "\n" not in str(raised.value)
    assert files(root.model_dir) == before


def test_a_full_disk_is_a_one_line_error_and_leaves_nothing(root: Workspace) -> None:
    export(root)
    previous = (root.model_dir / "gladius-1b.gguf").read_bytes()
    before = files(root.model_dir)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(GladiusError, match=r"is full; free some space") as raised:
            export(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(raised.value)
    assert files(root.model_dir) == before
    assert (root.model_dir / "gladius-1b.gguf").read_bytes() == previous


def test_too_little_disk_space_is_reported_before_anything_is_written(root, monkeypatch) -> None:
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda path: shutil._ntuple_diskusage(10, 9, 1),  # type: ignore
    )
    with pytest.raises(GladiusError, match="MiB free; free some space"):
        export(root)


_SLOW = """
import os, sys, time
from tests.support.exported import export
from engine.export import gguf as gguf_file
from engine.workspace import Workspace
real = gguf_file.encode_tensor
def slow(*arguments):
    for chunk in real(*arguments):
        yield chunk
        print("writing", flush=True)
        time.sleep(0.2)
gguf_file.encode_tensor = slow
export(Workspace.find({root!r}))
"""


def test_kill_9_leaves_no_incomplete_file_and_the_next_export_cleans_up(root) -> None:
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


def test_a_tokenizer_that_gguf_cannot_represent_leaves_nothing(root: Workspace) -> None:
    before = files(root.model_dir)
    change_json(root.model_dir / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(GladiusError, match="cannot be represented in GGUF"):
        export(root)
    assert files(root.model_dir) == before
