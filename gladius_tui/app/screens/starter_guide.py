"""The first steps on an empty root, one key each: fetch an expert, start a small run, watch it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.widgets import Static

from gladius_tui.app.model.inventory import STARTER_PRESET
from gladius_tui.app.screens.expert_browser import ExpertBrowser
from gladius_tui.format import size

if TYPE_CHECKING:
    from gladius_tui.launch import Ended

_START = ("train", "--preset", STARTER_PRESET)


class StarterGuide(ExpertBrowser):
    """A browser of experts with the guide above it until the root has a run."""

    BINDINGS: ClassVar = [
        Binding("f", "guide_fetch", "Fetch", id="models.guide_fetch",
                tooltip="First step: fetch the expert of the small preset"),
        Binding("n", "guide_start", "Start nano", id="models.guide_start",
                tooltip="Second step: start the small preset; fetches its expert if needed"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._start_after_download = False

    def compose_body(self) -> ComposeResult:
        yield Static(id="guide", classes="pane", markup=False)
        yield from super().compose_body()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("guide_fetch", "guide_start"):
            return self.guides
        return super().check_action(action, parameters)

    @property
    def guides(self) -> bool:
        """Whether the root has no run yet."""
        state = self.gladius.state
        running = "train" in self.gladius.watcher.jobs
        return state is not None and state.status == "not_started" and not running

    def jobs_changed(self) -> None:
        super().jobs_changed()
        self.show_guide()

    def show(self) -> None:
        super().show()
        self.show_guide()

    def show_guide(self) -> None:
        """Redraw the guide, or hide it."""
        if not self.composed or self.inventory is None:
            return
        guide = self.query_one("#guide", Static)
        guide.display = self.guides
        guide.border_title = "First steps"
        steps = [self._fetch_step(), ("n", f"start the preset {STARTER_PRESET}"), ("4", "watch it")]
        parts = [
            Content.assemble((key, "bold $text-primary"), " ", text) if key else Content(text)
            for key, text in steps
        ]
        guide.update(Content(" · ").join(parts))

    def _fetch_step(self) -> tuple[str, str]:
        """Key and text of the first step; without a key if it is done."""
        assert self.inventory is not None
        specs = self.inventory.specs
        if missing := self._missing():
            amount = sum(specs[name].size_bytes for name in missing)
            return "f", f"fetch {', '.join(specs[name].title for name in missing)} ({size(amount)})"
        here = ", ".join(specs[name].title for name in self.inventory.starter)
        return "", f"✓ {here} is here"

    def _missing(self) -> list[str]:
        """The experts of the small preset that are not ready."""
        inventory = self.inventory
        if inventory is None:
            return []
        return [name for name in inventory.starter if inventory.statuses[name].state != "ready"]

    def action_guide_fetch(self) -> None:
        if not (missing := self._missing()):
            self.notice.show("it is here already; press n to start", "done")
        elif "download" in self.gladius.watcher.jobs:
            self.notice.show("a download is running; see the top bar")
        elif self.gladius.launch(["download", *missing]):
            self.notice.show(f"fetching {', '.join(missing)}; see the top bar")

    def action_guide_start(self) -> None:
        if self._missing():
            self.action_guide_fetch()
            self._start_after_download = True
            self.notice.show("fetching its expert first; the run starts when it is here")
        else:
            self._start()

    def _start(self) -> None:
        self._start_after_download = False
        self.gladius.action_mode("train")  # it shows the start, then the Dashboard
        self.gladius.launch(_START)

    def launch_ended(self, ended: Ended) -> bool:
        if ended.job != "download" or ended.argv[0] != "download":
            return False
        starts, self._start_after_download = self._start_after_download, False
        if ended.error:
            self.notice.show(ended.error, "error")
            return True
        if starts:
            self._start()
        elif self.guides:
            self.notice.show("fetched; press n to start the preset nano", "done")
        return False
