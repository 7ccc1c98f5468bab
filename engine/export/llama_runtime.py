"""Run llama.cpp (llama-cpp-python, or the llama-quantize program) for token ids, logits and
quantization. Each call runs in a separate process (`llama_child`).
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
from engine.programs import find_python, find_quantizer, quantizer_missing

_CHILD = Path(__file__).with_name("llama_child.py")


class LlamaCppFailed(GladiusError):
    """llama.cpp failed; `crashed`: it was killed by a signal, and the file may still be correct."""

    def __init__(self, text: str, crashed: bool) -> None:
        super().__init__(text)
        self.crashed = crashed


def token_ids(
    python: Path,
    gguf: Path,
    texts: Sequence[str],
    *,
    add_special_tokens: bool,
    tick: Callable[[], None],
) -> list[list[int]]:
    """llama.cpp's token ids of each text.

    `tick` is called while llama.cpp runs. Raises LlamaCppFailed, and what `tick` raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "ids.json"
        request = {"texts": list(texts), "add_special_tokens": add_special_tokens}
        _call(python, "tokenize", gguf=gguf, answer=answer, tick=tick, **request)
        return json.loads(answer.read_bytes())


def logits(
    python: Path,
    gguf: Path,
    sequences: Sequence[Sequence[int]],
    *,
    threads: int,
    tick: Callable[[], None],
) -> np.ndarray:
    """(N, V) float32 logits over the N tokens of all sequences; raises as `token_ids` does."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "logits.npy"
        request = {"sequences": [list(ids) for ids in sequences], "threads": threads}
        _call(python, "logits", gguf=gguf, answer=answer, tick=tick, **request)
        return np.load(answer)


def quantize(
    source: Path, target: Path, file_type: GgufType, *, threads: int, tick: Callable[[], None]
) -> str:
    """Write `source` as `target` of another type with llama.cpp; returns the program that was used.

    Raises MissingError where neither llama-quantize nor llama-cpp-python is found, LlamaCppFailed
    when it fails, and what `tick` raises.
    """
    if (program := find_quantizer()) is not None:
        name = file_type.name.upper()
        _run([str(program), str(source), str(target), name, str(threads)], "", tick)
        return str(program)
    if (python := find_python()) is not None:
        request = {"file_type": file_type.file_type, "threads": threads}
        _call(python, "quantize", gguf=source, answer=target, tick=tick, **request)
        return "llama-cpp-python"
    raise MissingError(quantizer_missing(file_type.name))


def _call(
    python: Path, ask: str, *, gguf: Path, answer: Path, tick: Callable[[], None], **rest: Any
) -> None:
    """Run llama_child.py with a request."""
    request = {"ask": ask, "gguf": str(gguf), "answer": str(answer), **rest}
    _run([str(python), "-I", str(_CHILD)], json.dumps(request), tick)


def _run(command: list[str], stdin: str, tick: Callable[[], None]) -> None:
    """Run a command to its end, calling `tick`; the process is killed when `tick` raises.

    Raises LlamaCppFailed with the last line of output when the command fails.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as input_file:
        input_file.write(stdin.encode())
        input_file.seek(0)
        try:
            process = subprocess.Popen(command, stdin=input_file, stdout=output, stderr=output)
        except OSError as error:
            raise LlamaCppFailed(
                f"{command[0]} cannot be started: {error.strerror}", crashed=False
            ) from error
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
        output.seek(max(0, output.tell() - 4000))
        lines = [line for line in output.read().decode(errors="replace").splitlines() if line]
        reason = " ".join(lines[-1].split())[:200] if lines else ""
    if process.returncode < 0:
        killed = f"llama.cpp was killed by signal {-process.returncode} {reason}".strip()
        raise LlamaCppFailed(killed, crashed=True)
    raise LlamaCppFailed(f"llama.cpp failed: {reason}", crashed=False)
