"""The Models screen: the experts, which of their files are on disk, and keys to download, verify,
add and remove them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.binding import Binding
from textual.message import Message
from textual.widgets import DataTable

from engine.errors import GladiusError
from gladius_tui.app.screens.expert_browser import ExpertBrowser
from gladius_tui.app.screens.starter_guide import StarterGuide
from gladius_tui.app.widgets.notice import Tone
from gladius_tui.format import size

if TYPE_CHECKING:
    from gladius_tui.launch import Ended

_DONE = {"--verify": "all files on disk were verified", "add": "added", "remove": "removed"}


@dataclass(eq=False)
class FilesRemoved(Message, bubble=False):
    """An expert's files were removed, or could not be."""

    text: str
    tone: Tone


class ExpertRemoval(ExpertBrowser):
    """The key that removes an expert's files, and running a `models` command."""

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
            self.run_command(["models", "remove", name], "removing")
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

    def run_command(self, argv: list[str], progress: str) -> None:
        """Run a `models` command; it is a job of the same kind as downloads."""
        if "download" in self.gladius.watcher.jobs:
            self.notice.show("a download is running; try again when it has ended", "warning")
        elif self.gladius.launch(argv):
            self.notice.show(f"{progress}…")


class ModelsScreen(ExpertRemoval, StarterGuide):
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
        self.run_command(["models", "--verify"], "verifying the files on disk; see the top bar")

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
        self.run_command(["models", "add", *answer], "checking it")

    def launch_ended(self, ended: Ended) -> bool:
        if ended.argv[0] != "models":
            return super().launch_ended(ended)
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
