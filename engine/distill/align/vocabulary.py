"""The bytes of each token of a tokenizer, and its encoding of text in the middle of a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

_NO_BYTES = -1


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte, inverted (openai/gpt-2, `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    alphabet = {chr(b): b for b in printable}
    alphabet.update({chr(256 + n): b for n, b in enumerate(others)})
    return alphabet


CHAR_TO_BYTE = _byte_level_alphabet()
BYTE_TO_CHAR = {b: c for c, b in CHAR_TO_BYTE.items()}


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, whether it is a Sequence or not."""
    if part is None:
        return []
    return part[key] if part["type"] == "Sequence" else [part]


def _sequence(steps: list[dict[str, Any]], key: str) -> dict[str, Any] | None:
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else {"type": "Sequence", key: steps}


def _mid_text(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without a dummy leading space and without added special tokens.

    NFC is removed too: the corpus is NFC already, and a token's bytes must not be normalised.
    """
    spec = dict(spec, post_processor=None, truncation=None, padding=None)
    normalizer = [
        step
        for step in _steps(spec.get("normalizer"), "normalizers")
        if step["type"] not in ("Prepend", "NFC")
    ]
    pre_tokenizer = []
    for step in _steps(spec.get("pre_tokenizer"), "pretokenizers"):
        if step["type"] == "Metaspace":
            step = dict(step, prepend_scheme="never")
        elif step["type"] == "ByteLevel":
            step = dict(step, add_prefix_space=False)
        pre_tokenizer.append(step)
    spec["normalizer"] = _sequence(normalizer, "normalizers")
    spec["pre_tokenizer"] = _sequence(pre_tokenizer, "pretokenizers")
    return spec


def _as_text(spec: str) -> Tokenizer:
    """The tokenizer, encoding strings that look like special tokens as plain text."""
    tokenizer = Tokenizer.from_str(spec)
    tokenizer.encode_special_tokens = True
    return tokenizer


class ByteVocabulary:
    """A tokenizer's tokens as bytes.

    Works for byte-level BPE (GPT-2, Llama 3, Qwen, phi, SmolLM2) and for SentencePiece-style BPE
    with byte fallback (Llama 2, TinyLlama, Mistral, Gemma).

    Attributes:
        size: rows of the model's embedding matrix (at least the tokenizer's own size).
        token_bytes: bytes of each token; None for special, control and unused tokens.
        lengths: (size,) int64, bytes of each token, -1 where there are none.
        digest: sha256 of everything that decides how it encodes, hex.
    """

    def __init__(self, tokenizer: Tokenizer, size: int | None = None) -> None:
        spec = json.loads(tokenizer.to_str())
        if spec["model"]["type"] not in ("BPE", "Unigram"):
            raise ValueError(f"tokenizer model {spec['model']['type']} has no byte-exact tokens")
        self.byte_level = any(
            step["type"] == "ByteLevel"
            for part, key in (("pre_tokenizer", "pretokenizers"), ("decoder", "decoders"))
            for step in _steps(spec.get(part), key)
        )
        own_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.size = max(size or 0, own_size)
        mid = _mid_text(spec)
        self._mid = _as_text(json.dumps(mid))
        steps = ("normalizer", "pre_tokenizer")
        plain = all(mid[step] == spec.get(step) for step in steps)
        self._start = self._mid if plain else _as_text(tokenizer.to_str())
        self.token_bytes = self._read_tokens(tokenizer, spec)
        self.lengths = np.array(
            [_NO_BYTES if b is None else len(b) for b in self.token_bytes], dtype=np.int64
        )
        self.digest = hashlib.sha256(
            json.dumps([spec, self.size], sort_keys=True).encode()
        ).hexdigest()
        self._byte_fallback = {
            b: tokenizer.token_to_id(f"<0x{b:02X}>") for b in range(256) if not self.byte_level
        }

    def _read_tokens(self, tokenizer: Tokenizer, spec: dict[str, Any]) -> list[bytes | None]:
        tokens: list[bytes | None] = [None] * self.size
        for text, index in tokenizer.get_vocab(with_added_tokens=False).items():
            tokens[index] = self._token_bytes(text)
        for added in spec["added_tokens"]:
            tokens[added["id"]] = None if added["special"] else added["content"].encode()
        unknown = spec["model"].get("unk_token")
        if unknown is not None and (unknown_id := tokenizer.token_to_id(unknown)) is not None:
            tokens[unknown_id] = None
        return [token or None for token in tokens]

    def _token_bytes(self, text: str) -> bytes | None:
        if self.byte_level:
            codes = [CHAR_TO_BYTE.get(char) for char in text]
            return None if None in codes else bytes(code for code in codes if code is not None)
        if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            return bytes([int(text[3:5], 16)])
        return text.replace("▁", " ").encode()

    def encode(self, text: str) -> np.ndarray:
        """Token ids, (n,) int64, of `text` in the middle of a text.

        Strings that look like special tokens are encoded as plain text.
        """
        return np.array(self._mid.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def encode_start(self, text: str) -> tuple[np.ndarray, int]:
        """Token ids, (n,), of a text from its start, and the bytes of its dummy space (0 or 1)."""
        ids = np.array(self._start.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        first = self.token_bytes[ids[0]] if len(ids) else None
        # A text that begins with a space may get another one: only the number of bytes shows it.
        spelled = int(self.lengths[ids].sum())
        dummy = first is not None and first[:1] == b" " and spelled == len(text.encode()) + 1
        return ids, int(dummy)

    def spells(self, ids: np.ndarray, data: bytes) -> bool:
        """Whether the tokens' bytes, one after the other, are exactly `data`."""
        return b"".join(self.token_bytes[i] or b"\xff\x00?" for i in ids.tolist()) == data

    def first_tokens(self, pieces: Sequence[bytes]) -> np.ndarray:
        """phi: first token, (len(pieces),) int32, of each byte string encoded mid-text.

        -1 where no token of the tokenizer begins these bytes. Only the valid UTF-8 prefix is
        encoded; where there is none, byte-level BPE is run on the raw bytes, and byte fallback
        returns the token of the first byte.
        """
        found = np.full(len(pieces), _NO_BYTES, dtype=np.int32)
        texts: list[str] = []
        where: list[int] = []
        for n, piece in enumerate(pieces):
            text = _valid_prefix(piece)
            if text:
                texts.append(text)
                where.append(n)
            else:
                found[n] = self._first_of_raw(piece)
        for start in range(0, len(texts), 1 << 16):
            batch = texts[start : start + (1 << 16)]
            for n, encoding in zip(
                where[start : start + (1 << 16)],
                self._mid.encode_batch_fast(batch, add_special_tokens=False),
                strict=True,
            ):
                ids = encoding.ids
                token = self.token_bytes[ids[0]] if ids else None
                if token is not None and pieces[n].startswith(token):
                    found[n] = ids[0]
        return found

    def _first_of_raw(self, piece: bytes) -> int:
        if not self.byte_level:
            fallback = self._byte_fallback.get(piece[0])
            return _NO_BYTES if fallback is None else fallback
        tokens = self._mid.model.tokenize("".join(BYTE_TO_CHAR[b] for b in piece))
        return tokens[0].id if tokens else _NO_BYTES


def _valid_prefix(data: bytes) -> str:
    """The longest prefix of `data` that is valid UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return data[: error.start].decode()
