"""Encoders with the real tokenizers and chat templates of public models."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.chat import ChatFormat, ChatRenderer
from engine.distill.align.blocks import ChatEncoder
from tests.support.paths import REPO

TEMPLATES = Path(__file__).with_name("chat_templates")


@dataclass(frozen=True)
class RealExpert:
    """A public model: folder of its tokenizer below tmp/, and its chat format.

    `template` is a file of chat_templates, a file of the folder, or empty for phi's format.
    """

    folder: str
    template: str
    ends: tuple[str, ...]
    bos: str | None = None
    chat_format: ChatFormat = "template"


EXPERTS = {
    "qwen2.5": RealExpert("tokenizers/qwen3", "qwen2.5", ("<|im_end|>", "<|endoftext|>")),
    "qwen3": RealExpert("tokenizers/qwen3", "own", ("<|im_end|>", "<|endoftext|>")),
    "llama3.2": RealExpert(
        "tokenizers/llama3", "llama3.2", ("<|eot_id|>", "<|eom_id|>"), "<|begin_of_text|>"
    ),
    "phi": RealExpert("tokenizers/gpt2", "", ("<|endoftext|>",), chat_format="phi"),
    "tinyllama": RealExpert("tokenizers/llama2", "tinyllama", ("</s>",), "<s>"),
    "llama2": RealExpert("tokenizers/llama2", "llama2", ("</s>",), "<s>"),
    "gemma2": RealExpert("tokenizers/mistral", "gemma2", ("</s>",), "<s>"),
    "mistral": RealExpert("tokenizers/mistral", "mistral", ("</s>",), "<s>"),
    "inst": RealExpert("tokenizers/mistral", "inst", ("</s>",), "<s>"),
    "smollm2": RealExpert("models/smollm2", "own", ("<|im_end|>", "<|endoftext|>")),
}


def expert_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; the test is skipped where it was not downloaded."""
    expert = EXPERTS[name]
    folder = REPO / "tmp" / expert.folder
    if not (folder / "tokenizer.json").is_file():
        how = "download smollm2" if name == "smollm2" else "make tokenizers"
        pytest.skip(f"the real tokenizer {expert.folder} is not in tmp/: run `{how}`")
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=expert.ends[0], bos_token=expert.bos
    )
    if expert.template == "own":
        own = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.chat_template = own.chat_template
    elif expert.template:
        tokenizer.chat_template = (TEMPLATES / f"{expert.template}.jinja").read_text()
    return tokenizer


@cache
def _base(folder: str, name: str) -> ChatEncoder:
    tokenizer = expert_tokenizer(name)
    ends = [tokenizer.convert_tokens_to_ids(end) for end in EXPERTS[name].ends]
    known = [n for n in ends if isinstance(n, int)]
    return ChatEncoder(tokenizer, ChatRenderer(tokenizer, EXPERTS[name].chat_format), known)


@cache
def expert_encoder(name: str) -> ChatEncoder:
    """An encoder as of a loaded expert. Experts with one tokenizer share its byte vocabulary."""
    expert = EXPERTS[name]
    first = next(n for n, other in EXPERTS.items() if other.folder == expert.folder)
    base = _base(expert.folder, first)
    if first == name:
        return base
    encoder = copy.copy(base)
    encoder.tokenizer = expert_tokenizer(name)
    encoder.renderer = ChatRenderer(encoder.tokenizer, expert.chat_format)
    return encoder


def as_student(encoder: ChatEncoder) -> ChatEncoder:
    """The encoder of a student with this tokenizer and chat template."""
    student = copy.copy(encoder)
    student.as_generated = True
    student.end_ids = encoder.end_ids[:1]
    return student
