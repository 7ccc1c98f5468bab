"""Owns finding llama.cpp (a Python with llama-cpp-python, or the llama-quantize program) and asking
it: token ids, logits, another type. Each question is a process of its own (`llama_child`).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import GladiusError, MissingError
from engine.gguf_types import GgufType
from engine.programs import find_python, find_quantizer

_CHILD = Path(__file__).with_name("llama_child.py")
HOW_TO_GET = "install llama-cpp-python (`make llama-cpp` builds it in an environment of its own)"


class LlamaCppFailed(GladiusError):
    """llama.cpp gave no answer; `crashed`: a signal ended it, which says little of the file."""

    def __init__(self, text: str, crashed: bool) -> None:
        super().__init__(text)
        self.crashed = crashed


def token_ids(
    python: Path, gguf: Path, texts: Sequence[str], *, special: bool, tick: Callable[[], None]
) -> list[list[int]]:
    """llama.cpp's ids of each text; raises LlamaCppFailed, and what `tick` raises."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "ids.json"
        request = {"texts": list(texts), "special": special}
        _ask(python, "tokenize", gguf, answer, tick, **request)
        return json.loads(answer.read_bytes())


def logits(
    python: Path,
    gguf: Path,
    sequences: Sequence[Sequence[int]],
    *,
    threads: int,
    tick: Callable[[], None],
) -> np.ndarray:
    """(tokens of all sequences, vocabulary) float32; raises as `token_ids` does."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "logits.npy"
        lists = [list(ids) for ids in sequences]
        _ask(python, "logits", gguf, answer, tick, sequences=lists, threads=threads)
        return np.load(answer)


def quantize(
    source: Path, target: Path, wanted: GgufType, *, threads: int, tick: Callable[[], None]
) -> str:
    """Make `target` of type `wanted` out of `source` with llama.cpp; by what it was made.

    Raises MissingError where neither llama-quantize nor llama-cpp-python is found, LlamaCppFailed
    when it fails, and what `tick` raises.
    """
    if (program := find_quantizer()) is not None:
        name = wanted.name.upper()
        _run([str(program), str(source), str(target), name, str(threads)], "", tick)
        return str(program)
    if (python := find_python()) is not None:
        number = wanted.file_type
        _ask(python, "quantize", source, target, tick, file_type=number, threads=threads)
        return "llama-cpp-python"
    raise MissingError(quantizer_missing(wanted.name))


def quantizer_missing(name: str) -> str:
    """The line that says how a type that isn't our own can be had."""
    return (
        f"{name} is made by llama.cpp's quantiser, which is not here: build llama.cpp "
        "(https://github.com/ggml-org/llama.cpp) and set LLAMA_CPP to its folder, or "
        f"{HOW_TO_GET}; f32, f16, bf16 and q8_0 need nothing"
    )


def _ask(
    python: Path, ask: str, gguf: Path, answer: Path, tick: Callable[[], None], **rest: Any
) -> None:
    request = {"ask": ask, "gguf": str(gguf), "answer": str(answer), **rest}
    _run([str(python), "-I", str(_CHILD)], json.dumps(request), tick)


def _run(command: list[str], given: str, tick: Callable[[], None]) -> None:
    """Run it to its end, ticking; whatever `tick` raises ends it first."""
    with tempfile.TemporaryFile() as heard, tempfile.TemporaryFile() as asked:
        asked.write(given.encode())
        asked.seek(0)
        try:
            process = subprocess.Popen(command, stdin=asked, stdout=heard, stderr=heard)
        except OSError as error:
            raise LlamaCppFailed(f"{command[0]} can't be run: {error.strerror}", False) from error
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
        if process.returncode == 0:
            return
        heard.seek(max(0, heard.tell() - 4000))
        lines = [line for line in heard.read().decode(errors="replace").splitlines() if line]
        why = " ".join(lines[-1].split())[:200] if lines else ""
    if process.returncode < 0:
        raise LlamaCppFailed(f"signal {-process.returncode} ended llama.cpp {why}".strip(), True)
    raise LlamaCppFailed(f"llama.cpp failed: {why}", False)
