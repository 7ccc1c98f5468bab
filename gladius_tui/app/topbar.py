"""Owns the top line: the six modes, and what runs, in words that fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Static

from gladius_tui.app.modes import MODES

if TYPE_CHECKING:
    from engine.run.events import Job
    from engine.run.state import RunState
    from gladius_tui.app.app import GladiusApp
    from gladius_tui.app.watch import JobInfo

# A sign and a colour for each state; the word says it too.
_SIGNS = {
    "running": ("●", "$success"),
    "paused": ("‖", "$warning"),
    "stalled": ("!", "$error"),
    "stopped": ("!", "$error"),
    "ending": ("○", "$foreground"),
}
_VERBS = {
    "train": "training",
    "download": "downloading",
    "export": "exporting",
    "validate": "validating",
}
_RESTS = {
    "not_started": ("○", "$foreground", "nothing runs"),
    "paused": ("○", "$warning", "stopped at step {step}"),
    "completed": ("✓", "$success", "completed at step {step}"),
    "failed": ("✗", "$error", "failed at step {step}"),
}


def job_content(info: JobInfo, width: int) -> Content:
    """A running job in about `width` cells."""
    sign, colour = _SIGNS.get(info.status, ("●", "$foreground"))
    word = _VERBS[info.job] if info.status == "running" else f"{info.job} {info.status}"
    parts = [word]
    if info.job == "train" and info.step:
        parts.append(f"step {info.step:,}")
    if info.progress is not None:
        parts.append(f"{info.progress:.0%}")
    parts.append(f"pid {info.pid}")
    while len(parts) > 1 and sum(map(len, parts)) + 2 * len(parts) + 2 > width:
        parts.pop()
    return Content.assemble((sign, colour), " ", "  ".join(parts))


def rest_content(state: RunState | None) -> Content:
    """What the state says while nothing runs."""
    if state is None:
        return Content("")
    status = "failed" if state.status == "training" else state.status
    sign, colour, text = _RESTS[status]
    return Content.assemble((sign, colour), " ", text.format(step=f"{state.step:,}"))


def jobs_content(jobs: Mapping[Job, JobInfo], state: RunState | None, width: int) -> Content:
    """All that runs, or where the run stands, in about `width` cells."""
    if not jobs:
        return rest_content(state)
    room = width // len(jobs) - 2
    texts = [job_content(info, room) for info in jobs.values()]
    return Content("   ").join(texts)


class TopBar(Horizontal):
    """` GLADIUS   1 Models ... [4 Dashboard] ...   ● training  step 12,480  pid 4127`."""

    DEFAULT_CSS = """
    TopBar {
        height: 1;
        background: $panel;
        #brand { width: auto; padding: 0 2 0 1; text-style: bold; color: $text-accent; }
        .mode { width: auto; padding: 0 1; color: $foreground 70%; pointer: pointer; }
        .mode:hover { color: $foreground; background: $foreground 10%; }
        .mode.-on { color: $foreground; text-style: bold; padding: 0; }
        #job { width: 1fr; text-align: right; padding: 0 1; text-wrap: nowrap; }
    }
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield Static("GLADIUS", id="brand")
        for mode in MODES:
            on = mode.name == self._mode
            tab = Static(
                f"[{mode.key} {mode.title}]" if on else f"{mode.key} {mode.title}",
                markup=False,
                classes="mode -on" if on else "mode",
                id=f"to-{mode.name}",
            )
            tab.tooltip = f"{mode.about}  ({mode.key} or {mode.function_key.upper()})"
            yield tab
        yield Static(id="job")

    def on_resize(self) -> None:
        """Below 100 columns the modes that are not shown are only their numbers."""
        wide = self.size.width >= 100
        for mode in MODES:
            if mode.name != self._mode:
                text = f"{mode.key} {mode.title}" if wide else mode.key
                self.query_one(f"#to-{mode.name}", Static).update(text)
        self.set_class(not wide, "-narrow")
        self.show_jobs()

    def show_jobs(self) -> None:
        """Write what runs."""
        app = cast("GladiusApp", self.app)
        used = 14 + sum(len(mode.title) + 4 for mode in MODES) if self.size.width >= 100 else 44
        room = max(12, self.size.width - used)
        self.query_one("#job", Static).update(jobs_content(app.watcher.jobs, app.state, room))

    def on_click(self, event) -> None:
        if event.widget is not None and (name := event.widget.id or "").startswith("to-"):
            self.app.run_worker(self.app.run_action(f"app.mode('{name[3:]}')"))
