"""Owns what counts as nearly the same text, and finding it among many: MinHash over word trigrams
(Broder 1997) with locality-sensitive hashing, by datasketch.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasketch import MinHash

SIMILAR = 0.8
"""Jaccard similarity of the trigrams from which on two texts are nearly the same."""
_PERMUTATIONS = 64


def shingles(text: str) -> frozenset[str]:
    """The word trigrams of a text, without case and punctuation; of a short one, its words."""
    words = re.findall(r"\w+", text.lower())
    if len(words) < 3:
        return frozenset([" ".join(words)])
    return frozenset(" ".join(words[n : n + 3]) for n in range(len(words) - 2))


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of two texts' trigrams, exactly."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / max(1, len(first | second))


class NearDuplicates:
    """Tells of each text whether one that is nearly the same was added before.

    Candidates come from MinHash; what decides is the exact similarity, so that no chance of a hash
    ever drops a text that is unlike all others.
    """

    def __init__(self, threshold: float = SIMILAR) -> None:
        from datasketch import MinHashLSH  # brings scipy: only who looks for duplicates needs it

        self._threshold = threshold
        # A little below the threshold, since the estimate scatters around it.
        self._index = MinHashLSH(threshold=max(0.3, threshold - 0.15), num_perm=_PERMUTATIONS)
        self._shingles: dict[str, frozenset[str]] = {}

    def find(self, text: str) -> str | None:
        """The key of a text that is nearly the same; None where there is none."""
        mine = shingles(text)
        for key in self._index.query(_minhash(mine)):
            theirs = self._shingles[str(key)]
            if len(mine & theirs) >= self._threshold * len(mine | theirs):
                return str(key)
        return None

    def add(self, key: str, text: str) -> str | None:
        """As `find`; a text that has no like is remembered under `key`."""
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
