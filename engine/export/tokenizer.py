"""Map a Hugging Face tokenizer to GGUF's `tokenizer.ggml.*` values, and refuse what llama.cpp
cannot reproduce.

The behaviour is read from tokenizer.json; the roles of the special tokens and the chat template
come from the other files of the folder. `parity` checks that llama.cpp then produces the same
token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf import TokenType

from engine.errors import GladiusError, MissingError
from engine.small_files import Damaged, read_json, read_text

_GPT4_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS = {
    (_GPT4_REGEX % r"\p{N}{1,3}", True): "llama-bpe",
    (_GPT4_REGEX % r"\p{N}{1,3}", False): "smaug-bpe",
    (_GPT4_REGEX % r"\p{N}", False): "qwen2",
}
"""llama.cpp's pre-tokenizer name by (split regex, ignore_merges). With ignore_merges, a word that
is a token is not merged from its parts."""
_NEVER_MERGED = -1e9
"""Score of a token that no merge produces: llama.cpp merges it last."""
_NFC_WARNING = (
    "this tokenizer normalizes text to Unicode NFC and llama.cpp does not: text with decomposed "
    "letters gets other token ids there"
)


@dataclass(frozen=True)
class GgufTokenizer:
    """The values of the `tokenizer.ggml.*` keys."""

    model: str
    """`llama` (SentencePiece-style BPE) or `gpt2` (byte-level BPE)."""
    pre: str
    """llama.cpp's name of the pre-tokenizer."""
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """By token id: a higher score is merged earlier. None for a byte-level BPE."""
    merges: list[str] | None
    """None for a SentencePiece-style BPE, which has scores."""
    special: dict[str, int]
    """Token id by role: bos, eos, unk, pad."""
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None
    needs_nfc: bool = False
    """The tokenizer normalizes text to NFC; llama.cpp does not."""
    warnings: list[str] = field(default_factory=list)


def read_gguf_tokenizer(folder: Path, vocab_size: int) -> GgufTokenizer:
    """Read the tokenizer of a model folder.

    Embedding rows beyond the tokenizer's tokens (up to `vocab_size`) become unused tokens.

    Raises MissingError without a tokenizer.json, GladiusError for one that GGUF cannot represent.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise MissingError(f"{path} is missing; save the model with its tokenizer")
    try:
        data = read_json(path, dict[str, Any])
        model = data["model"]
        tokens = _tokens(model, data["added_tokens"], vocab_size, path)
    except Damaged as error:
        raise GladiusError(f"{error}; save the model again") from error
    except (ValueError, KeyError, TypeError) as error:
        raise GladiusError(f"{path} is damaged ({error}); save the model again") from error
    _refuse_unsupported(model, data["added_tokens"], path)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    types = _types(tokens, data["added_tokens"], model, vocab_size)
    special, template = _special_tokens(folder, tokens, types)
    add_bos, add_eos = _post_processor(data.get("post_processor"), special, path)
    unknown = model.get("unk_token")
    if unknown in tokens:
        special.setdefault("unk", tokens.index(unknown))
    sentencepiece = bool(model.get("byte_fallback"))
    needs_nfc = (data.get("normalizer") or {}).get("type") == "NFC"
    return GgufTokenizer(
        model="llama" if sentencepiece else "gpt2",
        pre="default" if sentencepiece else _pre_tokenizer(data, path),
        tokens=tokens,
        types=types,
        scores=_scores(tokens, merges) if sentencepiece else None,
        merges=None if sentencepiece else _joined_merges(merges, path),
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=sentencepiece and _adds_space_prefix(data, path),
        chat_template=template,
        needs_nfc=needs_nfc,
        warnings=[_NFC_WARNING] if needs_nfc else [],
    )


def _unsupported(path: Path, reason: str) -> GladiusError:
    return GladiusError(
        f"this tokenizer cannot be represented in GGUF: {reason} ({path}); to export a student, "
        "train it with student.tokenizer=train or with TinyLlama's tokenizer"
    )


def _refuse_unsupported(model: dict[str, Any], added: list[dict], path: Path) -> None:
    """Raise GladiusError for options that llama.cpp does not have."""
    if model.get("type") != "BPE":
        raise _unsupported(path, f"its model is {model.get('type')}, not BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise _unsupported(path, f"its BPE model uses {option}")
    for token in added:
        for option in ("lstrip", "rstrip", "single_word"):
            if token.get(option):
                raise _unsupported(path, f"its added token {token['content']!r} uses {option}")


def _tokens(model: dict[str, Any], added: list[dict], vocab_size: int, path: Path) -> list[str]:
    """Token by id, one for each embedding row."""
    by_id = {index: token for token, index in model["vocab"].items()}
    by_id.update({token["id"]: token["content"] for token in added})
    if max(by_id, default=-1) >= vocab_size:
        raise GladiusError(
            f"{path} has {max(by_id) + 1:,} tokens, but the model's embedding has {vocab_size:,} "
            "rows; save the model with its own tokenizer"
        )
    used = set(by_id.values())
    for index in range(vocab_size):
        if index not in by_id:
            name = f"[PAD{index}]"
            while name in used:  # llama.cpp aborts on two tokens with the same text
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
        token_type = TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED
        types[token["id"]] = int(token_type)
    if model.get("byte_fallback") and model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = int(TokenType.UNKNOWN)
    return types


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """The score of a token is minus the rank of the first merge that produces it.

    llama.cpp merges the pair whose joined token has the highest score, as BPE merges the pair of
    the lowest rank. All scores are floats: gguf would write an integer array otherwise.
    """
    first_rank: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first_rank.setdefault(left + right, rank)
    return [-float(first_rank[token]) if token in first_rank else _NEVER_MERGED for token in tokens]


def _joined_merges(merges: list[tuple[str, ...]], path: Path) -> list[str]:
    if any(" " in part for pair in merges for part in pair):
        raise _unsupported(path, "its merges contain spaces, which GGUF uses as the separator")
    return [f"{left} {right}" for left, right in merges]


def _adds_space_prefix(data: dict[str, Any], path: Path) -> bool:
    """Whether a SentencePiece-style tokenizer puts a space before the text.

    Raises GladiusError for a normalizer or pre-tokenizer that llama.cpp does not have.
    """
    normalizer = data.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer]) if normalizer else []
    found = [(step.get("type"), step.get("prepend") or step.get("content")) for step in steps]
    replace = ("Replace", "▁")
    pre = data.get("pre_tokenizer")
    if pre is None and found == [("Prepend", "▁"), replace]:
        return True
    if pre is None and found == [replace]:
        return False
    never = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    if pre == never and not found:
        return False
    raise _unsupported(path, "it does not normalize text as SentencePiece does")


def _pre_tokenizer(data: dict[str, Any], path: Path) -> str:
    """llama.cpp's name of a byte-level BPE's pre-tokenizer, found by its structure."""
    normalizer = data.get("normalizer")
    if normalizer and normalizer.get("type") != "NFC":
        raise _unsupported(path, f"llama.cpp does not have its normalizer {normalizer.get('type')}")
    pre = data.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    last = steps[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        raise _unsupported(path, "it is not a byte-level BPE without a space prefix")
    ignore_merges = bool(data["model"].get("ignore_merges"))
    uses_regex = last.get("use_regex", True)
    match steps[:-1]:
        case [] if uses_regex and not ignore_merges:
            return "gpt-2"
        case [{"type": "Digits", "individual_digits": True}] if uses_regex and not ignore_merges:
            return "smollm"
        case [{"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"} as split]:
            name = _PRE_TOKENIZERS.get((regex, ignore_merges))
            if name and not uses_regex and not split.get("invert"):
                return name
    raise _unsupported(path, "llama.cpp does not have its pre-tokenizer")


def _special_tokens(
    folder: Path, tokens: list[str], types: list[int]
) -> tuple[dict[str, int], str | None]:
    """Token ids by role, from tokenizer_config.json and then config.json; and the chat template."""
    config = _read_json(folder / "tokenizer_config.json")
    index = {token: n for n, token in enumerate(tokens)}
    special: dict[str, int] = {}
    for role in ("bos", "eos", "unk", "pad"):
        named = config.get(f"{role}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text in index:
            special[role] = index[text]
    model_config = _read_json(folder / "config.json")
    for role in ("bos", "eos", "pad"):
        # A chat model may list several end tokens; the first one ends a text.
        token_id = model_config.get(f"{role}_token_id")
        token_id = token_id[0] if isinstance(token_id, list) and token_id else token_id
        if role in special or not isinstance(token_id, int) or not 0 <= token_id < len(tokens):
            continue
        # LlamaConfig's defaults are 1 and 2, which are ordinary words in many vocabularies.
        if types[token_id] == TokenType.CONTROL:
            special[role] = token_id
    template: Any = config.get("chat_template")
    if (path := folder / "chat_template.jinja").is_file():
        template = read_text(path)
    if isinstance(template, list):  # named templates; the plain one is `default`
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return special, template


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path, dict[str, Any]) if path.is_file() else {}


def _post_processor(
    processor: dict[str, Any] | None, special: dict[str, int], path: Path
) -> tuple[bool, bool]:
    """(add_bos, add_eos); raises GladiusError where the post-processor adds any other token."""
    processors = (processor or {}).get("processors", [processor] if processor else [])
    before: list[int] = []
    after: list[int] = []
    for entry in processors:
        kind = entry.get("type")
        if kind == "ByteLevel":
            continue  # moves offsets, changes no token
        if kind != "TemplateProcessing":
            raise _unsupported(path, f"llama.cpp does not have its post-processor {kind}")
        ids = entry["special_tokens"]
        added = before
        for piece in entry["single"]:
            if "Sequence" in piece:
                added = after
            else:
                added += ids[piece["SpecialToken"]["id"]]["ids"]
    for found, role, place in ((before, "bos", "before"), (after, "eos", "after")):
        if not (found == [] or found == [special.get(role)]):
            raise _unsupported(
                path, f"it adds the tokens {found} {place} a text instead of its {role} token"
            )
    return bool(before), bool(after)
