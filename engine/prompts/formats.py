"""Check that a text follows the format rules of an instruction (`FormatCheck`)."""

from __future__ import annotations

import re

from engine.prompts.prompt import FormatCheck

_LIST_LINE = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.):])\s+(?=\S)", re.M)
_NUMBERED_LINE = re.compile(r"^\s*(\d{1,2})[.):]\s+\S", re.M)
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|etc|e\.g|i\.e|a\.m|p\.m|No|approx)\.", re.I)

# Frequent short words of each language, by which `language_of` recognises it.
_STOPWORDS = {
    "en": "the and is are of to in that it for with was you this be have not they",
    "de": "der die das und ist nicht ein eine ich sie mit den dem von zu auf für sich auch wir",
    "fr": "le la les et est une un des pas je il elle dans pour que qui vous nous avec sur du",
    "es": "el la los las y es una un no que de en por para con se del muy está son",
    "it": "il lo la gli e è una un non che di per con sono si della nel molto questo ho",
    "pt": "o a os as e é uma um não que de em para com se do da muito está são",
    "nl": "de het een en is niet ik van dat op te zijn met voor aan ook wij maar je er",
}
LANGUAGES = {code: frozenset(words.split()) for code, words in _STOPWORDS.items()}


def follows(check: FormatCheck, text: str) -> bool:
    """Whether the text follows every rule of the check."""
    text = text.strip()
    words = words_of(text)
    lowered = [word.lower() for word in words]
    rules = (
        check.sentences is None or count_sentences(text) == check.sentences,
        check.paragraphs is None or count_paragraphs(text) == check.paragraphs,
        check.items is None or (count_items(text) == check.items and are_different(text)),
        check.numbered is None or is_numbered(text, check.numbered),
        check.words is None or check.words[0] <= len(words) <= check.words[1],
        text.lower().startswith(check.starts.lower()),
        text.rstrip("\"'”*").lower().endswith(check.ends.rstrip("\"'").lower()),
        all(_has(text, phrase) for phrase in check.contains),
        not any(_has(text, phrase) for phrase in check.without),
        not check.without_letter or check.without_letter.lower() not in text.lower(),
        not check.upper or (text == text.upper() and text != text.lower()),
        not check.lower or (text == text.lower() and text != text.upper()),
        not check.exact or _normalised(text) in {_normalised(one) for one in check.exact},
        in_order(lowered, check.order),
        not check.language or language_of(text) == check.language,
    )
    return all(rules)


def words_of(text: str) -> list[str]:
    """The words of a text, with inner apostrophes and hyphens; list numbers are not words."""
    return re.findall(r"\w+(?:['’-]\w+)*", re.sub(r"^\s*\d{1,2}[.):]\s", "", text, flags=re.M))


def count_sentences(text: str) -> int:
    """The number of sentences: they end in . ! ? or … before white space or the end of the text;
    abbreviations do not end one."""
    text = _ABBREVIATION.sub(lambda match: match.group().replace(".", ""), text)
    text = re.sub(r"^\s*\d{1,2}[.):]\s", "", text, flags=re.M)
    parts = re.split(r"(?<=[.!?…])[\"'”’)]*(?:\s+|$)|\n{2,}", text)
    return sum(1 for part in parts if part and re.search(r"\w", part))


def count_paragraphs(text: str) -> int:
    """The number of paragraphs, separated by blank lines."""
    return sum(1 for part in re.split(r"\n\s*\n", text) if part.strip())


def count_items(text: str) -> int:
    """The number of list items: bulleted or numbered lines, else lines, else parts between commas
    and "and"."""
    marked = len(_LIST_LINE.findall(text))
    if marked:
        return marked
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        # A first line that ends in a colon introduces the list.
        return len(lines) - lines[0].rstrip().endswith(":")
    return len([part for part in re.split(r",| and ", text) if part.strip()])


def are_different(text: str) -> bool:
    """Whether all bulleted or numbered items differ."""
    items = [
        _normalised(_LIST_LINE.sub("", line))
        for line in text.splitlines()
        if _LIST_LINE.match(line)
    ]
    return len(set(items)) == len(items)


def is_numbered(text: str, count: int) -> bool:
    """Whether the numbered lines of the text are exactly 1 to `count`."""
    return [int(n) for n in _NUMBERED_LINE.findall(text)] == list(range(1, count + 1))


def in_order(words: list[str], order: tuple[str, ...]) -> bool:
    """Whether the words of `order` occur in this order (others may be between them)."""
    rest = iter(words)
    return all(any(word == expected.lower() for word in rest) for expected in order)


def language_of(text: str) -> str:
    """The language with the most stopwords in the text; "" if there are too few."""
    words = [word.lower() for word in words_of(text)]
    counts = {
        code: sum(word in stopwords for word in words) for code, stopwords in LANGUAGES.items()
    }
    best = max(counts, key=lambda code: counts[code])
    return best if counts[best] >= max(1, len(words) // 12) else ""


def _has(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.I) is not None


def _normalised(text: str) -> str:
    return " ".join(re.findall(r"[\w+-]+", text.lower()))
