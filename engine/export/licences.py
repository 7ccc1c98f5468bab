"""Requirements of the experts' licences on a student that is distributed. This is not legal advice:
the requirements are summaries for a person to check against the licences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint.model_record import ModelRecord, TaughtBy

_NONE = "requires nothing of a model's output; naming the expert, as here, is good practice"


@dataclass(frozen=True)
class Licence:
    """A licence, and what it requires of a model that was trained on output of a model under it."""

    key: str
    title: str
    url: str
    requirements: tuple[str, ...]


_KNOWN = (
    Licence(
        key="llama3.2",
        title="Llama 3.2 Community License",
        url="https://www.llama.com/llama3_2/license/",
        requirements=(
            "if you distribute a model that was trained on Llama's output, its name must begin "
            'with "Llama"',
            'its website, interface or documentation must prominently display "Built with Llama"',
            "include a copy of the licence, and a Notice file that says: Llama 3.2 is "
            "licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. All "
            "Rights Reserved.",
            "its use must follow the Acceptable Use Policy "
            "(https://www.llama.com/llama3_2/use-policy/)",
            "a company with more than 700 million monthly active users at Llama 3.2's release must "
            "request a licence from Meta",
        ),
    ),
    Licence(
        key="gemma",
        title="Gemma Terms of Use",
        url="https://ai.google.dev/gemma/terms",
        requirements=(
            "a model trained on Gemma's output to behave like Gemma is a Model Derivative: an "
            "enforceable agreement must pass the use restrictions of the terms (section 3.2) on to "
            "everyone who receives it",
            "include a copy of the terms, and a Notice file that says: Gemma is provided "
            "under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            "its use must follow the Prohibited Use Policy "
            "(https://ai.google.dev/gemma/prohibited_use_policy)",
        ),
    ),
    Licence(
        key="apache-2.0",
        title="Apache License 2.0",
        url="https://www.apache.org/licenses/LICENSE-2.0",
        requirements=(_NONE,),
    ),
    Licence(
        key="mit",
        title="MIT License",
        url="https://opensource.org/license/mit",
        requirements=(_NONE,),
    ),
)
_BINDING = ("llama3.2", "gemma")


def licence_of(expert: TaughtBy) -> Licence | None:
    """The licence of an expert by the registry's identifier; None for an unknown one."""
    key = expert.license.lower()
    if _is_llama(expert) and key != "llama3.2":
        version = key.removeprefix("llama")
        return Licence(
            key=key,
            title=f"Llama {version} Community License",
            url="https://www.llama.com/",
            requirements=tuple(
                text.replace("3.2", version).replace("3_2", version)
                for text in _KNOWN[0].requirements
            ),
        )
    return next((licence for licence in _KNOWN if licence.key == key), None)


def model_name(base: str, record: ModelRecord | None) -> str:
    """The model's name: it begins with "Llama" where an expert's licence requires that."""
    experts = record.experts if record else ()
    return f"Llama-{base}" if any(map(_is_llama, experts)) else base


def hub_licence(experts: Sequence[TaughtBy]) -> str:
    """`license` in the model card's metadata: that of the only expert whose terms bind the student,
    `other` where several do or a licence is unknown."""
    keys = {expert.license.lower() for expert in experts}
    binding = {key for key in keys if _binds(key)}
    if len(binding) == 1:
        return binding.pop()
    if binding or "" in keys or not keys or not all(map(licence_of, experts)):
        return "other"
    return "apache-2.0" if "apache-2.0" in keys else keys.pop()


def licence_notices(experts: Sequence[TaughtBy]) -> list[str]:
    """A line for each expert whose licence is unknown or restricts distribution of the student."""
    lines = []
    for expert in experts:
        licence = licence_of(expert)
        if licence is None:
            lines.append(
                f"the licence of {expert.title} ({expert.license or 'not given'}) is unknown to "
                "GLADIUS: read it before you distribute the model"
            )
        elif _binds(licence.key):
            lines.append(
                f"before you distribute the model, read what the {licence.title} of {expert.title} "
                "requires (see README.md)"
            )
    return lines


def _is_llama(expert: TaughtBy) -> bool:
    return expert.license.lower().startswith("llama3")


def _binds(key: str) -> bool:
    return key in _BINDING or key.startswith("llama3")
