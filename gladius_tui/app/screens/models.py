"""The Models screen: the experts, which of their files are on disk, and keys to download, verify,
add and remove them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.message import Message
from textual.widgets import DataTable

from engine.errors import GladiusError
from gladius_tui.app.job_messages import JobAttached, JobDetached
from gladius_tui.app.model.inventory import Inventory, InventoryRead, read_inventory
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.widgets.expert_details import ExpertDetails
from gladius_tui.app.widgets.expert_table import ExpertTable
from gladius_tui.app.widgets.notice import Notice, Tone
from gladius_tui.format import size

if TYPE_CHECKING:
    from gladius_tui.launch import Ended

_DONE = {"--verify": "all files on disk were verified", "add": "added", "remove": "removed"}


@dataclass(eq=False)
class FilesRemoved(Message, bubble=False):
    """An expert's files were removed, or could not be."""

    text: str
    tone: Tone


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


class ModelsScreen(ExpertBrowser):
    """The experts, with keys to download, verify, add and remove them."""

    MODE = "models"
    CSS_PATH = "models.tcss"
    BINDINGS: ClassVar = [
        Binding("d", "download", "Download", id="models.download",
                tooltip="Download this expert, on the Download screen"),
        Binding("v", "verify", "Verify", id="models.verify",
                tooltip="Hash every file on disk and compare with what was downloaded"),
        Binding("x", "remove", "Remove", id="models.remove",
                tooltip="Delete this expert's files; asks first"),
        Binding("a", "add", "Add", id="models.add",
                tooltip="Add an expert of your own to gladius.toml"),
        Binding("r", "refresh", "Refresh", show=False, id="models.refresh",
                tooltip="Look up the files again"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._refused: tuple[list[str], str] = ([], "")
        """What was typed into Add and not added yet, and why it was refused."""

    def about(self) -> str:
        return (
            "The experts that can teach the student, and which of their files are on disk. "
            "✓ Ready: all files are there with the sizes that were verified; ◐ Partial: some are; "
            "○ Missing: none."
        )

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self._download(event.row_key.value)  # the cursor may have moved on

    def action_refresh(self) -> None:
        self.read_inventory()

    def action_download(self) -> None:
        """Download the selected expert, on the Download screen."""
        self._download(self.selected)

    def _download(self, name: str | None) -> None:
        if name is None:
            return
        busy = "download" in self.gladius.watcher.jobs
        self.gladius.action_mode("download")
        if not busy:
            self.gladius.launch(["download", name])

    def action_verify(self) -> None:
        self._launch(["models", "--verify"], "verifying the files on disk; see the top bar")

    def action_remove(self) -> None:
        inventory, name = self.inventory, self.selected
        if inventory is None or name is None:
            return
        status = inventory.statuses[name]
        if inventory.specs[name].source in ("folder", "gguf"):
            self._confirm_removal(name, "It is removed from gladius.toml; its files are kept.")
        elif not status.present_bytes:
            self.notice.show(f"no files of {name} are on disk", "warning")
        elif busy := [job for job in ("train", "download") if job in self.gladius.watcher.jobs]:
            self.notice.show(f"{busy[0]} is running and may use it; stop that first", "warning")
        else:
            text = f"Deletes {size(status.present_bytes)} from tmp/. It can be downloaded again."
            self._confirm_removal(name, text)

    def _confirm_removal(self, name: str, text: str) -> None:
        from gladius_tui.app.dialogs.choice import Choice

        answers = [("keep", "Keep it"), ("remove", "Remove it")]
        dialog = Choice(f"Remove {name}", text, answers)
        self.app.push_screen(dialog, partial(self._remove, name))

    def _remove(self, name: str, answer: str | None) -> None:
        if answer != "remove" or self.inventory is None:
            return
        if self.inventory.specs[name].source in ("folder", "gguf"):
            self._launch(["models", "remove", name], "removing")
        else:
            self._remove_files(name)

    @work(thread=True, group="remove", exit_on_error=False)
    def _remove_files(self, name: str) -> None:
        from engine.workspace import expert_dir, remove_entry

        ws = self.gladius.ws
        try:
            for path in (expert_dir(ws, name), ws.downloads_dir / name):
                if path.exists() or path.is_symlink():
                    remove_entry(path)
        except (OSError, GladiusError) as error:
            self.post_message(FilesRemoved(f"{name}: {error}", "error"))
            return
        self.post_message(FilesRemoved(f"{name} was removed", "done"))

    def on_files_removed(self, message: FilesRemoved) -> None:
        self.notice.show(message.text, message.tone)
        self.read_inventory()

    def action_add(self) -> None:
        from gladius_tui.app.dialogs.text_input import TextInput

        text = "It is checked, then written to gladius.toml of this root."
        values, error = self._refused
        fields = [
            ("name", "a short name, such as mine"),
            ("from", "org/model, ./folder or file.gguf"),
        ]
        dialog = TextInput("Add an expert", text, fields, values=values, error=error)
        self.app.push_screen(dialog, self._add)

    def _add(self, answer: list[str] | None) -> None:
        if answer is None:
            return
        self._refused = (answer, "")
        self._launch(["models", "add", *answer], "checking it")

    def _launch(self, argv: list[str], progress: str) -> None:
        """Run a `models` command; it is a job of the same kind as downloads."""
        if "download" in self.gladius.watcher.jobs:
            self.notice.show("a download is running; try again when it has ended", "warning")
        elif self.gladius.launch(argv):
            self.notice.show(f"{progress}…")

    def launch_ended(self, ended: Ended) -> bool:
        if ended.argv[0] != "models":
            return False
        adding = ended.argv[1] == "add"
        if ended.error:
            hint = "; press a to correct it" if adding else ""
            self.notice.show(ended.error + hint, "error")
        else:
            self.notice.show(_DONE.get(ended.argv[1], "done"), "done")
        if adding:
            self._refused = (list(ended.argv[2:]), ended.error) if ended.error else ([], "")
        self.read_inventory()
        return True
