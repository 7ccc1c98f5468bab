"""Prompts and the checks of their answers, the hand-written prompts in assets/prompts, and the
split into families for training and for evaluation.
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
"""Share of the families that are held out for evaluation and never trained on."""


class Check(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="is"):
    """A rule that a right answer meets."""


class NumberCheck(Check, frozen=True, kw_only=True, tag="number"):
    """The result of the answer is this number."""

    value: float
    tolerance: float = 1e-6
    """Relative; the value rounded to two decimals is accepted too."""


class MentionCheck(Check, frozen=True, kw_only=True, tag="mention"):
    """The answer contains one of `any` and none of `none` (whole words, any case)."""

    any: tuple[str, ...]
    none: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    """Wrong answers that an explanation may mention: the first or last mention decides."""
    begins: bool = False
    """The answer must begin with one of `any`."""


class JsonCheck(Check, frozen=True, kw_only=True, tag="json"):
    """The answer is JSON that matches `schema` and has the top-level `values`."""

    schema: dict[str, Any] = {}
    values: dict[str, Any] = {}


class ToolCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An expected call; `arguments` None: any that match the tool's schema."""

    tool: str
    arguments: dict[str, Any] | None = None


class ToolCheck(Check, frozen=True, kw_only=True, tag="tool"):
    """The answer makes exactly these calls, in any order; without `calls`, none at all."""

    tools: dict[str, dict[str, Any]]
    """JSON Schema of the arguments of every offered tool, by name."""
    calls: tuple[ToolCall, ...] = ()


class CodeCheck(Check, frozen=True, kw_only=True, tag="code"):
    """The answer's Python code passes these statements, which run after it."""

    tests: tuple[str, ...]


class RefusalCheck(Check, frozen=True, kw_only=True, tag="refusal"):
    """The answer refuses (`refuse`), or helps."""

    refuse: bool


class FormatCheck(Check, frozen=True, kw_only=True, tag="format"):
    """The answer follows all format rules that are set."""

    sentences: int | None = None
    paragraphs: int | None = None
    items: int | None = None
    """Number of list items, bulleted or numbered."""
    numbered: int | None = None
    """Number of lines, numbered from 1."""
    words: tuple[int, int] | None = None
    """Smallest and largest number of words."""
    starts: str = ""
    ends: str = ""
    contains: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    """Words that must not occur."""
    without_letter: str = ""
    upper: bool = False
    lower: bool = False
    exact: tuple[str, ...] = ()
    """The whole answer is one of these, apart from case and punctuation."""
    order: tuple[str, ...] = ()
    """Words that must occur in this order."""
    language: str = ""
    """ISO 639-1 code: en, de, fr, es, it, pt or nl."""


AnyCheck = (
    NumberCheck | MentionCheck | JsonCheck | ToolCheck | CodeCheck | RefusalCheck | FormatCheck
)


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A conversation that an expert continues with an answer."""

    id: str
    capability: str
    messages: tuple[Message, ...]
    family: str = ""
    """Name shared by variants of one prompt; empty: the prompt has no variants."""
    check: AnyCheck | None = None
    then: tuple[str, ...] = ()
    """Further user messages, one after each answer, for a dialogue of several turns. The check
    applies to the last answer."""

    @property
    def group(self) -> str:
        """The family, else the id; all of a group is either trained on or held out."""
        return self.family or self.id


_decoder = msgspec.json.Decoder(Prompt)


def load_prompts(capabilities: Iterable[str], folder: Path | None = None) -> list[Prompt]:
    """The hand-written prompts of these capabilities, in their order, normalised to NFC.

    A capability without a prompt file has none. Raises GladiusError for an invalid line.
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
    """The text in Unicode normalisation form C, as all training text."""
    return unicodedata.normalize("NFC", text)


def family_digest(family: str) -> str:
    """Hex digest that orders families for the split; the smallest ones are reserved."""
    return hashlib.sha256(f"family {family}".encode()).hexdigest()


def is_reserved(family: str) -> bool:
    """Whether a family is held out for evaluation. It depends on the name alone, so that adding
    prompts moves no other family across the split."""
    return int(family_digest(family)[:8], 16) < RESERVED * 2**32
