"""Write small text files in the formats that training text may have."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest


def write_lines(path: Path, count: int, size: int = 200, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = [f"{n} " + "word " * rng.randrange(1, size) for n in range(count)]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return texts


def write_parquet(path: Path, columns: dict[str, list], rows_per_group: int) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table(columns), path, row_group_size=rows_per_group)
