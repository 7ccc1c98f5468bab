"""The experts in a table, with the details of the selected one: the base of the Models screen."""

from __future__ import annotations

from textual import on, work
from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import DataTable

from engine.errors import GladiusError
from gladius_tui.app.job_messages import JobAttached, JobDetached
from gladius_tui.app.model.inventory import Inventory, InventoryRead, read_inventory
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.widgets.expert_details import ExpertDetails
from gladius_tui.app.widgets.expert_table import ExpertTable
from gladius_tui.app.widgets.notice import Notice


class ExpertBrowser(GladiusScreen):
    """A table of the experts, and the details of the selected one."""

    FILTERS = True

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self.inventory: Inventory | None = None
        self._filter = ""

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="models"):
            yield ExpertTable()
            yield ExpertDetails()
        yield self.notice

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "download")
        self.read_inventory()

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    def on_screen_resume(self) -> None:
        self.read_inventory()
        self.focus_main()

    @on(JobAttached)
    @on(JobDetached)
    def _on_download(self) -> None:
        self.read_inventory()

    def focus_main(self) -> None:
        self.query_one(ExpertTable).focus()

    @property
    def selected(self) -> str | None:
        """The expert under the cursor."""
        return self.query_one(ExpertTable).key

    @work(thread=True, exclusive=True, group="inventory", exit_on_error=False)
    def read_inventory(self) -> None:
        """Look up the experts' files."""
        try:
            answer = InventoryRead(read_inventory(self.gladius.ws))
        except (GladiusError, OSError) as error:
            answer = InventoryRead(None, str(error))
        self.post_message(answer)

    def on_inventory_read(self, message: InventoryRead) -> None:
        if not self.composed:
            return
        if message.inventory is None:
            self.notice.show(message.error, "error")
            self.query_one(ExpertDetails).show_text("Correct gladius.toml, then press r.")
            return
        self.inventory = message.inventory
        self.show()

    def filter_changed(self, text: str) -> None:
        self._filter = text
        self.show()

    def show(self) -> None:
        """Redraw the table and the details; the cursor stays on its expert."""
        if self.inventory is not None and self.composed:
            self.query_one(ExpertTable).show(self.inventory, self._filter, self.size.width)
            self.show_details()

    def theme_changed(self) -> None:
        self.show()

    def on_resize(self) -> None:
        self.show()

    @on(DataTable.RowHighlighted)
    def show_details(self) -> None:
        """Show the details of the selected expert."""
        if not self.composed:
            return
        details = self.query_one(ExpertDetails)
        if self.inventory is None or self.selected is None:
            details.show_text("No matches. Press esc to clear the filter.")
        else:
            details.show(self.inventory, self.selected)
