"""Each structural check passes on a good model and fails on one that is broken in just that way."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.checkpoint.model_record import RECORD
from engine.errors import MissingError, UsageError
from engine.validate.checks.tokenizer import check_round_trip
from engine.validate.quality import writer as quality_writer
from tests.support.paths import REPO
from tests.support.toys import sentencepiece
from tests.support.validated import (
    WEIGHTS,
    change_json,
    change_tensors,
    copy_model,
    reseal,
    trained_root,
    validate,
)

NORM = "model.layers.0.input_layernorm.weight"
STRUCTURE = {
    *("files", "tensors_finite", "parameters", "loads"),
    *("tokenizer", "special_tokens", "chat_template", "greedy"),
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return trained_root(tmp_path_factory.mktemp("root"))[0]


pytestmark = pytest.mark.usefixtures("few_prompts")


@pytest.fixture
def model(workspace, tmp_path):
    return copy_model(workspace, tmp_path)


def check(workspace, model):
    return validate(workspace, model=str(model))


def test_a_good_model_is_sound(workspace, model):
    outcome = check(workspace, model)
    assert outcome.of("pass") == STRUCTURE and not outcome.failed
    assert outcome.end.status == "completed" and outcome.end.exit_code == 0
    assert outcome.report.structure == "sound"


def test_a_flipped_bit_is_found_though_it_loads(workspace, model):
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (model / WEIGHTS).write_bytes(data)
    outcome = check(workspace, model)
    assert outcome.failed == {"files"}
    assert "model.safetensors is not as it was saved" in outcome.rows["files"].value
    assert outcome.end.status == "failed" and outcome.end.exit_code == 1
    assert "structurally broken (files as saved)" in outcome.end.reason


def test_a_changed_config_and_a_truncated_file_are_found(workspace, model):
    with open(model / "config.json", "a") as file:
        file.write("\n")
    outcome = check(workspace, model)
    assert outcome.failed == {"files"} and "config.json has" in outcome.rows["files"].value
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])
    outcome = check(workspace, model)
    assert {"files", "tensors_finite", "loads", "parameters"} <= outcome.failed
    assert outcome.of("skip") == {"tokenizer", "special_tokens", "chat_template", "greedy"}
    assert outcome.report.quality == "unknown"


@pytest.mark.parametrize(
    ("name", "failed"),
    [
        ("tokenizer.json", {"files", "loads"}),
        ("config.json", {"files", "loads"}),
        (WEIGHTS, {"files", "loads", "tensors_finite", "parameters"}),
        ("generation_config.json", {"files"}),
    ],
)
def test_a_missing_file_is_named(workspace, model, name, failed):
    (model / name).unlink()
    outcome = check(workspace, model)
    assert f"{name} is missing" in outcome.rows["files"].value + outcome.rows["files"].detail
    assert outcome.failed == failed


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_found(workspace, model, number):
    change_tensors(model, lambda tensors: tensors[NORM].__setitem__(3, number))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"tensors_finite"}
    assert outcome.rows["tensors_finite"].value == f"not finite: {NORM}: 1 of 32 numbers"
    assert outcome.rows["bits_per_byte"].verdict == "skip"


def test_more_layers_in_the_config_than_in_the_files_are_not_drawn_at_random(workspace, model):
    change_json(model / "config.json", lambda c: c.update(num_hidden_layers=3))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"parameters", "loads"}
    assert "drawn at random" in outcome.rows["loads"].value


def test_a_tensor_that_is_missing_or_too_much_or_misshapen_is_named(workspace, model):
    change_tensors(model, lambda tensors: tensors.pop(NORM))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"parameters", "loads"}
    assert f"{NORM} is missing" in outcome.rows["parameters"].detail
    change_tensors(model, lambda t: t.update({NORM: torch.ones(32), "x.weight": torch.ones(3)}))
    reseal(model)
    outcome = check(workspace, model)
    assert "x.weight belongs to no layer" in outcome.rows["parameters"].detail
    assert outcome.failed == {"parameters", "loads"}
    change_tensors(model, lambda t: (t.pop("x.weight"), t.update({NORM: torch.ones(31)})))
    reseal(model)
    outcome = check(workspace, model)
    assert f"{NORM} has shape (31,)" in outcome.rows["parameters"].detail
    assert outcome.failed == {"parameters", "loads"}


def test_another_size_than_the_preset_s_is_found_though_files_and_config_agree(workspace, model):
    def wider(record):
        record["config"]["student"]["num_hidden_layers"] = 5

    change_json(model / RECORD, wider)
    outcome = check(workspace, model)
    assert outcome.failed == {"parameters"}
    assert "preset nano" in outcome.rows["parameters"].bound


def test_a_model_in_shards_is_sound_until_one_is_missing(workspace, model):
    half = {}

    def split(tensors):
        for name in sorted(tensors)[:5]:
            half[name] = tensors.pop(name)

    change_tensors(model, split)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    (model / WEIGHTS).rename(model / first)
    save_file(half, model / second, metadata={"format": "pt"})
    names = {}
    for file in (first, second):
        with safe_open(model / file, "pt") as opened:
            names.update(dict.fromkeys(opened.keys(), file))
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    reseal(model)
    assert check(workspace, model).of("pass") == STRUCTURE
    (model / second).unlink()
    assert "files" in check(workspace, model).failed
    index.write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    outcome = check(workspace, model)
    assert "which is no file of this folder" in outcome.rows["tensors_finite"].value


def test_a_tokenizer_that_transformers_rebuilds_otherwise_is_found(tmp_path):
    """Under Llama's class a SentencePiece-style tokenizer.json is not obeyed."""
    tokenizer = sentencepiece("prepend")
    tokenizer.save_pretrained(tmp_path)
    change_json(
        tmp_path / "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer")
    )
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    row = check_round_trip(rebuilt, tmp_path / "tokenizer.json", 1000)
    assert row.verdict == "fail" and "other ids than tokenizer.json" in row.detail


@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen3", "llama3", "gpt2"])
def test_real_tokenizers_give_every_text_back(name):
    file = REPO / "tmp" / "tokenizers" / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"the real tokenizer {name} is not in tmp/: run `make tokenizers`")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    row = check_round_trip(tokenizer, file, len(tokenizer))
    assert row.verdict == "pass", row.detail


def test_a_tokenizer_without_its_decoder_is_found(workspace, model):
    change_json(model / "tokenizer.json", lambda t: t.update(decoder=None))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"tokenizer"} and "comes back as" in outcome.rows["tokenizer"].detail


def test_tokens_beyond_the_matrix_are_found(workspace, model):
    def renumber(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"] = 5000

    change_json(model / "tokenizer.json", renumber)
    reseal(model)
    outcome = check(workspace, model)
    assert (
        "tokenizer" in outcome.failed and "the matrix has 320" in outcome.rows["tokenizer"].detail
    )


def test_an_end_of_text_that_is_another_elsewhere_is_found(workspace, model):
    change_json(model / "generation_config.json", lambda c: c.update(eos_token_id=7))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"special_tokens"}
    assert outcome.rows["special_tokens"].value == (
        "generation_config.json says eos is 7, the tokenizer 2"
    )


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (None, "there is none"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "not followed by"),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "is not in what"),
        ("{{ messages[", "TemplateSyntaxError"),
    ],
)
def test_a_chat_template_that_loses_something_is_found(workspace, model, template, why):
    (model / "chat_template.jinja").unlink(missing_ok=True)

    def put(config):
        config.pop("chat_template", None)
        if template is not None:
            config["chat_template"] = template

    change_json(model / "tokenizer_config.json", put)
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed >= {"chat_template"}
    row = outcome.rows["chat_template"]
    assert why in row.value + row.detail
    # a template that can't be parsed can't open a conversation either
    assert outcome.failed - {"chat_template"} <= ({"greedy"} if why.startswith("Temp") else set())


def test_generation_that_differs_is_found(workspace, model, monkeypatch):
    whole = quality_writer.Writer._batch
    calls = []

    def fickle(self, *args):
        calls.append(1)
        return [
            quality_writer.Written(answer.text, (*answer.ids, len(calls)), answer.ended)
            for answer in whole(self, *args)
        ]

    monkeypatch.setattr(quality_writer.Writer, "_batch", fickle)
    outcome = check(workspace, model)
    assert outcome.failed == {"greedy"} and outcome.rows["greedy"].value == "two runs differ"


def test_a_record_that_is_missing_warns_and_one_that_is_damaged_fails(workspace, model):
    (model / RECORD).write_text("{")
    outcome = check(workspace, model)
    assert (
        outcome.failed == {"files"} and "gladius.json can't be read" in outcome.rows["files"].value
    )
    (model / RECORD).unlink()
    outcome = check(workspace, model)
    assert not outcome.failed and outcome.of("warn") == {"files"}
    assert outcome.report.structure == "sound"


def test_a_checkpoint_is_validated_as_a_model_of_its_own(workspace):
    outcome = validate(workspace, checkpoint="latest")
    assert outcome.of("pass") == STRUCTURE
    report = outcome.report
    assert (report.model.kind, report.model.step) == ("checkpoint", 3)
    assert not (workspace.checkpoints_dir / ".validate-tmp").exists()
    with pytest.raises(MissingError, match="available steps"):
        validate(workspace, checkpoint="999")
    with pytest.raises(UsageError, match="latest, best, or a step"):
        validate(workspace, checkpoint="newest")


def test_without_a_model_the_newest_checkpoint_is_taken_and_said(workspace, tmp_path):
    aside = workspace.model_dir.rename(tmp_path / "aside")
    try:
        outcome = validate(workspace)
    finally:
        aside.rename(workspace.model_dir)
    assert outcome.report.model.kind == "checkpoint"
    lines = [e.text for e in outcome.link.events if hasattr(e, "text")]
    assert any("no finished model" in line for line in lines)


def test_what_is_no_model_is_said_in_a_line(workspace, tmp_path):
    with pytest.raises(MissingError, match="holds no model"):
        validate(workspace, model=str(tmp_path))
    with pytest.raises(MissingError, match=r"there is no file .*gladius_train export"):
        validate(workspace, gguf=str(tmp_path / "none.gguf"))
    with pytest.raises(UsageError, match="leave out --model"):
        validate(workspace, model=str(tmp_path), checkpoint="best")
