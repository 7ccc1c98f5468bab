"""Owns the first and the last line: the six modes and what runs, and the keys of the screen.

Each is one widget that draws its line: they are there at once, however much stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.content import Content
from textual.events import Click
from textual.screen import Screen
from textual.widget import Widget

from engine.run.job import JOBS
from gladius_tui.app.screens.modes import MODES

if TYPE_CHECKING:
    from engine.events import Job
    from engine.run.state import RunState
    from gladius_tui.app.app import GladiusApp
    from gladius_tui.app.screens.base import GladiusScreen
    from gladius_tui.app.watch import JobInfo

# A sign and a colour for each state; the word says it too.
_SIGNS = {
    "running": ("●", "$text-success"),
    "paused": ("‖", "$text-warning"),
    "stalled": ("!", "$text-error"),
    "stopped": ("!", "$text-error"),
    "ending": ("○", "$foreground"),
}
_RESTS = {
    "not_started": ("○", "$foreground 60%", "nothing runs"),
    "paused": ("○", "$text-warning", "stopped at step {step}"),
    "completed": ("✓", "$text-success", "completed at step {step}"),
    "failed": ("✗", "$text-error", "failed at step {step}"),
}
_WIDE = 100


def job_content(info: JobInfo, width: int) -> Content:
    """A running job in at most about `width` cells."""
    sign, colour = _SIGNS.get(info.status, ("●", "$foreground"))
    word = JOBS[info.job].activity if info.status == "running" else f"{info.job} {info.status}"
    if info.job == "train" and info.doing and info.status == "running":
        word = "preparing"  # what its share is of, the Dashboard tells
    if info.job == "train" and not info.preset and not info.step:
        word = "starting"
    if info.doing.endswith("verifying") and info.status == "running":
        word = "verifying"
    parts = [word]
    if info.job == "train" and info.step:
        parts.append(f"step {info.step:,}")
    if info.progress is not None:
        parts.append(f"{info.progress:.0%}")
    parts.append(f"pid {info.pid}")
    while len(parts) > 1 and sum(map(len, parts)) + 2 * len(parts) > width:
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
    """All that runs, or where the run stands, in at most about `width` cells."""
    if not jobs:
        return rest_content(state)
    room = width // len(jobs) - 2
    return Content("   ").join([job_content(info, room) for info in jobs.values()])


class Line(Widget):
    """A line of text, parts of which can be clicked."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    Line { height: 1; background: $panel; text-wrap: nowrap; text-overflow: clip; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._targets: list[tuple[int, int, str]] = []
        """First and last cell of what can be clicked, and the action that it stands for."""

    def write(self, line: Content, part: Content, action: str = "") -> Content:
        """The line with a part more; clicking it does `action`."""
        start = line.cell_length
        if action:
            self._targets.append((start, start + part.cell_length - 1, action))
        return line.append(part)

    async def on_click(self, event: Click) -> None:
        for start, stop, action in self._targets:
            if start <= event.x <= stop:
                await self.app.run_action(action, self.screen)


class TopBar(Line):
    """` GLADIUS   1 Models ... [4 Dashboard] ...   ● training  step 12,480  pid 4127`."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def render(self) -> Content:
        app = cast("GladiusApp", self.app)
        width = self.size.width
        self._targets.clear()
        line = Content.styled(" GLADIUS  ", "bold $text-accent")
        for mode in MODES:
            # Below 100 columns the other modes are only their numbers.
            text = f"{mode.key} {mode.title}" if width >= _WIDE else mode.key
            if mode.name == self._mode:
                line = line.append(Content.styled(f"[{mode.key} {mode.title}]", "bold"))
            else:
                part = Content.styled(f" {text} ", "$foreground 75%")
                line = self.write(line, part, f"app.mode('{mode.name}')")
        room = width - line.cell_length - 3
        jobs = jobs_content(app.watcher.jobs, app.state, room)
        gap = max(2, width - line.cell_length - jobs.cell_length - 1)
        return line.append(" " * gap).append(jobs).append(" ")


class Cover(Screen[None]):
    """The first thing that is painted: the top line of the screen that comes next."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def compose(self) -> ComposeResult:
        yield TopBar(self._mode)


class KeyBar(Line):
    """` p Pause  c Checkpoint ...  ? Help  ^p Commands  q Quit`, from the bindings that hold."""

    DEFAULT_CSS = "KeyBar { dock: bottom; }"

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, _: Screen) -> None:
        if self.screen.app.screen is self.screen:
            self.refresh()

    def render(self) -> Content:
        self._targets.clear()
        items = self._items()
        own, always = items[:-3], items[-3:]
        room = self.size.width - 1 - sum(self._item(*item).cell_length + 2 for item in always)
        line = Content(" ")
        for item in own:
            part = self._item(*item)
            if line.cell_length + part.cell_length + 2 > room:
                line = line.append("…  ")
                break
            line = self.write(line, part, item[2] if item[3] else "").append("  ")
        for item in always:
            line = self.write(line, self._item(*item), item[2]).append("  ")
        return line

    def _items(self) -> list[tuple[str, str, str, bool]]:
        """Key, description, action and whether it is possible now; the last three hold anywhere."""
        items: dict[str, tuple[str, str, str, bool]] = {}
        last: dict[str, tuple[str, str, str, bool]] = {}
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if not binding.show or binding.action in items:
                continue
            key = self.app.get_key_display(binding)
            action, called = binding.action, binding.description
            if node is self.app:
                if action not in last or len(key) < len(last[action][0]):
                    last[action] = (key, called, f"app.{action}", enabled)
            elif node is not self.screen:
                items[action] = (key, called, f"focused.{action}", enabled)
            elif called := cast("GladiusScreen", self.screen).called(action, called):
                items[action] = (key, called, action, enabled)
        palette = ("^p", "Commands", "app.command_palette", True)
        ends = [last[action] for action in sorted(last)]  # help, leave
        return [*items.values(), *ends[:1], palette, *ends[1:]]

    @staticmethod
    def _item(key: str, description: str, action: str, enabled: bool) -> Content:
        item = Content.assemble(
            (key, "bold $footer-key-foreground"), " ", (description, "$footer-foreground")
        )
        return item if enabled else item.stylize("dim")
