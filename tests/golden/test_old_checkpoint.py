"""A run stopped by an older version, with old names of modules and config fields, resumes exactly.

old_checkpoint.tar.gz is the root of that run: config, checkpoint, journal, history, tokenizer,
scored text and experts. make_old_checkpoint.py made it. The numbers of the steps after the stop
are in golden.json, with those of test_golden.py.
"""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest
from golden_run import Run, check

ARCHIVE = Path(__file__).with_name("old_checkpoint.tar.gz")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cwd").exists(), reason="the paths of the run are below /proc/self/cwd"
)


def test_it_resumes_with_the_numbers_of_the_old_version(tmp_path: Path, runtime: Path) -> None:
    """On a kind of processor without a record it must only complete."""
    with tarfile.open(ARCHIVE) as archive:
        safe = {"filter": "data"} if sys.version_info >= (3, 11, 4) else {}
        archive.extractall(tmp_path, **safe)
    about = json.loads((tmp_path / "about.json").read_text())
    run = Run(tmp_path, runtime)
    run.resume()
    assert run.steps() == list(range(about["stopped_at"] + 1, about["steps"] + 1))
    assert run.events[0]["seq"] == about["last_event"] + 1, "the old history is not continued"
    check("old_checkpoint", run.numbers())
