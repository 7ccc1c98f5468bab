"""Validating GGUF files: beside a model, and alone."""

from __future__ import annotations

import shutil

import pytest
from gguf import GGUFReader

from engine.export.gguf import write_gguf
from engine.export.progress import no_progress
from engine.export.tokenizer import read_gguf_tokenizer
from engine.export.weights import Weights
from tests.support.validated import change_tensors, copy_model, reseal, trained_root, validate

pytestmark = pytest.mark.usefixtures("few_prompts")
PARITY = {"gguf_structure", "gguf_tensors", "gguf_tokens"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return trained_root(tmp_path_factory.mktemp("root"))[0]


@pytest.fixture
def model(workspace, tmp_path):
    """A model with its GGUF file beside it."""
    folder = copy_model(workspace, tmp_path)
    weights = Weights(folder)
    tokenizer = read_gguf_tokenizer(folder, weights.config["vocab_size"])
    path = folder / "tiny.gguf"
    write_gguf(path, weights, tokenizer, type_name="f32", model_name="tiny", report=no_progress)
    return folder


def flip_in_a_tensor(path) -> None:
    """Change one weight of a GGUF file a little."""
    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
    with open(path, "r+b") as file:
        file.seek(int(tensor.data_offset) + 1)
        byte = file.read(1)[0]
        file.seek(int(tensor.data_offset) + 1)
        file.write(bytes([byte ^ 8]))


def test_a_file_beside_the_model_is_compared_with_it(workspace, model):
    outcome = validate(workspace, model=str(model))
    assert outcome.of("pass") >= PARITY and not outcome.failed


def test_a_file_of_older_weights_is_found(workspace, model):
    change_tensors(model, lambda t: t["model.norm.weight"].mul_(1.5))
    reseal(model)
    outcome = validate(workspace, model=str(model))
    # With llama.cpp installed, the logits differ too.
    assert outcome.failed - {"gguf_logits"} == {"gguf_tensors"}
    assert outcome.end.exit_code == 1


def test_one_wrong_weight_in_the_file_is_found(workspace, model):
    flip_in_a_tensor(model / "tiny.gguf")
    assert validate(workspace, model=str(model)).failed == {"gguf_tensors"}


def test_each_of_several_files_has_its_own_rows(workspace, model):
    shutil.copy(model / "tiny.gguf", model / "other.gguf")
    flip_in_a_tensor(model / "other.gguf")
    outcome = validate(workspace, model=str(model))
    assert outcome.failed == {"gguf_tensors:other.gguf"}
    assert "gguf_tensors:tiny.gguf" in outcome.of("pass")


def test_a_gguf_file_alone_can_be_validated(workspace, model, tmp_path):
    alone = tmp_path / "alone" / "tiny.gguf"
    alone.parent.mkdir()
    shutil.copy(model / "tiny.gguf", alone)
    outcome = validate(workspace, gguf=str(alone))
    assert not outcome.failed and outcome.rows["gguf_parity"].verdict == "skip"
    assert outcome.report.model.kind == "gguf"
    assert (alone.parent / "tiny.validation.json").is_file()
    # with the folder that it was made from, the run's own metrics are measured too
    outcome = validate(workspace, gguf=str(alone), model=str(model))
    assert outcome.of("pass") >= PARITY
    by_folder = validate(workspace, model=str(model))
    for name in ("bits_per_byte:tiny", "kl:tiny"):
        assert outcome.rows[name].number == pytest.approx(by_folder.rows[name].number, rel=1e-4)


def test_a_truncated_file_is_broken(workspace, model):
    path = model / "tiny.gguf"
    path.write_bytes(path.read_bytes()[:-20_000])
    outcome = validate(workspace, gguf=str(path))
    assert "files" in outcome.failed and outcome.end.exit_code == 1
    assert outcome.report.structure == "broken"
    outcome = validate(workspace, model=str(model))
    assert outcome.failed and outcome.failed <= PARITY | {"gguf_parity"}
