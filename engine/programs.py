"""Owns where optional programs of others lie: llama.cpp's quantizer, and a Python that runs it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

ENVIRONMENT = ".venv-gguf"
"""Where `make llama-cpp` builds llama-cpp-python, beside the program."""


def find_python() -> Path | None:
    """A Python that imports llama-cpp-python: this one, GLADIUS_LLAMA_PYTHON, or the one of
    `make llama-cpp`; None where there is none."""
    if importlib.util.find_spec("llama_cpp") is not None:
        return Path(sys.executable)
    home = Path(__file__).resolve().parent.parent / ENVIRONMENT / "bin" / "python"
    named = os.environ.get("GLADIUS_LLAMA_PYTHON")
    candidate = Path(named).expanduser() if named else home
    return candidate if candidate.is_file() else None


def find_quantizer() -> Path | None:
    """llama-quantize: in LLAMA_CPP (a folder, or the program), on PATH, or in ~/llama.cpp."""
    places = []
    if named := os.environ.get("LLAMA_CPP"):
        place = Path(named).expanduser()
        places += [place, place / "llama-quantize", place / "build" / "bin" / "llama-quantize"]
        places += [place / "bin" / "llama-quantize"]
    if on_path := shutil.which("llama-quantize"):
        places.append(Path(on_path))
    home = Path.home() / "llama.cpp"
    places += [home / "build" / "bin" / "llama-quantize", home / "llama-quantize"]
    return next((p for p in places if p.is_file() and os.access(p, os.X_OK)), None)
