"""Endless prompts for each capability: hand-written ones, then generated variants.

The same seed gives the same prompts in the same order. The names of the generators' functions are
part of family names, and so of the held-out split: renaming one changes the prompts.
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
"""Generated variants of reserved families from which evaluation prompts are taken."""
_MAX_MISSES = 2000
"""After this many drafts in a row without a new one the generator is exhausted."""


def generate_variants(capability: str, seed: int, reserved: bool | None = None) -> Iterator[Prompt]:
    """Distinct generated prompts for a capability; none where it has no generator.

    `reserved` selects the families that are held out for evaluation (True) or trained on (False);
    None: both.
    """
    generator = GENERATORS.get(capability)
    if generator is None:
        return
    rng = Random(f"gladius {capability} {seed}")
    seen: set[str] = set()
    misses = 0
    while misses < _MAX_MISSES:
        draft = generator(rng)
        # A prompt is new if its user messages are: the tools on offer do not count.
        user_text = "\n".join((draft.user, *draft.then)).casefold()
        if user_text in seen or (reserved is not None and is_reserved(draft.family) != reserved):
            misses += 1
            continue
        misses = 0
        seen.add(user_text)
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


def endless_prompts(capability: str, seed: int) -> Iterator[Prompt]:
    """The hand-written prompts of a capability in their order, then generated ones (until the
    generator is exhausted)."""
    yield from load_prompts([capability])
    yield from generate_variants(capability, seed)


@functools.cache
def evaluation_prompts(capability: str) -> tuple[Prompt, ...]:
    """The prompts on which a capability is evaluated, the same for every model.

    They are of reserved families and have a check; hand-written and generated ones alternate, so
    that any number of them can be taken from the start.
    """
    written = [p for p in load_prompts([capability]) if p.check and is_reserved(p.group)]
    families: dict[str, list[Prompt]] = {}
    for prompt in islice(generate_variants(capability, 0, reserved=True), _LOOK_AHEAD):
        if not prompt.then:  # one answer each, so that all take the same time
            families.setdefault(prompt.group, []).append(prompt)
    # One prompt of each family, then a second of each, and so on.
    generated = [p for row in zip_longest(*families.values()) for p in row if p is not None]
    turns = zip_longest(written, generated)
    return tuple(prompt for pair in turns for prompt in pair if prompt is not None)
