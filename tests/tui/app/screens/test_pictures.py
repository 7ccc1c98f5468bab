"""Pictures of the screens, at three sizes and in two themes.

Update them with --snapshot-update after looking at what has changed.
"""

from __future__ import annotations

import pytest

from engine import hardware
from engine.events import LogLine, Progress, RunEnded
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.model import preflight
from tests.support.driving import until
from tests.tui.app.screens.test_screens import CHECKS, REPORT, record

GIB = 1 << 30
LOOKS = (
    ((80, 24), "textual-dark"),
    ((120, 36), "textual-light"),
    ((200, 50), "textual-dark"),
)


@pytest.fixture(autouse=True)
def same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures do not depend on the machine."""
    monkeypatch.setattr(hardware, "disk_free", lambda path: 310 * GIB)
    monkeypatch.setattr(hardware.Sampler, "_gpus", lambda self: ())
    monkeypatch.setattr(preflight, "disk_free", lambda path: 310 * GIB)
    monkeypatch.setattr(preflight, "total_ram", lambda: 128 * GIB)
    monkeypatch.setattr(preflight, "available_ram", lambda: 106 * GIB)
    monkeypatch.setattr(preflight, "has_bf16", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.fixture
def known_root(root: Workspace) -> Workspace:
    """A root with past reports, and a partial expert."""
    folder = root.downloads_dir / "qwen"
    folder.mkdir(parents=True)
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(GIB)
    record(root, "validate", *CHECKS, REPORT, RunEnded(status="completed"))
    task = Progress(task="export:writing", label="writing", done=10, total=10, finished=True)
    record(root, "export", task, LogLine(text="q8_0"), RunEnded(status="completed", seconds=3))
    return root


@pytest.mark.parametrize(("size", "theme"), LOOKS)
@pytest.mark.parametrize("mode", ["models", "download", "train", "export", "validate"])
def test_a_screen_looks_as_it_did(known_root, snap_compare, mode, size, theme):
    app = GladiusApp(known_root, mode)
    app.theme = theme

    async def settle(pilot) -> None:
        await until(pilot, lambda: mode in app.screens and app.state is not None)
        if mode == "train":
            await until(pilot, lambda: app.screens["train"].assessment is not None)
        await pilot.pause(0.5)

    assert snap_compare(app, terminal_size=size, run_before=settle)


def test_help_looks_as_it_did(known_root, snap_compare):
    app = GladiusApp(known_root, "models")

    async def settle(pilot) -> None:
        await until(pilot, lambda: "models" in app.screens and app.state is not None)
        await pilot.press("question_mark")
        await pilot.pause(0.3)

    assert snap_compare(app, terminal_size=(100, 40), run_before=settle)
