"""Find optional external programs: llama-quantize, and a Python with llama-cpp-python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

HOW_TO_INSTALL = (
    "install llama-cpp-python (`make llama-cpp` builds it in a separate virtual environment)"
)
ENVIRONMENT = ".venv-gguf"
"""The virtual environment, in the repository's folder, that `make llama-cpp` creates."""


def find_python() -> Path | None:
    """A Python that can import llama-cpp-python; None if there is none.

    Tried in this order: this interpreter, GLADIUS_LLAMA_PYTHON, the one of `make llama-cpp`.
    """
    if importlib.util.find_spec("llama_cpp") is not None:
        return Path(sys.executable)
    built = Path(__file__).resolve().parent.parent / ENVIRONMENT / "bin" / "python"
    configured = os.environ.get("GLADIUS_LLAMA_PYTHON")
    candidate = Path(configured).expanduser() if configured else built
    return candidate if candidate.is_file() else None


def can_quantize() -> bool:
    """Whether the GGUF types that this program does not write itself can be made here."""
    return find_quantizer() is not None or find_python() is not None


def quantizer_missing(type_name: str) -> str:
    """The message for a type that only llama.cpp can write, where llama.cpp is not installed."""
    return (
        f"type {type_name} needs llama.cpp's quantizer, which was not found: build llama.cpp "
        "(https://github.com/ggml-org/llama.cpp) and set LLAMA_CPP to its folder, or "
        f"{HOW_TO_INSTALL}; f32, f16, bf16 and q8_0 work without it"
    )


def find_quantizer() -> Path | None:
    """llama-quantize: in LLAMA_CPP (a folder, or the program), on PATH, or in ~/llama.cpp."""
    candidates = []
    if configured := os.environ.get("LLAMA_CPP"):
        path = Path(configured).expanduser()
        candidates += [path, path / "llama-quantize", path / "build" / "bin" / "llama-quantize"]
        candidates += [path / "bin" / "llama-quantize"]
    if on_path := shutil.which("llama-quantize"):
        candidates.append(Path(on_path))
    home = Path.home() / "llama.cpp"
    candidates += [home / "build" / "bin" / "llama-quantize", home / "llama-quantize"]
    return next((p for p in candidates if p.is_file() and os.access(p, os.X_OK)), None)
