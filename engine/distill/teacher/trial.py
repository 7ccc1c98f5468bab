"""Try an expert, in a child process with limits: see `engine.experts.trial`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast
from transformers.models.llama import modeling_llama  # noqa: F401 - imported once, in the server

from engine.chat import ChatRefused, render_chat
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.teacher.end_tokens import end_tokens, files_end, template_end
from engine.distill.teacher.loading import load_teacher
from engine.distill.teacher.model_config import embedding_rows, model_type, read_config
from engine.distill.teacher.tokenizer import load_tokenizer, read_tokenizer, tokens_without_rows
from engine.errors import GladiusError
from engine.experts.gguf_source import GGUFExpert
from engine.experts.loadable import check_architecture
from engine.experts.registry import ExpertSpec
from engine.experts.trial import Report, Stage, TrialRequest
from engine.text.examples import Message

_GIB = 1 << 30
_SMALL = 512 << 20
"""Weights up to this size are tried in fp32, in which errors of the head show."""
_WRITTEN_TOKENS = 8
_CHATS = (
    [Message("user", "Name a bird.")],
    [
        Message("user", "Name a bird."),
        Message("assistant", "A robin."),
        Message("user", "And another one?"),
    ],
)
_SYSTEM = [Message("system", "Be brief."), *_CHATS[0]]


def try_expert(request: TrialRequest, report: Report) -> None:
    """Try the expert; calls `report` with each stage and with notes.

    Raises GladiusError, or any other error of the libraries, if it can't be used.
    """
    torch.set_num_threads(1)
    path, spec = Path(request.path), request.spec
    report(Stage("its config", seconds=20, memory=_GIB))
    configured = _check_config(path, spec)
    size = (path / "tokenizer.json").stat().st_size if path.is_dir() else path.stat().st_size
    report(Stage("its tokenizer", seconds=60 + size / 1e6, memory=2 * _GIB + 40 * size))
    tokenizer = load_tokenizer(path, spec)
    vocabulary = _byte_vocabulary(tokenizer, spec)
    report(Stage("its chat template", seconds=3, memory=_GIB))
    _check_template(tokenizer, spec)
    end_tokens(tokenizer, spec, configured)
    for note in (*_tokenizer_notes(path, spec), *_end_notes(tokenizer, spec, configured)):
        report(note)
    if request.run_model:
        gigabytes = request.weight_bytes / 1e9
        memory = 6 * _GIB + 4 * request.weight_bytes
        report(Stage("its model", seconds=30 + 90 * gigabytes, memory=memory))
        _check_model(path, spec, request.weight_bytes, vocabulary.size)


def _check_config(path: Path, spec: ExpertSpec) -> Any:
    """Check the architecture; returns the end tokens of its generation config."""
    if path.is_file():
        GGUFExpert(path).config()
        return None
    try:
        check_architecture(spec, model_type(path))
        config = read_config(path)
    except (GladiusError, MemoryError):
        raise
    except Exception as error:
        import transformers

        why = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise GladiusError(
            f"{spec.name}: transformers {transformers.__version__} can't read its config ({why}); "
            "a newer version may: pip install -U transformers"
        ) from error
    try:
        return GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    except (OSError, ValueError):
        return getattr(config.get_text_config(decoder=True), "eos_token_id", None)


def _byte_vocabulary(tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> ByteVocabulary:
    if not tokenizer.encode("a 1\n", add_special_tokens=False):
        raise GladiusError(f"{spec.name}: its tokenizer has no tokens for plain text")
    try:
        return ByteVocabulary(tokenizer.backend_tokenizer)
    except ValueError as error:
        raise GladiusError(
            f"{spec.name}: {error}, so its distributions can't be projected; choose another model"
        ) from error


def _check_template(tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec) -> None:
    """Render small conversations. A template may refuse a system turn, nothing else."""
    for chat in (*_CHATS, _SYSTEM):
        try:
            text = render_chat(tokenizer, chat, spec.chat)
        except MemoryError:
            raise
        except Exception as error:
            words = error.words if isinstance(error, ChatRefused) else str(error)
            why = " ".join(words.split())[:160]
            raise GladiusError(
                f"{spec.name}: its chat template fails ({why}); correct it, or choose another model"
            ) from error
        content = chat[-1].content
        if content not in text:
            raise GladiusError(
                f"{spec.name}: its chat template leaves out what the user says; correct it, or "
                "choose another model"
            )


def _tokenizer_notes(path: Path, spec: ExpertSpec) -> list[str]:
    """What the user should know about the tokenizer's files."""
    if path.is_file():
        return []
    notes = []
    tokenizer, reference = read_tokenizer(path)
    rows = embedding_rows(read_config(path))
    unused = tokens_without_rows(tokenizer, rows) if rows is not None else []
    if unused:
        named = ", ".join(repr(token) for token in unused[:3])
        notes.append(f"{len(unused)} of its tokens have no row in its matrix ({named}): not used")
    end = tokenizer.eos_token
    if end is not None and str(end) not in reference.get_vocab(with_added_tokens=True):
        notes.append(f"its end token {str(end)!r} is not in its tokenizer.json")
    if spec.chat == "template" and not tokenizer.chat_template:
        notes.append("it has no chat template: conversations are written as Instruct: and Output:")
    return notes


def _end_notes(tokenizer: PreTrainedTokenizerFast, spec: ExpertSpec, configured: Any) -> list[str]:
    """What the user should know about the tokens that end its turn."""
    if spec.end_tokens or spec.chat != "template" or not tokenizer.chat_template:
        return []
    written, named = template_end(tokenizer, spec), files_end(tokenizer, configured)
    ends = ", ".join(repr(tokenizer.convert_ids_to_tokens(i)) for i in dict.fromkeys(named))
    if written is None:
        return [f"its chat template writes no end token after an answer; {ends} is used"]
    if written not in named:
        token = tokenizer.convert_ids_to_tokens(written)
        files = f"its files name {ends} as the end of a turn" if named else "its files name none"
        return [f"its chat template ends answers with {token!r}, {files}: {token!r} is used"]
    return []


@torch.no_grad()
def _check_model(path: Path, spec: ExpertSpec, weight_bytes: int, vocabulary_size: int) -> None:
    """Load the weights, score a conversation, and write a few tokens."""
    dtype = torch.float32 if weight_bytes <= _SMALL else torch.bfloat16
    teacher = load_teacher(path, spec, "cpu", dtype)
    if vocabulary_size > teacher.vocab_size:
        raise GladiusError(
            f"{spec.name}: its tokenizer has {vocabulary_size:,} tokens and its matrix "
            f"{teacher.vocab_size:,} rows; choose another model"
        )
    ids = torch.tensor([teacher.encode_prompt(_CHATS[1])[-(teacher.context or 1 << 20) :]])
    hidden = teacher.hidden_states(ids, torch.ones_like(ids))[0]
    if not bool(torch.isfinite(teacher.logits(hidden)).all()):
        raise GladiusError(f"{spec.name}: its logits are not finite; its weights are damaged")
    teacher.generate(
        [_CHATS[0]], max_new_tokens=_WRITTEN_TOKENS, temperature=0, top_p=1, seed=0, batch_size=1
    )
