"""Tokenize with only a GGUF file's tokenizer data, by llama.cpp's rules, where llama.cpp is
not installed.

SentencePiece-style: merge the pair whose joined token has the highest score, the leftmost of
equals; text that is no token becomes byte tokens (llama-vocab.cpp, llm_tokenizer_spm).
Byte-level: the file's merges with the pre-tokenizer that it names.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType

from engine.errors import GladiusError
from engine.experts.gguf_header import open_gguf
from engine.experts.gguf_source import GGUFExpert

Encode = Callable[[str, bool], list[int]]
"""(text, add_special_tokens) to token ids."""


def load_encoder(path: Path, reader: GGUFReader | None = None) -> Encode:
    """A function that encodes text with the file's tokenizer.

    reader: the same file, where it is open already.

    Raises GladiusError for a tokenizer model or pre-tokenizer that this program does not support.
    """
    reader = reader or open_gguf(path)
    fields = {name: field for name, field in reader.fields.items() if name.startswith("token")}
    model = fields["tokenizer.ggml.model"].contents()
    if model == "llama":
        return _SentencePieceEncoder(fields).encode
    if model != "gpt2":
        raise GladiusError(f"{path}: the tokenizer model {model} is not supported")
    backend = GGUFExpert(path).tokenizer().backend_tokenizer
    return lambda text, added: backend.encode(text, add_special_tokens=added).ids


class _SentencePieceEncoder:
    """A SentencePiece-style tokenizer from a file's metadata fields."""

    def __init__(self, fields: dict) -> None:
        def get(key: str, default: Any = None) -> Any:
            field = fields.get(f"tokenizer.ggml.{key}")
            return default if field is None else field.contents()

        tokens: list[str] = get("tokens") or []
        self.scores: list[float] = get("scores") or []
        self.index = {token: n for n, token in enumerate(tokens)}
        self.byte_ids = [self.index[f"<0x{byte:02X}>"] for byte in range(256)]
        special_types = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        types = get("token_type") or []
        special = [t for t, kind in zip(tokens, types, strict=True) if kind in special_types]
        special.sort(key=len, reverse=True)  # llama.cpp searches for the longest ones first
        self.special = re.compile(f"({'|'.join(map(re.escape, special))})") if special else None
        self.prefix = " " if get("add_space_prefix", True) else ""
        self.before: list[int] = [get("bos_token_id")] if get("add_bos_token", True) else []
        self.after: list[int] = [get("eos_token_id")] if get("add_eos_token", False) else []

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = list(self.before) if add_special_tokens else []
        after_special = True
        for number, part in enumerate(self.special.split(text) if self.special else [text]):
            if number % 2:  # split() puts the separators, the special tokens, at odd places
                ids.append(self.index[part])
                after_special = True
            elif part:
                ids += self._encode_part((self.prefix if after_special else "") + part)
                after_special = False
        return ids + (list(self.after) if add_special_tokens else [])

    def _encode_part(self, text: str) -> list[int]:
        """Merge neighbours, best score first, in text without special tokens."""
        symbols = list(text.replace(" ", "▁"))  # a merged symbol leaves an empty one to its right
        next_symbol = [*range(1, len(symbols)), -1]
        previous_symbol = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def push(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                joined = symbols[left] + symbols[right]
                if joined in self.index:
                    heapq.heappush(queue, (-self.scores[self.index[joined]], left, right, joined))

        for left in range(len(symbols) - 1):
            push(left, left + 1)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            # Skip a pair of which one symbol has been merged with another since.
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue
            symbols[left], symbols[right] = joined, ""
            next_symbol[left] = next_symbol[right]
            if next_symbol[right] >= 0:
                previous_symbol[next_symbol[right]] = left
            push(previous_symbol[left], left)
            push(left, next_symbol[left])
        ids: list[int] = []
        for symbol in filter(None, symbols):
            if symbol in self.index:
                ids.append(self.index[symbol])
            else:
                ids += [self.byte_ids[byte] for byte in symbol.encode()]
        return ids
