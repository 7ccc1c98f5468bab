"""An expert is never given more than its model and its tokenizer can take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from engine.distill.align.blocks import BlockEncoder
from engine.distill.teacher.loading import load_teacher, load_tokenizer
from engine.distill.teacher.model_config import context_limit, context_of, read_config
from engine.distill.teacher.scoring import teacher_encoder, teacher_forward
from engine.errors import GladiusError
from engine.text.examples import Example, Message
from tests.support.tiny_expert import SPEC, make_expert, make_tokenizer
from tests.support.tiny_models import tiny_model

FREE = SPEC.__class__(name="tiny", title="Tiny", source="folder", repo="")
"""The expert without registered end tokens."""
DOCUMENT = Example(text=" ".join(f"the tiny text {n}" for n in range(300)))


def edit(path: Path, **fields) -> None:
    """Change or (None) remove top-level fields of a JSON file."""
    content = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


def save_model(folder: Path, model) -> Path:
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["gpt2", "llama", "opt"])
def test_blocks_are_cut_to_the_experts_context_and_scored(tmp_path, name):
    """GPT-2 has no positions beyond its context; a rotary model was not trained on them."""
    rows = len(make_tokenizer())
    folder = save_model(tmp_path, tiny_model(name, vocab_size=rows, max_position_embeddings=100))
    teacher = load_teacher(folder, FREE, dtype=torch.float32)
    assert context_of(folder) == teacher.context == 100
    encoder = teacher_encoder(teacher)
    encoded = BlockEncoder(encoder, encoder, 512, max_teacher_tokens=100).encode(DOCUMENT)
    blocks = encoded.blocks
    assert len(blocks) > 3 and not encoded.problem
    lengths = [len(block.teacher_ids) for block in blocks]
    assert max(lengths) <= 100 < sum(lengths)
    assert max(lengths) > 64, "a batch is padded to 100 here, not to 128"
    output = teacher_forward(teacher, blocks)
    assert bool(torch.isfinite(output.logits(0, 8)).all())


@pytest.mark.parametrize(
    ("name", "fields", "limit"),
    [
        ("gpt2", {"n_positions": 77}, 77),
        ("gpt_neox", {"max_position_embeddings": 77}, 77),
        ("mpt", {"max_seq_len": 77}, 77),
        ("gemma3", {"text_config": {"max_position_embeddings": 77}}, 77),
        ("roberta", {"max_position_embeddings": 79}, 77),
        ("mamba", {}, None),
    ],
)
def test_the_context_is_found_in_every_kind_of_config(name, fields, limit):
    from transformers import CONFIG_MAPPING

    assert context_limit(CONFIG_MAPPING[name](**fields)) == limit


def test_an_added_token_without_a_row_is_never_used(tmp_path):
    make_expert(tmp_path)
    rows = len(make_tokenizer())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    extra = dict(content["added_tokens"][0], id=rows, content="<pad>", special=True)
    content["added_tokens"].append(extra)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    edit(tmp_path / "tokenizer_config.json", pad_token="<pad>")
    teacher = load_teacher(tmp_path, SPEC, dtype=torch.float32)
    encoder = teacher_encoder(teacher)
    assert encoder.vocabulary.size == teacher.vocab_size == rows
    assert "<pad>" not in teacher.tokenizer.get_vocab() and teacher.tokenizer.pad_token is None
    block = BlockEncoder(encoder, encoder, 512).encode(Example(text="a <pad> b")).blocks[0]
    assert int(block.teacher_ids.max()) < rows
    output = teacher_forward(teacher, [block])
    assert output.logits(0, 2).shape == (rows, 2)


def test_ordinary_tokens_without_rows_are_refused(tmp_path):
    make_expert(tmp_path)
    edit(tmp_path / "config.json", vocab_size=250)
    with pytest.raises(GladiusError, match=r"tokenizer has \d+ tokens and its matrix 250 rows"):
        load_tokenizer(tmp_path, SPEC)


@pytest.mark.parametrize("of", ["truncation", "padding"])
def test_truncation_and_padding_of_a_tokenizer_are_switched_off(tmp_path, of):
    make_expert(tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    if of == "truncation":
        backend.enable_truncation(8)
    else:
        backend.enable_padding(length=4000, pad_id=2, pad_token="<|im_end|>")
    backend.save(str(tmp_path / "tokenizer.json"))
    plain = make_tokenizer()
    tokenizer = load_tokenizer(tmp_path, SPEC)
    text = "user and assistant write the text of the tiny test " * 4
    assert tokenizer.encode(text) == plain.encode(text)
    assert tokenizer.backend_tokenizer.encode(text).ids == plain.encode(text)


@pytest.mark.parametrize("place", ["chat_template.json", "chat_template.jinja", "tokenizer_config"])
def test_a_chat_template_is_read_wherever_it_is(tmp_path, place):
    make_expert(tmp_path)
    template = make_tokenizer().chat_template
    (tmp_path / "chat_template.jinja").unlink()
    if place == "tokenizer_config":
        edit(tmp_path / "tokenizer_config.json", chat_template=template)
    else:
        text = json.dumps({"chat_template": template}) if place.endswith("json") else template
        (tmp_path / place).write_text(text)
    assert load_tokenizer(tmp_path, SPEC).chat_template == template


# The end of a turn


def chat_model(folder: Path, eos: str | None, template: str | None = None) -> Path:
    """An expert whose files name `eos` as the end (None: no end)."""
    make_expert(folder)
    edit(folder / "tokenizer_config.json", eos_token=eos, pad_token=None, bos_token=None)
    ids = make_tokenizer().get_vocab()
    edit(folder / "config.json", eos_token_id=ids.get(eos or ""), bos_token_id=None)
    (folder / "generation_config.json").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def ends_of(folder: Path) -> list[str]:
    teacher = load_teacher(folder, FREE, dtype=torch.float32)
    return teacher.tokenizer.convert_ids_to_tokens(list(teacher.end_ids))


def test_the_end_that_the_template_writes_is_found_where_the_files_name_another(tmp_path):
    folder = chat_model(tmp_path, "<|endoftext|>")
    assert ends_of(folder) == ["<|im_end|>", "<|endoftext|>"]
    teacher = load_teacher(folder, FREE, dtype=torch.float32)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chat = Example(messages=tuple(Message(role, content) for role, content in turns))
    encoder = teacher_encoder(teacher)
    block = BlockEncoder(encoder, encoder, 512).encode(chat).blocks[0]
    text = teacher.tokenizer.decode(block.teacher_ids)
    assert "<|endoftext|>" not in text and text.endswith("d<|im_end|>")


def test_an_end_that_only_the_template_has_is_enough(tmp_path):
    assert ends_of(chat_model(tmp_path, None)) == ["<|im_end|>"]


def test_an_expert_without_any_end_is_refused_with_the_remedy(tmp_path):
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    with pytest.raises(GladiusError, match=r"no end-of-turn token: .*set end_tokens in \[experts"):
        ends_of(chat_model(tmp_path, None, template))


def test_a_template_that_writes_text_after_an_answer_leaves_the_files_end(tmp_path):
    template = "{% for m in messages %}{{ m['content'] }} END\n{% endfor %}"
    assert ends_of(chat_model(tmp_path, "<|endoftext|>", template)) == ["<|endoftext|>"]


# What a config may not decide


def test_the_attention_implementation_and_code_of_a_config_are_ignored(tmp_path):
    make_expert(tmp_path)
    plain = load_teacher(tmp_path, SPEC, dtype=torch.float32)
    edit(
        tmp_path / "config.json",
        attn_implementation="org/evil-kernel",
        _attn_implementation="flash_attention_2",
        _attn_implementation_internal="org/evil-kernel",
        experts_implementation="org/evil-kernel",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
    )
    teacher = load_teacher(tmp_path, SPEC, dtype=torch.float32)
    assert teacher.model.config._attn_implementation == plain.model.config._attn_implementation
    assert not hasattr(read_config(tmp_path), "auto_map")


def test_weights_that_are_missing_are_never_random(tmp_path):
    make_expert(tmp_path)
    edit(tmp_path / "config.json", num_hidden_layers=3)
    with pytest.raises(GladiusError, match=r"have no tensor model\.layers\.2\..*are missing"):
        load_teacher(tmp_path, SPEC, dtype=torch.float32)
