"""An expert is tried in a child with limits: what is wrong with it is one line, before a run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import psutil
import pytest

from engine.errors import GladiusError
from engine.events import JobRequest
from engine.experts import folder as folders
from engine.experts.fetch import DownloadRequest, main
from engine.experts.registry import ExpertSpec
from engine.experts.trial import run_trial
from engine.run.job import JobContext, JobStopped
from tests.support.downloading import RecordingLink, safetensors
from tests.support.tiny_expert import make_expert
from tests.support.tiny_gguf import reference_tokenizer, tiny_model, write_gguf

FREE = ExpertSpec(name="mine", title="Mine", source="folder", repo="")


@pytest.fixture
def expert(tmp_path: Path) -> Path:
    return make_expert(tmp_path / "mine")


def edit(path: Path, **fields) -> None:
    """Change or (None) remove top-level fields of a JSON file."""
    content = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def refusal(expert: Path, run_model: bool = False) -> str:
    """The line with which the expert is refused; nothing of the child is left."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(GladiusError) as raised:
        run_trial(FREE, expert, run_model=run_model)
    left = {c.pid for c in psutil.Process().children(recursive=True) if c.status() != "zombie"}
    servers = 2  # the server that starts the children, and the resource tracker
    assert len(left - before) <= servers
    text = str(raised.value)
    assert "\n" not in text and "Traceback" not in text and len(text) < 600
    return text


def test_a_sound_expert_passes_without_a_note(expert):
    doings = []
    assert run_trial(FREE, expert, run_model=True, heartbeat=doings.append) == []
    assert doings and all(doing.startswith("trying mine") for doing in doings)


TEMPLATES = {
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
        "{% endfor %}{% endfor %}{% endfor %}{{ messages[0]['content'] }}",
        "its chat template takes too long",
    ),
    "memory": ("{{ 'a' * 10**10 }}", "its chat template needs too much memory"),
    "memory in a loop": (
        "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "its chat template needs too much memory",
    ),
    "a huge number": ("{{ 10**10**10 }}", "its chat template "),
    "an undefined name": ("{{ nothing.at_all }}", "its chat template fails (UndefinedError"),
    "a syntax error": ("{% for m in messages %}", "its chat template fails (TemplateSyntaxError"),
    "it raises": ("{{ raise_exception('no') }}", "its chat template fails (no)"),
    "out of the sandbox": (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "(SecurityError",
    ),
    "nothing is rendered": ("hello<|im_end|>", "its chat template "),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_hangs_eats_memory_or_raises_is_one_line(expert, name):
    template, message = TEMPLATES[name]
    (expert / "chat_template.jinja").write_text(template)
    began = time.monotonic()
    assert message in refusal(expert)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "own"}, "has no language model of type 'own'"),
        ({"num_hidden_layers": "many"}, "its config"),
        ({"hidden_act": "nothing"}, "can't be loaded"),
        ({"num_attention_heads": 0}, "its config"),
        ({"num_hidden_layers": 3}, "have no tensor model.layers.2"),
    ],
)
def test_a_config_that_raises_is_one_line(expert, fields, message):
    edit(expert / "config.json", **fields)
    assert message in refusal(expert, run_model=True)


@pytest.mark.slow
def test_millions_of_layers_are_stopped_by_the_limits(expert):
    """Without the check against the weights (`folder.find_problem`), which finds them at once."""
    edit(expert / "config.json", num_hidden_layers=3_000_000)
    assert "num_hidden_layers 3,000,000" in (folders.find_problem(expert) or "")
    text = refusal(expert, run_model=True)
    assert "its model takes too long" in text or "its model needs too much memory" in text


def test_what_a_job_stops_is_killed_at_once(expert):
    (expert / "chat_template.jinja").write_text(TEMPLATES["loops"][0])

    def stop(doing: str) -> None:
        if "template" in doing:
            raise JobStopped

    began = time.monotonic()
    with pytest.raises(JobStopped):
        run_trial(FREE, expert, run_model=True, heartbeat=stop)
    assert time.monotonic() - began < 30


def test_a_gguf_file_is_tried_too(tmp_path: Path):
    path = tmp_path / "x.gguf"
    tokenizer = reference_tokenizer()
    write_gguf(path, tiny_model(tokenizer.get_vocab_size()), tokenizer)
    assert run_trial(FREE, path, run_model=True) == []
    path.write_bytes(path.read_bytes()[:-2000])
    assert "is not a readable GGUF file" in refusal(path)


# What `models add` reports


def notes(expert: Path) -> str:
    return " / ".join(run_trial(FREE, expert, run_model=True))


def test_an_end_that_is_not_the_templates_is_reported(expert):
    edit(expert / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(expert / "generation_config.json", eos_token_id=0)
    assert "its chat template ends answers with '<|im_end|>', its files name '<|endoftext|>'" in (
        notes(expert)
    )


def test_a_missing_template_and_a_foreign_end_token_are_reported(expert):
    (expert / "chat_template.jinja").unlink()
    edit(expert / "tokenizer_config.json", eos_token="</foreign>")
    found = notes(expert)
    assert "it has no chat template" in found
    assert "its end token '</foreign>' is not in its tokenizer.json" in found


def test_a_template_without_an_end_is_reported(expert):
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    (expert / "chat_template.jinja").write_text(template)
    assert "its chat template writes no end token after an answer" in notes(expert)


# Found without a child: quantised weights, adapters, counts that the weights can't have


QUANTISED = {
    "bnb": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "compressed": {"quant_method": "compressed-tensors"},
    "without a name": {"load_in_8bit": True},
}


@pytest.mark.parametrize("name", QUANTISED)
@pytest.mark.parametrize("nested", [False, True])
def test_a_quantised_model_is_refused_with_the_remedy(expert, name, nested):
    value = {"quantization_config": QUANTISED[name]}
    edit(expert / "config.json", **({"text_config": value} if nested else value))
    problem = folders.find_problem(expert)
    assert problem is not None and "its weights are quantised" in problem
    assert "the repository with the original weights" in problem


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.qweight", "a.weight.absmax"])
def test_quantised_tensors_are_found_without_a_config(expert, name):
    (expert / "model.safetensors").write_bytes(safetensors(100, name=name))
    assert "its weights are quantised" in (folders.find_problem(expert) or "")


def test_an_adapter_is_refused_with_the_remedy(expert):
    (expert / "config.json").unlink()
    (expert / "model.safetensors").rename(expert / "adapter_model.safetensors")
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    (expert / "adapter_config.json").write_text(json.dumps(adapter))
    assert folders.find_problem(expert) == (
        "it is an adapter of org/base, not a model; merge it into its base model first"
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_hidden_layers": 3_000_000}, "has num_hidden_layers 3,000,000"),
        ({"num_hidden_layers": 1000}, "has 1,000 layers, and the weights have"),
        ({"vocab_size": 10**12}, "has vocab_size 1,000,000,000,000"),
        ({"hidden_size": 10**9}, "has hidden_size 1,000,000,000"),
        ({"num_experts": 10**9}, "has num_experts 1,000,000,000"),
        ({"text_config": {"num_hidden_layers": 10**7}}, "has num_hidden_layers 10,000,000"),
    ],
)
def test_counts_that_the_weights_cannot_have_are_found(expert, fields, message):
    edit(expert / "config.json", **fields)
    assert message in (folders.find_problem(expert) or "")


def test_a_sound_folder_has_no_problem(expert):
    assert folders.find_problem(expert) is None


# Through the job, as `models add` and `download` start it


def check(ws, repo: Path) -> RecordingLink:
    link = RecordingLink()
    spec = ExpertSpec(name="mine", title="Mine", source="folder", repo=str(repo))
    config = DownloadRequest(action="check", candidate=spec)
    request = JobRequest(
        job="download", root=str(ws.root), run_id="r", attempt=1, config=_encoded(config)
    )
    main(JobContext(link), request)
    return link


def _encoded(config: DownloadRequest) -> bytes:
    import msgspec

    return msgspec.json.encode(config)


def test_models_add_refuses_a_template_that_eats_memory_and_reports_a_foreign_end(ws, expert):
    edit(expert / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(expert / "generation_config.json", eos_token_id=0)
    link = check(ws, expert)
    assert link.ended.status == "completed"
    assert any(line.startswith("mine: its chat template ends answers with") for line in link.lines)
    (expert / "chat_template.jinja").write_text(TEMPLATES["memory"][0])
    link = check(ws, expert)
    assert link.ended.status == "failed"
    assert link.ended.reason.startswith("mine: its chat template needs too much memory")


def test_a_downloaded_expert_is_tried_before_it_is_installed(hub, ws, download, expert):
    files = {path.name: path.read_bytes() for path in expert.iterdir()}
    files["chat_template.jinja"] = TEMPLATES["memory"][0].encode()
    hub.add("me/x", files)
    link = download()
    assert link.ended.status == "failed"
    assert "x: its chat template needs too much memory" in link.ended.reason
    assert not (ws.experts_dir / "x").exists()
    hub.add("me/x", {path.name: path.read_bytes() for path in expert.iterdir()}, commit="d" * 40)
    assert download().ended.status == "completed"


def test_a_quantised_repository_and_an_adapter_are_refused_before_the_download(hub, ws, download):
    from tests.support.downloading import CONFIG, model_files

    hub.add("me/x", {**model_files(), "quantize_config.json": b"{}"})
    assert "x: me/x: its weights are quantised" in download().ended.reason
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors(64)}
    hub.add("me/x", adapter)
    assert "it is an adapter, not a model; merge it" in download().ended.reason
    config = json.loads(CONFIG) | {"quantization_config": {"quant_method": "gptq"}}
    hub.add("me/x", {**model_files(), "config.json": json.dumps(config).encode()})
    link = RecordingLink()
    spec = ExpertSpec(name="x", title="X", source="hub", repo="me/x")
    request = JobRequest(
        job="download",
        root=str(ws.root),
        run_id="r",
        attempt=1,
        config=_encoded(DownloadRequest(action="check", candidate=spec)),
    )
    main(JobContext(link), request)
    assert "x: its weights are quantised (gptq)" in link.ended.reason


def test_the_server_of_the_children_leaves_the_environment_alone(expert):
    before = dict(os.environ)
    run_trial(FREE, expert, run_model=False)
    assert dict(os.environ) == before
