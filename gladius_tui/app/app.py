"""Owns the app: its modes, the keys that hold everywhere, and its way out.

It starts jobs as processes of their own and watches them (`watch`); it never does their work, and
imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import ClassVar

from textual.app import App
from textual.binding import Binding

from engine.workspace import Workspace
from gladius_tui.app import modes
from gladius_tui.app.screen import GladiusScreen
from gladius_tui.app.watch import JobsChanged, JobWatcher


class GladiusApp(App[int]):
    """The app on one root. `mode` is shown first."""

    TITLE = "GLADIUS"
    MODES = {mode.name: mode.screen for mode in modes.MODES}  # noqa: RUF012
    BINDINGS: ClassVar = [
        *(
            Binding(
                f"{mode.key},{mode.function_key}",
                f"app.switch_mode('{mode.name}')",
                mode.title,
                show=False,
                tooltip=mode.about,
                id=f"mode.{mode.name}",
            )
            for mode in modes.MODES
        ),
        Binding("q", "quit", "Quit", id="app.quit"),
    ]

    def __init__(self, ws: Workspace, mode: str = "dashboard") -> None:
        super().__init__()
        self.ws = ws
        self.watcher = JobWatcher(ws, self)
        self._first = mode

    def on_mount(self) -> None:
        self.switch_mode(self._first)
        self.call_after_refresh(self.watcher.start)

    def on_unmount(self) -> None:
        self.watcher.stop()

    def on_jobs_changed(self, _: JobsChanged) -> None:
        if isinstance(screen := self.screen, GladiusScreen):
            screen.job_changed()

    def job_line(self) -> str:
        """What runs, in a line."""
        return "  ".join(
            f"● {info.job} {info.status}  pid {info.pid}" for info in self.watcher.jobs.values()
        )


def run_app(ws: Workspace, mode: str = "dashboard") -> int:
    """Run the app in this terminal; returns the exit code."""
    return GladiusApp(ws, mode).run() or 0
