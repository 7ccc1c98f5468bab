"""Reading a GGUF file: config, weights and tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.distill.teacher.loading import load_teacher
from engine.errors import GladiusError
from engine.experts.gguf_source import GGUFExpert, merges_from_scores
from engine.experts.registry import ExpertSpec
from engine.text.examples import Message
from tests.support.tiny_gguf import TEMPLATE, reference_tokenizer, tiny_model, write_gguf

NASTY = [
    "in 2024 1234567 3.14",
    "  two  spaces\tand\r\n\r\nlines ",
    "naïve café e\u0301 🙂 漢字 \u00a0\u200b",
    "<|im_start|>user\nhi<|im_end|>",
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokenizer = reference_tokenizer()
    write_gguf(path, tiny_model(tokenizer.get_vocab_size()), tokenizer)
    return path


def test_the_tokenizer_encodes_like_the_original(gguf: Path) -> None:
    tokenizer = GGUFExpert(gguf).tokenizer()
    reference = reference_tokenizer()
    for text in NASTY:
        assert tokenizer.encode(text, add_special_tokens=False) == reference.encode(text).ids
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_digits_stay_single_tokens(gguf: Path) -> None:
    tokenizer = GGUFExpert(gguf).tokenizer()
    assert len(tokenizer.encode("2024", add_special_tokens=False)) == 4


def test_weights_and_config_reproduce_the_logits_of_the_original(gguf: Path) -> None:
    expert = GGUFExpert(gguf)
    original = tiny_model(expert.config().vocab_size)
    weights = dict(expert.tensors())
    for name, tensor in original.state_dict().items():
        if name != "lm_head.weight":
            assert torch.equal(weights[name], tensor), name
    spec = ExpertSpec(name="tiny", title="Tiny", source="gguf", repo=str(gguf))
    teacher = load_teacher(gguf, spec, "cpu", torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = original(ids).logits
        hidden = teacher.hidden_states(ids, torch.ones_like(ids))
    assert torch.allclose(hidden @ teacher.head[0].T, expected, atol=1e-5)
    answers = teacher.generate(
        [[Message("user", "in 2024")]],
        max_new_tokens=4, temperature=0.0, top_p=1.0, seed=0, batch_size=1,
    )  # fmt: skip
    assert len(answers) == 1


def test_a_file_that_is_not_gguf_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(GladiusError, match="not a readable GGUF file"):
        GGUFExpert(path)


def test_a_truncated_gguf_is_one_clear_error(gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(gguf.read_bytes()[:-4000])
    with pytest.raises(GladiusError):
        dict(GGUFExpert(path).tensors())


def test_merges_are_in_the_order_of_their_scores() -> None:
    tokens = ["a", "b", "c", "ab", "bc", "abc"]
    scores = [0.0, 0.0, 0.0, -1.0, -2.0, -3.0]
    assert merges_from_scores(tokens, scores) == [
        ("a", "b"),
        ("b", "c"),
        ("ab", "c"),
        ("a", "bc"),
    ]
