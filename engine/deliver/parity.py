"""Owns whether a GGUF file says what its model says: structure and tensors, token ids, logits.

Each comparison is a CheckDone event, so that the exporter and the validator tell the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from engine.run.events import CheckDone


def _nothing(doing: str, done: float, total: float | None) -> None:
    """The report of a caller that has none."""


Report = Callable[[str, float, float | None], None]
"""Told what is being done, how much of it is done and of how much (None: unknown); may raise to
end the comparison."""


def parity_checks(gguf: Path, folder: Path, report: Report = _nothing) -> Iterator[CheckDone]:
    """Compare a GGUF file with the model in `folder`, a row at a time.

    Rows, in this order: `gguf_structure` (metadata against config.json and tokenizer.json),
    `gguf_tensors` (every tensor against the safetensors), `gguf_tokens` (token ids on nasty
    strings), `gguf_logits` (against transformers: largest and mean difference, top-1, KL; a skip
    that says how to get llama-cpp-python where it is not installed). All are structural.

    Raises GladiusError when either side can't be read at all.
    """
    raise NotImplementedError
    yield
