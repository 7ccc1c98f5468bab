"""Names in the checkpoints folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.checkpoint import layout
from tests.support.paths import REPO


def test_checkpoints_are_listed_by_step_without_links_files_and_other_names(tmp_path: Path) -> None:
    for name in ("step-000000020", "step-1000000000", "step-12", "best-000000020", "old-1"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-000000020" / layout.PROTECTED).touch()
    (tmp_path / "step-000000007").touch()
    (tmp_path / "step-000000008").symlink_to(tmp_path / "step-000000020")
    found = layout.list_checkpoints(tmp_path)
    assert [(info.step, info.protected) for info in found] == [(20, True), (10**9, False)]
    assert [path.name for path in layout.best_checkpoints(tmp_path)] == ["best-000000020"]
    assert layout.list_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("text", "step"),
    [
        *[("1200", 1200), ("1,200", 1200), ("1_200", 1200), ("step-000001200", 1200)],
        *[("best", None), ("", None), ("-3", None), ("²", None)],
    ],
)
def test_a_step_is_parsed_as_people_write_it(text: str, step: int | None) -> None:
    assert layout.parse_step(text) == step


def test_a_written_name_is_found_again(tmp_path: Path) -> None:
    (tmp_path / layout.step_folder(12)).mkdir()
    (tmp_path / layout.best_folder(12)).mkdir()
    assert [info.step for info in layout.list_checkpoints(tmp_path)] == [12]
    assert len(layout.best_checkpoints(tmp_path)) == 1
    assert all(layout.is_of_run(path.name) for path in tmp_path.iterdir())
    assert not layout.is_of_run(layout.old_run_folder())


def test_the_layout_loads_no_torch() -> None:
    program = "import sys, engine.checkpoint.layout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=REPO).returncode == 0
