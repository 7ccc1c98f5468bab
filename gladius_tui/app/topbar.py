"""Owns the first and the last line: the six modes and what runs, and the keys of the screen.

Each is one widget that draws its line: they are there at once, however much stands between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.content import Content
from textual.screen import Screen
from textual.style import Style
from textual.widget import Widget

from gladius_tui.app.modes import MODES

if TYPE_CHECKING:
    from engine.run.events import Job
    from engine.run.state import RunState
    from gladius_tui.app.app import GladiusApp
    from gladius_tui.app.watch import JobInfo

# A sign and a colour for each state; the word says it too.
_SIGNS = {
    "running": ("●", "$text-success"),
    "paused": ("‖", "$text-warning"),
    "stalled": ("!", "$text-error"),
    "stopped": ("!", "$text-error"),
    "ending": ("○", "$foreground"),
}
_VERBS = {
    "train": "training",
    "download": "downloading",
    "export": "exporting",
    "validate": "validating",
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
    word = _VERBS[info.job] if info.status == "running" else f"{info.job} {info.status}"
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


def _click(action: str) -> Style:
    return Style.from_meta({"@click": action})


class TopBar(Widget):
    """` GLADIUS   1 Models ... [4 Dashboard] ...   ● training  step 12,480  pid 4127`."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    TopBar {
        height: 1; background: $panel; text-wrap: nowrap; text-overflow: clip;
        link-style: none; link-color: $foreground; link-style-hover: underline;
        link-background-hover: $panel; link-color-hover: $foreground;
    }
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def render(self) -> Content:
        app = cast("GladiusApp", self.app)
        width = self.size.width
        line = Content.styled(" GLADIUS  ", "bold $text-accent")
        for mode in MODES:
            if mode.name == self._mode:
                line = line.append(Content.styled(f"[{mode.key} {mode.title}]", "bold"))
                continue
            # Below 100 columns the other modes are only their numbers.
            text = f" {mode.key} {mode.title} " if width >= _WIDE else f" {mode.key} "
            shown = Content.styled(text, "$foreground 70%")
            line = line.append(shown.stylize(_click(f"app.mode('{mode.name}')")))
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


class KeyBar(Widget):
    """` p Pause  c Checkpoint ...  ? Help  ^p Commands  q Quit`, from the bindings that hold."""

    ALLOW_SELECT = False
    DEFAULT_CSS = """
    KeyBar {
        height: 1; dock: bottom; background: $panel; text-wrap: nowrap; text-overflow: clip;
        link-style: none; link-color: $foreground; link-style-hover: underline;
        link-background-hover: $panel; link-color-hover: $foreground;
    }
    """

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, _: Screen) -> None:
        if self.screen.app.screen is self.screen:
            self.refresh()

    def render(self) -> Content:
        items = [self._item(*item) for item in self._items()]
        own, always = items[:-3], items[-3:]
        room = self.size.width - 1 - sum(item.cell_length + 2 for item in always)
        line = Content(" ")
        for item in own:
            if line.cell_length + item.cell_length + 2 > room:
                line = line.append("…  ")
                break
            line = line.append(item).append("  ")
        for item in always:
            line = line.append(item).append("  ")
        return line

    def _items(self) -> list[tuple[str, str, str, bool]]:
        """Key, description, action and whether it is possible now; the last three hold anywhere."""
        items: dict[str, tuple[str, str, str, bool]] = {}
        last: dict[str, tuple[str, str, str, bool]] = {}
        for node, binding, enabled, _ in self.screen.active_bindings.values():
            if not binding.show or binding.action in items or binding.action in last:
                continue
            key = self.app.get_key_display(binding)
            action = binding.action
            if node is self.app:
                last[action] = (key, binding.description, f"app.{action}", enabled)
            else:
                kind = "screen" if node is self.screen else "focused"
                items[action] = (key, binding.description, f"{kind}.{action}", enabled)
        palette = ("^p", "Commands", "app.command_palette", True)
        ends = list(last.values())
        return [*items.values(), *ends[:1], palette, *ends[1:]]

    @staticmethod
    def _item(key: str, description: str, action: str, enabled: bool) -> Content:
        item = Content.assemble(
            (key, "bold $footer-key-foreground"), " ", (description, "$footer-foreground")
        )
        return item.stylize(_click(action)) if enabled else item.stylize("dim")
