"""Run all comparisons of a GGUF file with its model, in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from engine.events import CheckDone
from engine.export.parity.comparison import Comparison
from engine.export.parity.logits import check_logits
from engine.export.parity.structure import check_structure
from engine.export.parity.tensors import check_tensors
from engine.export.parity.tokens import check_tokens
from engine.export.progress import ReportProgress, no_progress
from engine.gguf_types import GgufType


def parity_checks(
    gguf: Path,
    folder: Path,
    report: ReportProgress = no_progress,
    expected_type: GgufType | None = None,
) -> Iterator[CheckDone]:
    """Compare a GGUF file with the model in `folder`, one check at a time.

    expected_type: the type that the file must have; None allows any.

    The checks, in order: `gguf_structure` (metadata against config.json and tokenizer.json),
    `gguf_tensors` (every tensor against the safetensors), `gguf_tokens` (token ids of difficult
    strings), `gguf_logits` (against transformers; skipped where llama-cpp-python is not installed).
    All are structural. After a failed `gguf_structure` the others are left out.

    Raises GladiusError when either side cannot be read.
    """
    comparison = Comparison(gguf, folder, report)
    structure = check_structure(comparison, expected_type)
    yield structure
    if structure.verdict == "fail":
        return
    yield check_tensors(comparison)
    yield check_tokens(comparison)
    yield check_logits(comparison)
