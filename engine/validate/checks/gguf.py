"""Owns the check that a GGUF file can be read at all, before its content is looked at. Whether it
says what its model says is `parity`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.checkpoint.tensor_files import hash_file
from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.validate.checks.check import row, short


def check_gguf_file(path: Path, beat: Callable[[str], None]) -> tuple[CheckDone, str]:
    """The file is whole, as far as its own header tells; also its SHA-256."""
    digest = hash_file(path, lambda: beat(f"reading {path.name}"))
    try:
        GGUFExpert(path).config()
        value, ok = f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB", True
    except Exception as error:  # whatever half a file makes of the reader
        value, ok = short(error), False
    done = row(
        "structural",
        "files",
        "file is readable",
        ok,
        value,
        "The header can be read, and the file is as long as its tensors need.",
        bound="header, metadata, length",
    )
    return done, digest
