"""Load tokenizers exactly as in their tokenizer.json, with their chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from engine.distill.teacher.model_config import embedding_rows, read_config
from engine.distill.teacher.quiet import quiet_transformers
from engine.errors import GladiusError, MissingError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.registry import ExpertSpec
from engine.template_date import with_date

_ROLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "sep_token",
    "cls_token",
    "mask_token",
)
_MAX_TEMPLATE_BYTES = 1 << 20

_TRICKY_TEXTS = (
    "  two spaces, then\ta tab\r\n\r\nand\n\n\nlines 1234567 3.14 don't WE'LL",
    "naïve café — e\u0301 🙂👩‍👩‍👧 漢字かな ไทย العربية \u00a0\u200b",
    "def f(x):\n        return x ** 2  # ▁ Ġ <s> x </s>\n",
)
"""Texts that a wrongly rebuilt tokenizer encodes differently."""


def load_tokenizer(path: Path, spec: ExpertSpec) -> PreTrainedTokenizerFast:
    """The expert's tokenizer, exactly as in its tokenizer.json (or GGUF file), but without
    truncation, padding, and added tokens that have no row in the model's matrix.

    AutoTokenizer is not used: for some classes transformers 5 rebuilds the tokenizer in a form that
    encodes differently.

    Raises:
        MissingError: there is no tokenizer.json.
        GladiusError: the file is broken, the loaded tokenizer encodes differently from it, or
            tokens that text needs have no row in the matrix.
    """
    if path.suffix == ".gguf":
        return with_date(GGUFExpert(path).tokenizer())
    file = path / "tokenizer.json"
    if not file.is_file():
        raise MissingError(
            f"expert {spec.name} has no tokenizer.json in {path}; download it again, or save a "
            "fast tokenizer there"
        )
    try:
        tokenizer, reference = read_tokenizer(path)
    except Exception as error:  # a broken file can raise anything
        remedy = f"download it again: gladius_train download {spec.name} --force"
        if spec.source == "folder":
            remedy = "save it again as a fast tokenizer"
        raise GladiusError(
            f"expert {spec.name}: {file} is not a readable tokenizer ({_text(error)}); {remedy}"
        ) from error
    for text in _TRICKY_TEXTS:
        if tokenizer.encode(text) != reference.encode(text).ids:
            raise GladiusError(
                f"expert {spec.name}: the loaded tokenizer disagrees with {file} on {text!r}; "
                "report this with the versions of transformers and tokenizers"
            )
    rows = _rows(path)
    if rows is not None and len(tokens_without_rows(tokenizer, rows)):
        _drop_tokens(tokenizer, rows, spec)
    return with_date(tokenizer)


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerFast, Tokenizer]:
    """The tokenizer of a folder and its tokenizer.json alone, both without truncation and padding.

    Raises what the libraries raise on a broken file.
    """
    with quiet_transformers():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for backend in (tokenizer.backend_tokenizer, reference):
        # Settings of whoever saved it; they would cut or fill every text.
        backend.no_truncation()
        backend.no_padding()
    if not tokenizer.chat_template:
        tokenizer.chat_template = _template_of_processor(folder)
    return tokenizer, reference


def _template_of_processor(folder: Path) -> str | None:
    """The template in chat_template.json, where processors keep it; None without one."""
    file = folder / "chat_template.json"
    if not file.is_file() or file.stat().st_size > _MAX_TEMPLATE_BYTES:
        return None
    template = json.loads(file.read_bytes()).get("chat_template")
    return template if isinstance(template, str) else None


def tokens_without_rows(tokenizer: PreTrainedTokenizerFast, rows: int) -> list[str]:
    """Tokens whose id is not below `rows`, in the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    return sorted((t for t, i in vocabulary.items() if i >= rows), key=vocabulary.__getitem__)


def _rows(path: Path) -> int | None:
    """Rows of the matrix by the folder's config.json; None if there is none."""
    if not (path / "config.json").is_file():
        return None
    try:
        return embedding_rows(read_config(path))
    except Exception:  # reported where the model is loaded
        return None


def _drop_tokens(tokenizer: PreTrainedTokenizerFast, rows: int, spec: ExpertSpec) -> None:
    """Remove the added tokens from id `rows` on: the model never learnt them.

    Raises GladiusError if one is part of the base vocabulary or is written around every text.
    """
    content: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < rows]
    try:
        backend = Tokenizer.from_str(json.dumps(content))
    except Exception:  # the post-processor needs a removed token
        backend = None
    if backend is None or max(backend.get_vocab(with_added_tokens=True).values()) >= rows:
        raise GladiusError(
            f"expert {spec.name}: its tokenizer has {len(tokenizer):,} tokens and its matrix "
            f"{rows:,} rows; save the model again after model.resize_token_embeddings"
            f"({len(tokenizer)}), or choose another model"
        )
    known = backend.get_vocab(with_added_tokens=True)
    tokenizer._tokenizer = backend
    for role in _ROLES:
        token = getattr(tokenizer, role)
        if token is not None and str(token) not in known:
            setattr(tokenizer, role, None)


def _text(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
