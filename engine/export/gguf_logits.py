"""Owns how this program reads text with nothing but a GGUF file's tokenizer data, by llama.cpp's
rules: for the comparison of token ids where llama.cpp itself is not installed.

SentencePiece-style: the pair whose joined token has the highest score is joined first, leftmost
among equals, and what is no token falls apart into bytes (llama-vocab.cpp, llm_tokenizer_spm).
Byte-level: the file's merges under the pre-tokenizer that it names.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf import GGUFReader, TokenType

from engine.errors import GladiusError
from engine.experts.gguf_source import GGUFExpert

Reading = Callable[[str, bool], list[int]]
"""Token ids of a text; the second: with the marks of its beginning and end."""


def open_reading(path: Path, reader: GGUFReader | None = None) -> Reading:
    """How the file in `path` reads text; `reader`: the same file, where it is open already.

    GladiusError for a pre-tokenizer that isn't known here.
    """
    reader = reader or GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if name.startswith("token")}
    kind = fields["tokenizer.ggml.model"].contents()
    if kind == "llama":
        return _Pieces(fields).ids
    if kind != "gpt2":
        raise GladiusError(f"{path}: tokenizer {kind} can't be read here")
    backend = GGUFExpert(path).tokenizer().backend_tokenizer
    return lambda text, special: backend.encode(text, add_special_tokens=special).ids


class _Pieces:
    """A SentencePiece-style tokenizer out of a file's fields."""

    def __init__(self, fields: dict) -> None:
        def get(key: str, default: Any = None) -> Any:
            field = fields.get(f"tokenizer.ggml.{key}")
            return default if field is None else field.contents()

        tokens: list[str] = get("tokens") or []
        self.scores: list[float] = get("scores") or []
        self.index = {token: n for n, token in enumerate(tokens)}
        self.bytes = [self.index[f"<0x{byte:02X}>"] for byte in range(256)]
        marked = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        types = get("token_type") or []
        whole = [t for t, kind in zip(tokens, types, strict=True) if kind in marked]
        # llama.cpp looks for the longest ones first.
        whole.sort(key=len, reverse=True)
        self.marked = re.compile(f"({'|'.join(map(re.escape, whole))})") if whole else None
        self.prefix = " " if get("add_space_prefix", True) else ""
        self.before: list[int] = [get("bos_token_id")] if get("add_bos_token", True) else []
        self.after: list[int] = [get("eos_token_id")] if get("add_eos_token", False) else []

    def ids(self, text: str, special: bool) -> list[int]:
        found: list[int] = list(self.before) if special else []
        after_special = True
        for number, part in enumerate(self.marked.split(text) if self.marked else [text]):
            if number % 2:
                found.append(self.index[part])
                after_special = True
            elif part:
                found += self._pieces((self.prefix if after_special else "") + part)
                after_special = False
        return found + (list(self.after) if special else [])

    def _pieces(self, text: str) -> list[int]:
        """Join neighbours, best score first."""
        symbols = list(text.replace(" ", "▁"))
        following = [*range(1, len(symbols)), -1]
        former = list(range(-1, len(symbols) - 1))
        queue: list[tuple[float, int, int, str]] = []

        def offer(left: int, right: int) -> None:
            if left >= 0 and right >= 0:
                joined = symbols[left] + symbols[right]
                if joined in self.index:
                    heapq.heappush(queue, (-self.scores[self.index[joined]], left, right, joined))

        for left in range(len(symbols) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, joined = heapq.heappop(queue)
            # What was joined with something else since is not this pair any more.
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != joined:
                continue
            symbols[left], symbols[right] = joined, ""
            following[left] = following[right]
            if following[right] >= 0:
                former[following[right]] = left
            offer(former[left], left)
            offer(left, following[left])
        ids: list[int] = []
        for symbol in filter(None, symbols):
            if symbol in self.index:
                ids.append(self.index[symbol])
            else:
                ids += [self.bytes[byte] for byte in symbol.encode()]
        return ids
