"""Owns what an expert is asked: prompts, what would make an answer right, the hand-written seeds
in assets/prompts, and which families of prompts are kept for measuring.

It does not own the variants of seeds (`variants`) nor how an answer is judged (`checks`).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import GladiusError
from engine.text.examples import Message
from engine.workspace import assets_dir

RESERVED = 1 / 16
"""Share of the families that nothing is learnt from: they are what is measured on."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is"):
    """What can be said by rule about a right answer."""


class NumberCheck(Check, frozen=True, kw_only=True, tag="number"):
    """The answer ends in this number."""

    value: float
    tolerance: float = 1e-6
    """Relative; roundings of the value to two decimals count as right too."""


class MentionCheck(Check, frozen=True, kw_only=True, tag="mention"):
    """The answer says one of `any`, and none of `none` (whole words, any case)."""

    any: tuple[str, ...]
    none: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Wrong answers that an explanation may name: then what is said first, or last, decides."""
    begins: bool = False
    """One of `any` is the first word."""


class JsonCheck(Check, frozen=True, kw_only=True, tag="json"):
    """The answer is JSON that fits `schema`; where `values` names a top-level key, it has them."""

    schema: dict[str, Any] = {}
    values: dict[str, Any] = {}


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A call that is wanted; `arguments` None: any that fit."""

    tool: str
    arguments: dict[str, Any] | None = None


class ToolCheck(Check, frozen=True, kw_only=True, tag="tool"):
    """The answer calls these tools in any order, and no others; no calls: it answers in words."""

    tools: dict[str, dict[str, Any]]
    """JSON Schema of the arguments of every tool that is on offer, by name."""
    calls: tuple[ToolCall, ...] = ()


class CodeCheck(Check, frozen=True, kw_only=True, tag="code"):
    """The answer's Python passes these statements, run after it."""

    tests: tuple[str, ...]


class RefusalCheck(Check, frozen=True, kw_only=True, tag="refusal"):
    """The answer declines (`refuse`), or helps."""

    refuse: bool


class FormatCheck(Check, frozen=True, kw_only=True, tag="format"):
    """The answer keeps all the rules that are given."""

    sentences: int | None = None
    paragraphs: int | None = None
    items: int | None = None
    """Lines of a list, bulleted or numbered."""
    numbered: int | None = None
    words: tuple[int, int] | None = None
    """Fewest and most."""
    starts: str = ""
    ends: str = ""
    contains: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Words that may not occur."""
    without_letter: str = ""
    upper: bool = False
    lower: bool = False
    exact: tuple[str, ...] = ()
    """The whole answer is one of these, but for case and punctuation around it."""
    order: tuple[str, ...] = ()
    """Words that occur in this order."""
    language: str = ""
    """Two letters: en, de, fr, es, it, pt, nl."""


AnyCheck = (
    NumberCheck | MentionCheck | JsonCheck | ToolCheck | CodeCheck | RefusalCheck | FormatCheck
)


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A conversation that waits for the expert's answer."""

    id: str
    capability: str
    messages: tuple[Message, ...]
    family: str = ""
    """What it is a variant of; none: it stands for itself."""
    check: AnyCheck | None = None
    then: tuple[str, ...] = ()
    """What the user says after each answer, for a dialogue of several turns. The check is of the
    last answer."""

    @property
    def group(self) -> str:
        """The family; prompts of one group are learnt from or measured on together."""
        return self.family or self.id


_decoder = msgspec.json.Decoder(Prompt)


def load_prompts(capabilities: Iterable[str], folder: Path | None = None) -> list[Prompt]:
    """The hand-written prompts of these capabilities, one capability after the other, as NFC.

    A capability without a prompt file has none. Raises GladiusError for a broken line.
    """
    folder = folder or assets_dir() / "prompts"
    prompts: list[Prompt] = []
    for capability in capabilities:
        path = folder / f"{capability}.jsonl"
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            try:
                prompt = _decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise GladiusError(f"{path}, line {number}: {error}; correct it") from error
            messages = tuple(Message(m.role, nfc(m.content)) for m in prompt.messages)
            prompts.append(msgspec.structs.replace(prompt, messages=messages))
    return prompts


def nfc(text: str) -> str:
    """The text in Unicode's composed form, in which all text is learnt."""
    return unicodedata.normalize("NFC", text)


def family_digest(family: str) -> str:
    """Hex digits that order families for splitting; the smallest are the reserved ones."""
    return hashlib.sha256(f"family {family}".encode()).hexdigest()


def is_reserved(family: str) -> bool:
    """Whether a family is kept for measuring. It depends on the name alone, so that prompts that
    are added later move no other ones over the border."""
    return int(family_digest(family)[:8], 16) < RESERVED * 2**32
