"""Owns what the experts' licences ask of a student that is distributed. No legal advice: texts and
remedies as the licences put them, for a person to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint.model_record import ModelRecord, TaughtBy


@dataclass(frozen=True)
class Licence:
    """One licence and what it asks of a model that was taught with the output of one under it."""

    key: str
    title: str
    url: str
    asks: tuple[str, ...]


_KNOWN = (
    Licence(
        "llama3.2",
        "Llama 3.2 Community License",
        "https://www.llama.com/llama3_2/license/",
        (
            'a model that was trained with Llama\'s output and is distributed has "Llama" at the '
            "beginning of its name",
            'a website, interface or documentation of it displays "Built with Llama" prominently',
            "a copy of the licence goes with it, and a Notice file that says: Llama 3.2 is "
            "licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All "
            "Rights Reserved.",
            "its use keeps to the Acceptable Use Policy "
            "(https://www.llama.com/llama3_2/use-policy/)",
            "whoever had more than 700 million monthly active users at Llama 3.2's release asks "
            "Meta for a licence",
        ),
    ),
    Licence(
        "gemma",
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        (
            "a model that was trained with Gemma's output to behave like it is a Model Derivative: "
            "the use restrictions of the terms (section 3.2) go on to whoever gets it, in an "
            "agreement that can be enforced",
            "a copy of the terms goes with it, and a Notice file that says: Gemma is provided "
            "under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            "its use keeps to the Prohibited Use Policy "
            "(https://ai.google.dev/gemma/prohibited_use_policy)",
        ),
    ),
    Licence(
        "apache-2.0",
        "Apache License 2.0",
        "https://www.apache.org/licenses/LICENSE-2.0",
        ("asks nothing of a model's output; naming the expert, as here, is fair",),
    ),
    Licence(
        "mit",
        "MIT License",
        "https://opensource.org/license/mit",
        ("asks nothing of a model's output; naming the expert, as here, is fair",),
    ),
)
_BINDING = ("llama3.2", "gemma")


def licence_of(expert: TaughtBy) -> Licence | None:
    """The licence by the registry's word for it; None where it isn't known here."""
    word = expert.license.lower()
    if word.startswith("llama3") and word != "llama3.2":
        version = word.removeprefix("llama")
        return Licence(
            word,
            f"Llama {version} Community License",
            "https://www.llama.com/",
            tuple(ask.replace("3.2", version).replace("3_2", version) for ask in _KNOWN[0].asks),
        )
    return next((licence for licence in _KNOWN if licence.key == word), None)


def model_name(base: str, record: ModelRecord | None) -> str:
    """What the model is called: with Llama in front where one of its teachers asks for that."""
    experts = record.experts if record else ()
    needs_llama = any(e.license.lower().startswith("llama3") for e in experts)
    return f"Llama-{base}" if needs_llama else base


def hub_licence(experts: Sequence[TaughtBy]) -> str:
    """The `license` of the card's header: that of the expert whose terms bind the student."""
    words = {e.license.lower() for e in experts}
    binding = {w for w in words if w in _BINDING or w.startswith("llama3")}
    if len(binding) == 1:
        return binding.pop()
    if binding or "" in words or not words or not all(map(licence_of, experts)):
        return "other"
    return "apache-2.0" if "apache-2.0" in words else words.pop()


def binding_lines(experts: Sequence[TaughtBy]) -> list[str]:
    """A line for each expert whose licence asks something of a distributed student."""
    lines = []
    for expert in experts:
        licence = licence_of(expert)
        if licence is None:
            lines.append(
                f"the licence of {expert.title} ({expert.license or 'not given'}) is not known "
                "here: read it before you distribute the model"
            )
        elif licence.key in _BINDING or licence.key.startswith("llama3"):
            lines.append(
                f"to distribute it, heed the {licence.title} of {expert.title} (README.md says how)"
            )
    return lines
