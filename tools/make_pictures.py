"""Make the screenshots in docs/img: run the demo in a temporary root and save the app's screens as
SVG: `python tools/make_pictures.py [--root DIR]`.

With --root the screens of an existing root are saved, without starting a run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from engine.workspace import Workspace, expert_dir

REPO = Path(__file__).resolve().parent.parent
IMAGES = REPO / "docs" / "img"
SIZE = (120, 36)
TRAIN = [
    "--no-ui",
    "--quiet",
    "train",
    "--preset=demo",
    "--data=assets/conversations/demo.jsonl",
    "--set=data.max_answers=4",
    "--set=schedule.eval_interval=22",
]
LIVE_STEP = 150
"""The screenshots of the running demo are taken from this step on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, help="show this root without starting a run")
    root = parser.parse_args().root
    with tempfile.TemporaryDirectory(prefix="gladius-") as folder:
        # Use the app's default settings instead of the user's.
        os.environ["XDG_CONFIG_HOME"] = folder
        if root is not None:
            asyncio.run(take(Workspace.find(root), live=False))
            return
        ws = Workspace.find(Path(folder) / "gladius")
        ws.create()
        expert = REPO / "tmp" / "models" / "smollm2"
        if not expert.is_dir():
            sys.exit("error: the expert is missing; run: ./gladius_train download smollm2")
        shutil.copytree(expert, expert_dir(ws, "smollm2"))
        run = subprocess.Popen(command(ws, *TRAIN), cwd=REPO, start_new_session=True)
        try:
            asyncio.run(take(ws, live=True))
            run.wait()
            for words in (["export", "--type", "q8_0"], ["validate"]):
                subprocess.run(command(ws, "--no-ui", *words), cwd=REPO, check=False)
            asyncio.run(take(ws, live=False, only=("export", "validate")))
        finally:
            run.terminate()
            run.wait()


def command(ws: Workspace, *words: str) -> list[str]:
    """The command `gladius_train WORDS` on this root."""
    return [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), *words]


async def take(ws: Workspace, live: bool, only: tuple[str, ...] = ()) -> None:
    """Save screenshots of all screens (or of `only`) and of the lens."""
    from gladius_tui.app.app import GladiusApp
    from gladius_tui.app.model.modes import MODES
    from gladius_tui.app.screens.dashboard import DashboardScreen

    app = GladiusApp(ws, "dashboard")
    async with app.run_test(size=SIZE) as pilot:

        async def until(condition: Callable[[], object], seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while not condition():
                if time.monotonic() > deadline:
                    sys.exit(f"error: the app did not reach the expected state in {seconds:g} s")
                await pilot.pause(0.25)

        await until(lambda: isinstance(app.screen, DashboardScreen), 60)
        screen = app.screen
        assert isinstance(screen, DashboardScreen)
        await until(lambda: screen.run_view is not None, 600)
        if live:
            await until(lambda: screen.chart_pane.newest >= LIVE_STEP, 1800)
        await pilot.pause(2.0)
        for mode in MODES:
            if only and mode.name not in only:
                continue
            await pilot.press(mode.key)
            await pilot.pause(2.0)
            save(app, mode.name)
        if not only:
            await pilot.press("4", "v", *["right"] * 3)
            await pilot.pause(1.0)
            save(app, "lens")


def save(app, name: str) -> None:
    """Save docs/img/NAME.svg, without references to web fonts."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    svg = app.export_screenshot(title="GLADIUS", simplify=True)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    fonts = "font-family: Fira Code, DejaVu Sans Mono, monospace"
    svg = svg.replace("font-family: Fira Code, monospace", fonts)
    (IMAGES / f"{name}.svg").write_text(svg, encoding="utf-8")
    print(f"docs/img/{name}.svg")


if __name__ == "__main__":
    main()
