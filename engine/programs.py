"""Find optional external programs: llama-quantize, and a Python with llama-cpp-python."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

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
