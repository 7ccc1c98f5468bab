"""Default sampling parameters of answers, by capability."""

from __future__ import annotations

import msgspec

from engine.config import DataConfig


class Sampling(msgspec.Struct, frozen=True):
    """Parameters of nucleus sampling; `max_tokens` limits the answer."""

    temperature: float
    top_p: float
    max_tokens: int


_OPEN = Sampling(0.8, 0.95, 384)
_BY_CAPABILITY = {
    # Low temperature where few answers are right, high where variety matters.
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
    """The config's sampling parameters, with the capability's defaults where it sets none."""
    default = _BY_CAPABILITY.get(capability, _OPEN)
    temperature, top_p = data.answer_temperature, data.answer_top_p
    return Sampling(
        default.temperature if temperature is None else temperature,
        default.top_p if top_p is None else top_p,
        min(default.max_tokens, data.max_answer_tokens),
    )
