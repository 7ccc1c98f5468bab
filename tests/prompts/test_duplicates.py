"""Finding near-duplicate texts."""

from __future__ import annotations

from random import Random

from engine.prompts.duplicates import NearDuplicates, similarity

TEXT = "The ferry to the island leaves at nine and comes back in the evening when the wind is low"


def test_texts_that_differ_in_few_words_are_near_duplicates() -> None:
    seen = NearDuplicates()
    assert seen.add("a", TEXT) is None
    assert seen.add("b", TEXT + ", they say") == "a"
    assert seen.add("c", TEXT.upper() + "!") == "a"


def test_a_distinct_text_is_added() -> None:
    seen = NearDuplicates()
    seen.add("a", TEXT)
    assert seen.add("b", "Nine islands are left of the low wind in the evening") is None
    assert seen.find("Nine islands are left of the low wind in the evening") == "b"


def test_short_texts_are_compared_as_a_whole() -> None:
    seen = NearDuplicates()
    assert seen.add("a", "yes") is None
    assert seen.add("b", "no") is None
    assert seen.add("c", "Yes.") == "a"


def test_the_estimate_finds_what_exact_comparison_finds() -> None:
    """Compared with the exact similarity of every pair, no distinct text is dropped and hardly any
    near-duplicate is missed."""
    rng = Random(0)
    words = [f"w{n}" for n in range(400)]
    texts: list[str] = []
    for _ in range(60):
        base = rng.choices(words, k=40)
        texts.append(" ".join(base))
        for changes in (1, 2, 6):
            other = list(base)
            for place in rng.sample(range(40), changes):
                other[place] = "x"
            texts.append(" ".join(other))
    seen = NearDuplicates()
    kept: list[str] = []
    missed = 0
    for n, text in enumerate(texts):
        exact = any(similarity(text, other) >= 0.8 for other in kept)
        found = seen.add(str(n), text) is not None
        assert exact or not found
        missed += exact and not found
        if not found:
            kept.append(text)
    assert missed <= 2 and len(kept) < len(texts) - 40
