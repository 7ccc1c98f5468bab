"""Owns the endless supply of prompts: the hand-written ones of a capability first, then variants
made by its generator, the same ones in the same order for a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from random import Random

from engine.data.prompts import Prompt, is_reserved, load_prompts, nfc
from engine.data.variants import (
    arithmetic,
    programs,
    puzzles,
    records,
    refusals,
    toolcalls,
    writing,
)
from engine.data.variants.draft import Draft
from engine.textdata import Message

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


def measured(capability: str, count: int) -> list[Prompt]:
    """Up to `count` prompts of reserved families that a checker can judge, hand-written and made
    ones in turns: what the capability table asks. The same ones for everybody."""
    written = [p for p in load_prompts([capability]) if p.check and is_reserved(p.group)]
    fresh = made(capability, 0, reserved=True)
    chosen: list[Prompt] = []
    families: set[str] = set()
    while len(chosen) < count:
        before = len(chosen)
        if written:
            chosen.append(written.pop(0))
        if len(chosen) < count:
            # Of each family once, as long as there are others.
            for _, prompt in zip(range(400), fresh, strict=False):
                if prompt.then or prompt.group in families:
                    continue
                families.add(prompt.group)
                chosen.append(prompt)
                break
            else:
                families.clear()
                if not written and before == len(chosen) and next(fresh, None) is None:
                    break
    return chosen
