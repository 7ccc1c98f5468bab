"""Owns a tokenizer in GGUF's words: its family, tokens, scores or merges, token types, special ids.

Only tokenizer.json says what a tokenizer does, so everything is read from there; the roles of the
special tokens and the chat template come from the files beside it. What llama.cpp can't express is
refused here; whether it then gives the same ids is `parity`'s to find out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType

from engine.errors import GladiusError, MissingError

_GPT4_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What llama.cpp calls them. The first takes a piece that is a token as it is, without merging.
_SPLITS = {
    (_GPT4_WORDS % r"\p{N}{1,3}", True): "llama-bpe",
    (_GPT4_WORDS % r"\p{N}{1,3}", False): "smaug-bpe",
    (_GPT4_WORDS % r"\p{N}", False): "qwen2",
}
_NEVER_MERGED = -1e9
"""Score of tokens that no merge makes: the last that llama.cpp would ever join."""


@dataclass(frozen=True)
class GgufTokenizer:
    """What the `tokenizer.ggml.*` keys say."""

    model: str
    """`llama` (SentencePiece-style BPE) or `gpt2` (byte-level BPE)."""
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """By token, the higher the earlier it is merged; None for a byte-level BPE."""
    merges: list[str] | None
    """None for a SentencePiece-style BPE, which has scores."""
    special: dict[str, int]
    """Ids by role: bos, eos, unk, pad."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    needs_nfc: bool = False
    """Text must come in Unicode's form NFC: llama.cpp does not bring it there."""
    notes: list[str] = field(default_factory=list)


def read_gguf_tokenizer(folder: Path, vocab_size: int) -> GgufTokenizer:
    """The tokenizer of a model folder; rows of the embedding beyond its tokens become unused ones.

    Raises MissingError without a tokenizer.json, and GladiusError for one that llama.cpp's two
    families of BPE can't express.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingError(f"{path} is missing; save the model with its tokenizer")
    try:
        data = json.loads(path.read_bytes())
        model = data["model"]
        tokens = _tokens(model, data["added_tokens"], vocab_size, path)
    except (ValueError, KeyError, TypeError) as error:
        raise GladiusError(f"{path} is damaged ({error}); save the model again") from error
    if model.get("type") != "BPE":
        raise _inexpressible(path, f"its model is {model.get('type')}, not BPE")
    for flag in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(flag):
            raise _inexpressible(path, f"its BPE has a {flag}")
    for token in data["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token.get(flag):
                raise _inexpressible(path, f"its token {token['content']!r} is matched by {flag}")
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    types = _types(tokens, data["added_tokens"], model, vocab_size)
    roles, template = _roles(folder, tokens, types)
    add_bos, add_eos = _post_processor(data.get("post_processor"), roles, path)
    unknown = model.get("unk_token")
    if unknown in tokens:
        roles.setdefault("unk", tokens.index(unknown))
    if model.get("byte_fallback"):
        prefix = _sentencepiece(data, path)
        scores = _scores(tokens, merges)
        family = {"model": "llama", "pre": "default", "scores": scores, "merges": None}
    else:
        prefix = False
        if any(" " in part for pair in merges for part in pair):
            raise _inexpressible(path, "its merges hold spaces, which part their halves there")
        joined = [f"{left} {right}" for left, right in merges]
        family = {"model": "gpt2", "pre": _pre_tokenizer(data, path), "merges": joined}
        family["scores"] = None
    needs_nfc = (data.get("normalizer") or {}).get("type") == "NFC"
    return GgufTokenizer(
        **family,
        tokens=tokens,
        types=types,
        special=roles,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=prefix,
        chat_template=template,
        needs_nfc=needs_nfc,
        notes=[
            "llama.cpp does not bring text into Unicode's form NFC, as this tokenizer does: "
            "decomposed letters get other token ids there"
        ]
        if needs_nfc
        else [],
    )


def _inexpressible(path: Path, why: str) -> GladiusError:
    return GladiusError(
        f"this tokenizer can't be expressed in GGUF: {why} ({path}); train a student with "
        "student.tokenizer=train, or with TinyLlama's, to export it"
    )


def _tokens(model: dict[str, Any], added: list[dict], vocab_size: int, path: Path) -> list[str]:
    """Token by id, as many as the embedding has rows."""
    by_id = {index: token for token, index in model["vocab"].items()}
    by_id.update({token["id"]: token["content"] for token in added})
    if max(by_id, default=-1) >= vocab_size:
        raise GladiusError(
            f"{path} has {max(by_id) + 1:,} tokens and the model {vocab_size:,} rows: "
            "they don't belong together"
        )
    taken = set(by_id.values())
    for index in range(vocab_size):
        if index not in by_id:
            name = f"[PAD{index}]"
            while name in taken:  # llama.cpp ends itself on two tokens of one text
                name = f"[{name}]"
            by_id[index] = name
    return [by_id[index] for index in range(vocab_size)]


def _types(
    tokens: list[str], added: list[dict], model: dict[str, Any], vocab_size: int
) -> list[int]:
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, index in model["vocab"].items():
        is_byte = model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x")
        types[index] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
    for token in added:
        special = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        types[token["id"]] = int(special)
    if model.get("byte_fallback") and model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = int(TokenType.UNKNOWN)
    return types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """-(rank of the first merge that makes a token).

    llama.cpp joins the pair whose joined token has the highest score, as BPE joins the pair of the
    lowest rank. Floats throughout: integers would be written as an array that is read otherwise.
    """
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    return [-float(first[token]) if token in first else _NEVER_MERGED for token in tokens]


def _sentencepiece(data: dict[str, Any], path: Path) -> bool:
    """Whether a space is put before the text; GladiusError for steps that llama.cpp has not."""
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    kinds = [(s.get("type"), s.get("prepend") or s.get("content")) for s in steps]
    replace = ("Replace", "▁")
    pre = data.get("pre_tokenizer")
    if pre is None and kinds == [("Prepend", "▁"), replace]:
        return True
    if pre is None and kinds == [replace]:
        return False
    never = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    if pre == never and not kinds:
        return False
    raise _inexpressible(path, "it prepares text otherwise than SentencePiece does")


def _pre_tokenizer(data: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of how a byte-level BPE cuts text, from its structure."""
    normalizer = data.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise _inexpressible(path, f"its normalizer {normalizer.get('type')} is unknown there")
    pre = data.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _inexpressible(path, "it is no byte-level BPE that leaves the text's start alone")
    ignore_merges = bool(data["model"].get("ignore_merges"))
    uses_regex = last.get("use_regex", True)
    match steps[:-1]:
        case [] if uses_regex and not ignore_merges:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}] if uses_regex and not ignore_merges:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"} as split]:
            name = _SPLITS.get((regex, ignore_merges))
            if name and not uses_regex and not split.get("invert"):
                return name
    raise _inexpressible(path, "llama.cpp has no name for how it cuts text into words")


def _roles(folder: Path, tokens: list[str], types: list[int]) -> tuple[dict[str, int], str | None]:
    """Ids of the special tokens by role, and the chat template."""
    config: dict[str, Any] = {}
    if (path := folder / "tokenizer_config.json").is_file():
        config = json.loads(path.read_bytes())
    index = {token: n for n, token in enumerate(tokens)}
    roles: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = config.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in index:
            roles[role] = index[text]
    if (path := folder / "config.json").is_file():
        model = json.loads(path.read_bytes())
        for role in ("bos", "eos", "pad"):
            # A list of ends is a chat model's; its first one ends the text.
            given = model.get(f"{role}_token_id")
            given = given[0] if isinstance(given, list) and given else given
            if role in roles or not isinstance(given, int) or not 0 <= given < len(tokens):
                continue
            # A config names 1 and 2 where nobody told it otherwise: words, in many a vocabulary.
            if types[given] == TokenType.CONTROL:
                roles[role] = given
    template: Any = config.get("chat_template")
    if (path := folder / "chat_template.jinja").is_file():
        template = path.read_text(encoding="utf-8")
    if isinstance(template, list):  # several with names; the plain one is `default`
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return roles, template


def _post_processor(
    processor: dict[str, Any] | None, roles: dict[str, int], path: Path
) -> tuple[bool, bool]:
    """Whether a text gets a beginning and an end; GladiusError where it gets anything else."""
    processors = (processor or {}).get("processors", [processor] if processor else [])
    before: list[int] = []
    after: list[int] = []
    for entry in processors:
        kind = entry.get("type")
        if kind == "ByteLevel":
            continue  # moves offsets, changes no token
        if kind != "TemplateProcessing":
            raise _inexpressible(path, f"its post-processor {kind} is unknown there")
        ids = entry["special_tokens"]
        where = before
        for piece in entry["single"]:
            if "Sequence" in piece:
                where = after
            else:
                where += ids[piece["SpecialToken"]["id"]]["ids"]
    for found, role, place in ((before, "bos", "before"), (after, "eos", "after")):
        if not (found == [] or found == [roles.get(role)]):
            raise _inexpressible(path, f"it puts the tokens {found} {place} a text, not its {role}")
    return bool(before), bool(after)
