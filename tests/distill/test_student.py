"""The student: initialised from its seed, of the computed size, loaded by plain transformers."""

from __future__ import annotations

import msgspec
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engine.chat_tools import has_tools, with_tools
from engine.config import StudentConfig
from engine.distill.student import (
    _CHATML,
    build_student,
    load_tokenizer,
    save_student,
    save_tokenizer,
    student_encoder,
    train_tokenizer,
)
from engine.errors import MissingError, UsageError
from engine.sizing import parameter_count
from tests.support.toys import PROSE, UNUSUAL_TEXTS, byte_level

TINY = StudentConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=320,
    max_position_embeddings=128,
)


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level()


def test_the_same_seed_gives_the_same_student(tokenizer):
    torch.manual_seed(1)
    one = build_student(TINY, tokenizer, 7)
    torch.rand(100)
    two = build_student(TINY, tokenizer, 7)
    other = build_student(TINY, tokenizer, 8)
    for (name, a), b, c in zip(
        one.named_parameters(), two.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(a, b)
        assert name.endswith("norm.weight") or not torch.equal(a, c)


def test_matrices_are_normal_and_residual_projections_are_scaled_down(tokenizer):
    config = msgspec.structs.replace(TINY, hidden_size=128, intermediate_size=256)
    model = build_student(config, tokenizer, 0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == 1).all()
            continue
        residual = name.endswith(("o_proj.weight", "down_proj.weight"))
        expected = config.initializer_range / (2 if residual else 1)  # sqrt(2 x 2 layers)
        assert float(parameter.detach().std()) == pytest.approx(expected, rel=0.03)
    assert model.training and model.dtype == torch.float32


def test_a_new_student_computes_the_logits_of_a_plain_transformers_model(tokenizer):
    """The rotary tables are initialised, not uninitialised memory."""
    model = build_student(TINY, tokenizer, 0).eval()
    reference = LlamaForCausalLM(model.config).eval()
    reference.load_state_dict(model.state_dict())
    ids = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 3},
        {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
         "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000},
    ],
)  # fmt: skip
def test_a_student_has_as_many_parameters_as_computed(shape, tied):
    config = msgspec.structs.replace(TINY, tie_word_embeddings=tied, **shape)
    names = set(LlamaConfig().to_dict()) & set(config.__struct_fields__)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**{name: getattr(config, name) for name in names}))
    count = sum(p.numel() for p in model.parameters())
    assert count == parameter_count(config).total
    if config.hidden_size == 2048:
        assert count == (1_147_766_784 if tied else 1_213_302_784)


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_student_is_loaded_by_plain_transformers(tokenizer, tmp_path, tied):
    config = msgspec.structs.replace(TINY, tie_word_embeddings=tied)
    model = build_student(config, tokenizer, 0)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "user.gguf").write_text("kept")
    (folder / "model.safetensors").write_text("previous")
    save_student(model, tokenizer, folder, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16 and loaded.config.use_cache
    for (name, a), b in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16), b), name
    assert sum(p.numel() for p in loaded.parameters()) == parameter_count(config).total
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name, _ in model.named_parameters()}
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1, "others may read it all"
    assert (folder / "user.gguf").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert model.config.use_cache is False and model.dtype == torch.float32

    loaded_tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in UNUSUAL_TEXTS:
        assert loaded_tokenizer(text).input_ids == tokenizer(text).input_ids
    chat = [{"role": "user", "content": "hello"}]
    for one in (True, False):
        assert loaded_tokenizer.apply_chat_template(
            chat, add_generation_prompt=one, tokenize=False
        ) == tokenizer.apply_chat_template(chat, add_generation_prompt=one, tokenize=False)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id


def test_a_template_without_tools_gets_them_when_the_model_is_saved(tmp_path):
    """As of a run of an earlier version, or of a tokenizer of the user's."""
    tokenizer = train_tokenizer([PROSE], 280)
    assert has_tools(tokenizer.chat_template)
    tokenizer.chat_template = before = _CHATML
    save_tokenizer(tokenizer, tmp_path)
    assert tokenizer.chat_template == before, "the run goes on with its own"
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.chat_template == with_tools(before)
    chat = [{"role": "user", "content": "hello"}]
    assert saved.apply_chat_template(chat, tokenize=False) == tokenizer.apply_chat_template(
        chat, tokenize=False
    )


def test_a_trained_tokenizer_has_the_requested_size_and_decodes_every_text():
    small, padded = train_tokenizer([PROSE], 280), train_tokenizer(["a b"], 400)
    assert len(small) == 280 and len(padded) == 400
    for text in UNUSUAL_TEXTS:
        ids = small(text, add_special_tokens=False).input_ids
        assert small.decode(ids) == text
    with pytest.raises(UsageError, match=r"student.vocab_size is 200.*at least 259"):
        train_tokenizer([PROSE], 200)


def test_a_loaded_tokenizer_encodes_as_its_file_and_has_bos_and_eos(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path, 320)
    file = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in UNUSUAL_TEXTS:
        assert loaded(text, add_special_tokens=False).input_ids == (
            file.encode(text, add_special_tokens=False).ids
        )
    encoder = student_encoder(loaded, 320)
    assert list(encoder.end_ids) == [tokenizer.eos_token_id]
    by_file = load_tokenizer(tmp_path / "tokenizer.json", 320)
    assert by_file.eos_token == tokenizer.eos_token


def test_a_tokenizer_that_does_not_fit_is_refused_with_the_remedy(tokenizer, tmp_path):
    with pytest.raises(MissingError, match=r"no tokenizer.json"):
        load_tokenizer(tmp_path, 320)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"set student.vocab_size=320 or more"):
        load_tokenizer(tmp_path, 300)
    bare = tmp_path / "bare"
    bare.mkdir()
    Tokenizer.from_str(tokenizer.backend_tokenizer.to_str().replace("<|endoftext|>", "<|x|>")).save(
        str(bare / "tokenizer.json")
    )
    with pytest.raises(UsageError, match=r"has no end-of-text token"):
        load_tokenizer(bare, 320)
