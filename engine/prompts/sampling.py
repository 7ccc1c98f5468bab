"""Owns how answers are sampled, by capability, where the config does not say."""

from __future__ import annotations

import msgspec

from engine.config import DataConfig


class Sampling(msgspec.Struct, frozen=True):
    """Nucleus sampling and the longest answer, tokens."""

    temperature: float
    top_p: float
    max_tokens: int


_OPEN = Sampling(0.8, 0.95, 384)
_BY_CAPABILITY = {
    # What has one right form is drawn close to the mode; what lives by variety is not.
    "tool_calling": Sampling(0.2, 0.9, 192),
    "json": Sampling(0.3, 0.9, 256),
    "math": Sampling(0.4, 0.95, 384),
    "code": Sampling(0.3, 0.95, 384),
    "reasoning": Sampling(0.6, 0.95, 384),
    "instructions": Sampling(0.6, 0.95, 384),
    "safety": Sampling(0.6, 0.95, 384),
    "fluency": Sampling(0.9, 0.95, 384),
}


def sampling_of(capability: str, data: DataConfig) -> Sampling:
    """What the config says, else what the capability asks for."""
    own = _BY_CAPABILITY.get(capability, _OPEN)
    temperature, top_p = data.answer_temperature, data.answer_top_p
    return Sampling(
        own.temperature if temperature is None else temperature,
        own.top_p if top_p is None else top_p,
        min(own.max_tokens, data.max_answer_tokens),
    )
