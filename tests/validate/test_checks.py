"""Each structural check passes on an intact model and fails on one with the matching damage."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engine.checkpoint.model_record import RECORD
from engine.errors import MissingError, UsageError
from engine.events import LogLine
from engine.validate import checks, quality
from engine.validate.checks.table import STRUCTURAL_CHECKS
from engine.validate.checks.tokenizer import compare_tokenizer
from engine.validate.generation import AnswerGenerator, GeneratedAnswer
from engine.validate.quality.table import QUALITY_CHECKS
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
    *("tokenizer", "special_tokens", "chat_template", "chat_tools", "greedy"),
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


def test_an_intact_model_is_sound(workspace, model):
    outcome = check(workspace, model)
    assert outcome.of("pass") == STRUCTURE and not outcome.failed
    assert outcome.end.status == "completed" and outcome.end.exit_code == 0
    assert outcome.report.structure == "sound"


def test_a_flipped_bit_is_found_although_the_model_loads(workspace, model):
    data = bytearray((model / WEIGHTS).read_bytes())
    data[-5] ^= 1
    (model / WEIGHTS).write_bytes(data)
    outcome = check(workspace, model)
    assert outcome.failed == {"files"}
    assert "model.safetensors has changed since it was saved" in outcome.rows["files"].value
    assert outcome.end.status == "failed" and outcome.end.exit_code == 1
    assert "structurally broken (file integrity)" in outcome.end.reason


def test_a_changed_config_and_a_truncated_file_are_found(workspace, model):
    with open(model / "config.json", "a") as file:
        file.write("\n")
    outcome = check(workspace, model)
    assert outcome.failed == {"files"} and "config.json has" in outcome.rows["files"].value
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])
    outcome = check(workspace, model)
    assert {"files", "tensors_finite", "loads", "parameters"} <= outcome.failed
    skipped = {"tokenizer", "special_tokens", "chat_template", "chat_tools", "greedy"}
    assert outcome.of("skip") == skipped
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
def test_a_weight_that_is_not_finite_is_found(workspace, model, number):
    change_tensors(model, lambda tensors: tensors[NORM].__setitem__(3, number))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"tensors_finite"}
    assert outcome.rows["tensors_finite"].value == f"not finite: {NORM}: 1 of 32 values"
    assert outcome.rows["bits_per_byte"].verdict == "skip"


def test_layers_missing_from_the_files_are_not_initialized_at_random(workspace, model):
    change_json(model / "config.json", lambda c: c.update(num_hidden_layers=3))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"parameters", "loads"}
    assert "initialized at random" in outcome.rows["loads"].value


def test_a_missing_unexpected_or_misshapen_tensor_is_named(workspace, model):
    change_tensors(model, lambda tensors: tensors.pop(NORM))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"parameters", "loads"}
    assert f"{NORM} is missing" in outcome.rows["parameters"].detail
    change_tensors(model, lambda t: t.update({NORM: torch.ones(32), "x.weight": torch.ones(3)}))
    reseal(model)
    outcome = check(workspace, model)
    assert "x.weight is not a parameter" in outcome.rows["parameters"].detail
    assert outcome.failed == {"parameters", "loads"}
    change_tensors(model, lambda t: (t.pop("x.weight"), t.update({NORM: torch.ones(31)})))
    reseal(model)
    outcome = check(workspace, model)
    assert f"{NORM} has shape (31,)" in outcome.rows["parameters"].detail
    assert outcome.failed == {"parameters", "loads"}


def test_a_size_that_differs_from_the_preset_is_found(workspace, model):
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
    assert "which is not a file of this folder" in outcome.rows["tensors_finite"].value


def test_a_tokenizer_that_transformers_rebuilds_differently_is_found(tmp_path):
    """LlamaTokenizer does not follow a SentencePiece-style tokenizer.json."""
    tokenizer = sentencepiece("prepend")
    tokenizer.save_pretrained(tmp_path)
    change_json(
        tmp_path / "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer")
    )
    rebuilt = AutoTokenizer.from_pretrained(tmp_path)
    row = compare_tokenizer(rebuilt, tmp_path / "tokenizer.json", 1000)
    assert row.verdict == "fail" and "other ids than with tokenizer.json" in row.detail


@pytest.mark.parametrize("name", ["llama2", "mistral", "qwen3", "llama3", "gpt2"])
def test_real_tokenizers_decode_every_text_unchanged(name):
    file = REPO / "tmp" / "tokenizers" / name / "tokenizer.json"
    if not file.is_file():
        pytest.skip(f"the real tokenizer {name} is not in tmp/: run `make tokenizers`")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
    row = compare_tokenizer(tokenizer, file, len(tokenizer))
    assert row.verdict == "pass", row.detail


def test_a_tokenizer_without_its_decoder_is_found(workspace, model):
    change_json(model / "tokenizer.json", lambda t: t.update(decoder=None))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"tokenizer"} and "is decoded as" in outcome.rows["tokenizer"].detail


def test_token_ids_beyond_the_embedding_are_found(workspace, model):
    def renumber(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"] = 5000

    change_json(model / "tokenizer.json", renumber)
    reseal(model)
    outcome = check(workspace, model)
    assert "tokenizer" in outcome.failed
    assert "the embedding has 320" in outcome.rows["tokenizer"].detail


def test_configs_that_disagree_about_the_end_token_are_found(workspace, model):
    change_json(model / "generation_config.json", lambda c: c.update(eos_token_id=7))
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"special_tokens"}
    assert outcome.rows["special_tokens"].value == (
        "eos is 7 in generation_config.json, but 2 in the tokenizer"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "there is none"),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "not followed by"),
        (
            "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
            "missing from the rendered",
        ),
        ("{{ messages[", "TemplateSyntaxError"),
    ],
)
def test_a_chat_template_that_loses_text_is_found(workspace, model, template, message):
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
    assert message in row.value + row.detail
    # without a template that can be parsed nothing can be generated either
    assert outcome.failed - {"chat_template"} <= (
        {"greedy"} if message.startswith("Temp") else set()
    )


def test_a_chat_template_that_loses_a_tools_result_is_found(workspace, model):
    path = model / "chat_template.jinja"
    template = path.read_text()
    broken = template.replace("<tool_response>\\n' + m.content", "<tool_response>\\n'")
    assert broken != template
    path.write_text(broken)
    reseal(model)
    outcome = check(workspace, model)
    assert outcome.failed == {"chat_tools"}
    assert "a result is missing" in outcome.rows["chat_tools"].value
    path.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    reseal(model)
    outcome = check(workspace, model)
    assert "chat_tools" in outcome.of("skip") and not outcome.failed


def test_generation_that_is_not_deterministic_is_found(workspace, model, monkeypatch):
    original = AnswerGenerator.answer
    calls = []

    def changing(self, *args):
        calls.append(1)
        return [
            GeneratedAnswer(answer.text, (*answer.ids, len(calls)), answer.complete)
            for answer in original(self, *args)
        ]

    monkeypatch.setattr(AnswerGenerator, "answer", changing)
    outcome = check(workspace, model)
    assert outcome.failed == {"greedy"} and outcome.rows["greedy"].value == "two runs differ"


def test_a_missing_record_warns_and_a_damaged_one_fails(workspace, model):
    (model / RECORD).write_text("{")
    outcome = check(workspace, model)
    assert (
        outcome.failed == {"files"} and "gladius.json cannot be read" in outcome.rows["files"].value
    )
    (model / RECORD).unlink()
    outcome = check(workspace, model)
    assert not outcome.failed and outcome.of("warn") == {"files"}
    assert outcome.report.structure == "sound"


def test_a_checkpoint_can_be_validated(workspace):
    outcome = validate(workspace, checkpoint="latest")
    assert outcome.of("pass") == STRUCTURE
    report = outcome.report
    assert (report.model.kind, report.model.step) == ("checkpoint", 3)
    assert not (workspace.checkpoints_dir / ".validate-tmp").exists()
    with pytest.raises(MissingError, match="available steps"):
        validate(workspace, checkpoint="999")
    with pytest.raises(UsageError, match="latest, best, or a step"):
        validate(workspace, checkpoint="newest")


def test_without_a_model_the_newest_checkpoint_is_validated(workspace, tmp_path):
    aside = workspace.model_dir.rename(tmp_path / "aside")
    try:
        outcome = validate(workspace)
    finally:
        aside.rename(workspace.model_dir)
    assert outcome.report.model.kind == "checkpoint"
    lines = [line.text for line in outcome.link.of(LogLine)]
    assert any("no finished model" in line for line in lines)


def test_a_missing_model_is_a_one_line_error(workspace, tmp_path):
    with pytest.raises(MissingError, match="contains no model"):
        validate(workspace, model=str(tmp_path))
    with pytest.raises(MissingError, match=r"there is no file .*gladius_train export"):
        validate(workspace, gguf=str(tmp_path / "none.gguf"))
    with pytest.raises(UsageError, match="cannot be combined with --model"):
        validate(workspace, model=str(tmp_path), checkpoint="best")


@pytest.mark.parametrize(
    ("package", "table"), [(checks, STRUCTURAL_CHECKS), (quality, QUALITY_CHECKS)]
)
def test_every_check_of_a_package_is_in_its_table(package, table):
    modules = [
        importlib.import_module(f"{package.__name__}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
    ]
    defined = {module.CHECK.name for module in modules if hasattr(module, "CHECK")}
    assert defined == {check.name for check in table} and len(defined) == len(table)
