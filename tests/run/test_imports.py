"""The run room stays light: it never loads torch or transformers."""

from __future__ import annotations

import subprocess
import sys

from tests.support.paths import REPO


def test_the_run_room_imports_no_torch_and_no_transformers():
    modules = [f"engine.run.{path.stem}" for path in (REPO / "engine/run").glob("[a-z]*.py")]
    program = (
        f"import sys, importlib; [importlib.import_module(m) for m in {modules!r}];"
        "print([m for m in ('torch', 'transformers', 'numpy', 'textual') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert len(modules) >= 10 and answer.stdout.strip() == "[]"
