"""Tokenizers for the tests of distill: small ones trained here, and real ones where present."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.chat import ChatRenderer
from engine.distill.align.blocks import ChatEncoder
from tests.support.paths import REPO
from tests.support.threads import one_thread  # noqa: F401
from tests.support.toys import byte_level, encoder_of, sentencepiece

REAL_TEACHERS = ("qwen3", "llama3", "gpt2", "smollm2")
_ENDS = {
    "qwen3": ("<|im_end|>", "<|endoftext|>"),
    "llama3": ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"),
    "gpt2": ("<|endoftext|>",),
    "smollm2": ("<|im_end|>", "<|endoftext|>"),
    "llama2": ("</s>",),
    "mistral": ("</s>",),
}


@pytest.fixture(scope="session")
def real_encoder() -> Callable[[str], ChatEncoder]:
    """An encoder with a real tokenizer; the test is skipped where it was not downloaded."""
    encoders: dict[str, ChatEncoder] = {}

    def get(name: str) -> ChatEncoder:
        if name not in encoders:
            folder = REPO / "tmp" / ("models" if name == "smollm2" else "tokenizers") / name
            file = folder / "tokenizer.json"
            if not file.is_file():
                how = "download smollm2" if name == "smollm2" else "make tokenizers"
                pytest.skip(f"the real tokenizer {name} is not in tmp/: run `{how}`")
            backend = Tokenizer.from_file(str(file))
            ends = [token for token in _ENDS[name] if backend.token_to_id(token) is not None]
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_object=backend,
                eos_token=ends[0],
                bos_token="<s>" if ends[0] == "</s>" else None,
                chat_template=_PLAIN,
            )
            ids = [backend.token_to_id(token) for token in ends]
            encoders[name] = ChatEncoder(tokenizer, ChatRenderer(tokenizer), ids)
        return encoders[name]

    return get


# Chat formats are tested in test_blocks; here every model has the same simple template.
_PLAIN = (
    "{% for m in messages %}{{ m['role'] + ':\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def trained() -> dict[str, ChatEncoder]:
    """Encoders with tokenizers trained here: byte_level, prepend and metaspace."""
    return {
        "byte_level": encoder_of(byte_level()),
        "prepend": encoder_of(sentencepiece("prepend")),
        "metaspace": encoder_of(sentencepiece("metaspace")),
    }
