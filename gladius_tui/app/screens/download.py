"""The Download screen: select experts, download them, and watch the progress."""

from __future__ import annotations

from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from engine.errors import GladiusError
from engine.events import AnyEvent, Pause, Resume
from gladius_tui.app.model.download_state import DownloadState
from gladius_tui.app.model.inventory import InventoryRead, read_inventory
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.widgets.download_files import DownloadFiles
from gladius_tui.app.widgets.download_queue import DownloadQueue
from gladius_tui.app.widgets.download_total import DownloadTotal


class DownloadProgress(JobScreen):
    """The experts with a bar each, the totals, the log, and the files in progress."""

    JOB = "download"
    FILTERS = True

    def __init__(self) -> None:
        super().__init__()
        self.downloads = DownloadState()
        self._filter = ""

    def compose_body(self) -> ComposeResult:
        with Vertical(id="download"):
            yield DownloadQueue()
            yield DownloadTotal()
            with Horizontal(id="lower"):
                with VerticalScroll(id="log", classes="pane") as log:
                    log.border_title = "Log"
                    yield Static(id="log-text", markup=False)
                yield DownloadFiles()
        yield self.notice

    def on_mount(self) -> None:
        self._read_inventory()

    def on_screen_resume(self) -> None:
        self._read_inventory()
        self.focus_main()

    def focus_main(self) -> None:
        self.query_one(DownloadQueue).focus()

    @work(thread=True, exclusive=True, group="inventory", exit_on_error=False)
    def _read_inventory(self) -> None:
        try:
            answer = InventoryRead(read_inventory(self.gladius.ws))
        except (GladiusError, OSError) as error:
            answer = InventoryRead(None, str(error))
        self.post_message(answer)

    def on_inventory_read(self, message: InventoryRead) -> None:
        if message.inventory is None:
            self.notice.show(message.error, "error")
            return
        self.downloads.set_inventory(message.inventory)
        self.show()

    def run_begun(self) -> None:
        self.downloads.log, self.downloads.failed = [], set()

    def take_event(self, event: AnyEvent) -> None:
        self.downloads.live = self.live
        self.downloads.take(event)

    def job_detached(self) -> None:
        super().job_detached()
        self._read_inventory()

    def filter_changed(self, text: str) -> None:
        self._filter = text
        self.show()

    def show(self) -> None:
        state = self.downloads
        if state.inventory is None or not self.composed:
            return
        state.live, state.tasks = self.live, self.tasks
        width = self.size.width
        self.query_one(DownloadQueue).show(state, self._filter, width)
        self.query_one(DownloadTotal).show(state.totals(), width)
        self.query_one(DownloadFiles).show(state.files())
        log = state.log or ([] if self.live else state.hints())
        self.query_one("#log-text", Static).update("\n".join(log))
        self.query_one("#log", VerticalScroll).scroll_end(animate=False)


class DownloadScreen(DownloadProgress):
    """The progress of the download, with keys to select experts and to control it."""

    MODE = "download"
    CSS_PATH = "download.tcss"
    BINDINGS: ClassVar = [
        Binding("space", "mark", "Select", id="download.mark",
                tooltip="Select this expert for the download, or deselect it"),
        Binding("s", "start", "Start", id="download.start",
                tooltip="Download the selected experts"),
        Binding("a", "all", "All", id="download.all",
                tooltip="Select all experts that are not ready, the optional ones too"),
        Binding("f", "force", "Re-download", id="download.force",
                tooltip="Download the selected experts again, even if they are ready; asks first"),
        Binding("p", "pause", "Pause", id="download.pause",
                tooltip="Pause; downloaded parts are kept"),
        Binding("p", "resume", "Resume", id="download.resume", tooltip="Resume the download"),
        Binding("c", "cancel", "Cancel", id="download.cancel",
                tooltip="Stop the download; downloaded parts are kept"),
        Binding("r", "retry", "Retry", id="download.retry",
                tooltip="Start the last download again; nothing is downloaded twice"),
    ]  # fmt: skip

    def about(self) -> str:
        return (
            "Downloads experts, up to four files at a time; an expert is ready when its files are "
            "verified. Downloaded parts are kept on cancel and not downloaded again. The download "
            "keeps running when this app is closed."
        )

    def command_line(self) -> list[str]:
        return ["download", *self.downloads.selected]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        idle = not self.live and not self.launching
        match action:
            case "mark" | "all":
                return not self.live
            case "start" | "force":
                return idle
            case "retry":
                return bool(self.downloads.names) and idle
            case "cancel":
                return self.live
            case "pause":
                return self.live and not self._paused
            case "resume":
                return self.live and self._paused
        return super().check_action(action, parameters)

    @property
    def _paused(self) -> bool:
        info = self.gladius.watcher.jobs.get("download")
        return info is not None and info.status == "paused"

    def action_mark(self) -> None:
        self._mark(self.query_one(DownloadQueue).key)

    def _mark(self, name: str | None) -> None:
        if name is not None and not self.live:
            self.downloads.selection = (self.downloads.selection or set()) ^ {name}
            self.show()

    def on_data_table_row_selected(self, event: DownloadQueue.RowSelected) -> None:
        self._mark(event.row_key.value)  # the cursor may have moved on

    def action_all(self) -> None:
        inventory = self.downloads.inventory
        if inventory is not None and not self.live:
            self.downloads.selection = {
                name for name, status in inventory.statuses.items() if status.state != "ready"
            }
            self.show()

    def action_start(self) -> None:
        if names := self._require_selection():
            self.start(["download", *names])

    def action_force(self) -> None:
        if not (names := self._require_selection()):
            return
        from gladius_tui.app.dialogs.choice import Choice

        def answered(answer: str | None) -> None:
            if answer == "again":
                self.start(["download", *names, "--force"])

        text = f"{', '.join(names)}: files on disk are replaced once the new ones are verified."
        answers = [("keep", "Keep the files on disk"), ("again", "Download again")]
        self.app.push_screen(Choice("Download again", text, answers), answered)

    def _require_selection(self) -> list[str]:
        """The selected experts; a notice if there is none."""
        names = self.downloads.selected
        if not names:
            text = "nothing is selected; select with space, or press a for all"
            self.notice.show(text, "warning")
        return names

    def action_retry(self) -> None:
        force = ["--force"] if self.downloads.force else []
        self.start(["download", *self.downloads.names, *force])

    def action_pause(self) -> None:
        self.gladius.watcher.send(self, "download", Pause())

    def action_resume(self) -> None:
        self.gladius.watcher.send(self, "download", Resume())

    def action_cancel(self) -> None:
        self.request_stop()
