"""Find near-duplicate texts with MinHash over word trigrams (Broder 1997, "On the resemblance and
containment of documents") and locality-sensitive hashing, by datasketch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash

SIMILAR = 0.8
"""Jaccard similarity of their trigrams at which two texts count as near-duplicates."""
_PERMUTATIONS = 64


def shingles(text: str) -> frozenset[str]:
    """The word trigrams of a text, in lower case without punctuation; below three words, all of
    it."""
    words = re.findall(r"\w+", text.lower())
    if len(words) < 3:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[n : n + 3]) for n in range(len(words) - 2))


def similarity(one: str, other: str) -> float:
    """The exact Jaccard similarity of two texts' shingles, 0 to 1."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / max(1, len(first | second))


class NearDuplicates:
    """An index of texts that finds near-duplicates of a new one.

    MinHash finds candidates and the exact similarity decides, so that a hash collision never drops
    a distinct text.
    """

    def __init__(self, threshold: float = SIMILAR) -> None:
        from datasketch import MinHashLSH  # slow import (scipy)

        self._threshold = threshold
        # Below the threshold, since MinHash only estimates the similarity.
        self._index = MinHashLSH(threshold=max(0.3, threshold - 0.15), num_perm=_PERMUTATIONS)
        self._shingles: dict[str, frozenset[str]] = {}

    def find(self, text: str) -> str | None:
        """The key of a near-duplicate that was added before; None if there is none."""
        new = shingles(text)
        for key in self._index.query(_minhash(new)):
            known = self._shingles[str(key)]
            if len(new & known) >= self._threshold * len(new | known):
                return str(key)
        return None

    def add(self, key: str, text: str) -> str | None:
        """As `find`; a text without near-duplicate is added under `key`."""
        if (found := self.find(text)) is not None:
            return found
        self._shingles[key] = shingles(text)
        self._index.insert(key, _minhash(self._shingles[key]))
        return None


def _minhash(parts: frozenset[str]) -> MinHash:
    from datasketch import MinHash

    signature = MinHash(num_perm=_PERMUTATIONS, seed=1)
    signature.update_batch([part.encode() for part in sorted(parts)])
    return signature
