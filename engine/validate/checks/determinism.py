"""Check that the model generates text, and that greedy generation is deterministic."""

from __future__ import annotations

from engine.events import CheckDone
from engine.text.examples import Message
from engine.validate.check import Check, structural_row
from engine.validate.context import CheckContext

_NAME, _TITLE = "greedy", "deterministic output"
_PROMPT = (Message("user", "Tell me in one sentence what you are."),)
_MAX_NEW_TOKENS = 24


def check_determinism(context: CheckContext) -> CheckDone:
    """Two greedy answers to one prompt are equal."""
    generator = context.generator
    available = context.model.context_length - len(generator.encode_prompt(_PROMPT))
    max_new_tokens = max(1, min(_MAX_NEW_TOKENS, available))
    first, second = (
        generator.answer([_PROMPT], max_new_tokens, "generating twice")[0] for _ in range(2)
    )
    equal = first.ids == second.ids
    return structural_row(
        _NAME,
        _TITLE,
        passed=equal,
        value=f"the same {len(first.ids)} tokens twice" if equal else "two runs differ",
        meaning="Greedy generation works, and gives the same tokens when it is repeated.",
        bound="identical",
        detail="" if equal else f"{first.text}\n{second.text}",
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_determinism)
