"""Owns the endless supply of prompts: the hand-written ones of a capability first, then variants
made by its generator, the same ones in the same order for a seed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from itertools import islice, zip_longest
from random import Random

from engine.prompts.prompt import Prompt, is_reserved, load_prompts, nfc
from engine.prompts.variants import (
    arithmetic,
    programs,
    puzzles,
    records,
    refusals,
    toolcalls,
    writing,
)
from engine.prompts.variants.draft import Draft
from engine.text.examples import Message

GENERATORS: dict[str, Callable[[Random], Draft]] = {
    "tool_calling": toolcalls.draft,
    "json": records.draft,
    "reasoning": puzzles.draft,
    "fluency": writing.fluent,
    "math": arithmetic.draft,
    "code": programs.draft,
    "safety": refusals.draft,
    "instructions": writing.instruct,
}

_LOOK_AHEAD = 48
"""Variants of reserved families from which those to measure on are taken."""
_TRIES = 2000
"""Drafts in a row that were all there before: then the generator is exhausted."""


def made(capability: str, seed: int, reserved: bool | None = None) -> Iterator[Prompt]:
    """Variants for a capability, none of them twice; without a generator, none.

    The same (capability, seed) gives the same prompts in the same order. `reserved` keeps to the
    families that are measured on (True) or learnt from (False).
    """
    generator = GENERATORS.get(capability)
    if generator is None:
        return
    rng = Random(f"gladius {capability} {seed}")
    seen: set[str] = set()
    misses = 0
    while misses < _TRIES:
        draft = generator(rng)
        # What the user says makes a prompt new; other tools on offer beside it do not.
        said = "\n".join((draft.user, *draft.then)).casefold()
        if said in seen or (reserved is not None and is_reserved(draft.family) != reserved):
            misses += 1
            continue
        misses = 0
        seen.add(said)
        yield _prompt(capability, draft)


def _prompt(capability: str, draft: Draft) -> Prompt:
    user = Message("user", nfc(draft.user))
    messages = (Message("system", nfc(draft.system)), user) if draft.system else (user,)
    content = "\n".join((draft.family, *(m.content for m in messages), *draft.then))
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    return Prompt(
        id=f"{capability}-{digest}",
        capability=capability,
        messages=messages,
        family=draft.family,
        check=draft.check,
        then=tuple(nfc(text) for text in draft.then),
    )


def prompts(capability: str, seed: int) -> Iterator[Prompt]:
    """The hand-written prompts of a capability, in their order, then variants without end (or
    until there are no new ones)."""
    yield from load_prompts([capability])
    yield from made(capability, seed)


@functools.cache
def measured(capability: str) -> tuple[Prompt, ...]:
    """The prompts of reserved families that a checker can judge, hand-written and made ones in
    turns: what the capability table asks, from the first on. The same ones for everybody."""
    written = [p for p in load_prompts([capability]) if p.check and is_reserved(p.group)]
    families: dict[str, list[Prompt]] = {}
    for prompt in islice(made(capability, 0, reserved=True), _LOOK_AHEAD):
        if not prompt.then:  # one answer each, so that all of them take the same time
            families.setdefault(prompt.group, []).append(prompt)
    # Of each family one, then of each another one.
    fresh = [p for row in zip_longest(*families.values()) for p in row if p is not None]
    turns = zip_longest(written, fresh)
    return tuple(prompt for pair in turns for prompt in pair if prompt is not None)
