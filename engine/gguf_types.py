"""The weight types of a GGUF file: names, sizes and the error that each may have.

No torch: commands and screens import this module too.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from engine.errors import UsageError
from engine.structs import nearest


class GgufType(msgspec.Struct, frozen=True, kw_only=True):
    """A GGUF file type, with the limits that an exported file of this type must meet."""

    name: str
    bits: float
    """Bits per weight of the matrices, block scales included."""
    file_type: int
    """llama.cpp's number for the type (general.file_type)."""
    own: bool = False
    """Whether this program writes the type; llama-quantize makes the others."""
    block: int = 1
    """Weights per quantisation block: the rows of a matrix must be a multiple of it."""
    tensor_error: float = 0.0
    """Largest relative error of a matrix: RMS of the error / RMS of the weights (0: exact after
    rounding)."""
    kl: float
    """Largest mean KL divergence to the model, in nats."""
    top1: float
    """Smallest share of positions with the same most probable token."""
    perplexity: float
    """Largest relative rise of perplexity (0.01: 1%)."""


# The limits of f16, bf16, q8_0 and q4_k_m were measured with SmolLM2-135M; the others are
# interpolated and extrapolated from them in the order of their bits.
_TYPES = (
    GgufType(name="f32", bits=32, file_type=0, own=True, kl=1e-6, top1=0.999, perplexity=1e-4),
    GgufType(name="f16", bits=16, file_type=1, own=True, kl=1e-4, top1=0.99, perplexity=2e-3),
    GgufType(name="bf16", bits=16, file_type=32, own=True, kl=1e-3, top1=0.98, perplexity=5e-3),
    GgufType(
        name="q8_0",
        bits=8.5,
        file_type=7,
        own=True,
        block=32,
        tensor_error=0.01,
        kl=1e-2,
        top1=0.95,
        perplexity=0.01,
    ),
    *(
        GgufType(
            name=name,
            bits=bits,
            file_type=file_type,
            block=block,
            tensor_error=error,
            kl=kl,
            top1=top1,
            perplexity=perplexity,
        )
        for name, bits, file_type, block, error, kl, top1, perplexity in (
            ("q6_k", 6.56, 18, 256, 0.03, 0.02, 0.93, 0.02),
            ("q5_k_m", 5.69, 17, 256, 0.06, 0.05, 0.90, 0.03),
            ("q5_k_s", 5.54, 16, 256, 0.06, 0.05, 0.90, 0.03),
            ("q5_1", 6.0, 9, 32, 0.06, 0.05, 0.90, 0.03),
            ("q5_0", 5.5, 8, 32, 0.06, 0.06, 0.90, 0.04),
            ("q4_k_m", 4.85, 15, 256, 0.12, 0.10, 0.85, 0.05),
            ("q4_k_s", 4.58, 14, 256, 0.12, 0.12, 0.85, 0.06),
            ("iq4_nl", 4.5, 25, 32, 0.12, 0.12, 0.85, 0.07),
            ("iq4_xs", 4.25, 30, 256, 0.12, 0.12, 0.85, 0.07),
            ("q4_1", 5.0, 3, 32, 0.12, 0.12, 0.85, 0.07),
            ("q4_0", 4.5, 2, 32, 0.12, 0.15, 0.83, 0.10),
            ("q3_k_l", 4.27, 13, 256, 0.25, 0.25, 0.75, 0.20),
            ("q3_k_m", 3.91, 12, 256, 0.25, 0.30, 0.72, 0.25),
            ("q3_k_s", 3.5, 11, 256, 0.25, 0.40, 0.70, 0.35),
            ("q2_k", 2.96, 10, 256, 0.45, 1.00, 0.50, 1.00),
        )
    ),
)
GGUF_TYPES = {entry.name: entry for entry in _TYPES}
DEFAULT_TYPE = "f16"


def gguf_type(name: str) -> GgufType:
    """The type of that name (upper or lower case); raises UsageError for an unknown one."""
    entry = GGUF_TYPES.get(name.lower())
    if entry is None:
        raise UsageError(f"unknown GGUF type {name!r}; {nearest(name.lower(), GGUF_TYPES)}")
    return entry


def file_name(model: str, name: str) -> str:
    """Name of a model's file of a type; the default type has the plain name, so that files of
    several types lie side by side."""
    return f"{model}.gguf" if name == DEFAULT_TYPE else f"{model}-{name}.gguf"


def refuse_other_file(path: Path) -> None:
    """Raise UsageError unless the file begins as a GGUF file does, or OSError's text if it can't be
    read. An incomplete or damaged GGUF file passes."""
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from error
    if magic != b"GGUF":
        raise UsageError(f"{path} is not a GGUF file; create one with: gladius_train export")


def estimated_bytes(parameters: int, name: str) -> int:
    """Approximate size of the file in bytes, for a model with so many parameters."""
    return round(parameters * gguf_type(name).bits / 8)
