"""Owns the Models screen: the experts, what of them lies here, and what is done about one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.widgets import DataTable, Static

from engine.errors import GladiusError
from gladius_tui.app.screens.base import GladiusScreen
from gladius_tui.app.screens.job import Notice, Tone
from gladius_tui.app.watch import JobAttached, JobDetached
from gladius_tui.app.widgets.table import Cell, Table, coloured, facts
from gladius_tui.format import size

if TYPE_CHECKING:
    from engine.experts.registry import ExpertSpec, ExpertStatus
    from gladius_tui.launch import Ended

MARKS = {
    "ready": ("✓ Ready", "success"),
    "partial": ("◐ Partial", "warning"),
    "missing": ("○ Missing", "dim"),
}


class Shelf(msgspec.Struct, frozen=True):
    """The experts as they were found."""

    specs: dict[str, ExpertSpec]
    statuses: dict[str, ExpertStatus]
    files: dict[str, list[tuple[str, int]]]
    """By expert: its files, with their bytes."""
    free: int
    """Free bytes of the disk."""


class ShelfRead(Message, bubble=False):
    """The experts were looked at, or could not be (`error`)."""

    def __init__(self, shelf: Shelf | None, error: str = "") -> None:
        self.shelf = shelf
        self.error = error
        super().__init__()


class Told(Message, bubble=False):
    """Something that was done in a thread has a word to say."""

    def __init__(self, text: str, tone: Tone) -> None:
        self.text = text
        self.tone: Tone = tone
        super().__init__()


def read_shelf(ws) -> Shelf:
    """Look at all experts (names and sizes only); GladiusError for a wrong gladius.toml."""
    from engine.experts.registry import expert_path, expert_status, load_experts
    from engine.hardware import disk_free

    specs = load_experts(ws)
    statuses = {name: expert_status(ws, spec) for name, spec in specs.items()}
    files: dict[str, list[tuple[str, int]]] = {}
    for name, spec in specs.items():
        path = expert_path(ws, spec)
        entries = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
        files[name] = [(entry.name, entry.stat().st_size) for entry in entries if entry.is_file()]
    return Shelf(specs, statuses, files, disk_free(ws.root))


class ModelsScreen(GladiusScreen):
    """A table of the experts, and the details of one."""

    MODE = "models"
    FILTERS = True
    CSS = """
    #models { height: 1fr; }
    #models #table { width: 3fr; }
    #models #details { width: 2fr; }
    .-w60 #models { layout: vertical; }
    .-w60 #models #table { width: 100%; height: auto; max-height: 50%; }
    .-w60 #models #details { width: 100%; }
    """
    BINDINGS: ClassVar = [
        Binding("d", "download", "Download", id="models.download",
                tooltip="Fetch this expert, on the Download screen"),
        Binding("v", "verify", "Verify", id="models.verify",
                tooltip="Hash every file that is here and compare with what was downloaded"),
        Binding("x", "remove", "Remove", id="models.remove",
                tooltip="Delete this expert's files (asks)"),
        Binding("a", "add", "Add", id="models.add",
                tooltip="Add an expert of your own to gladius.toml"),
        Binding("r", "refresh", "Refresh", show=False, id="models.refresh",
                tooltip="Look again at what lies here"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.notice = Notice()
        self._shelf: Shelf | None = None
        self._filter = ""
        self._shown: list[str] = []

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="models"):
            yield Table(id="table", title="Experts")
            with VerticalScroll(classes="pane", id="details") as details:
                details.border_title = "Details"
                yield Static("looking…", id="detail-text")
        yield self.notice

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "download")
        self.action_refresh()

    def on_unmount(self) -> None:
        self.gladius.watcher.unsubscribe(self)

    def on_screen_resume(self) -> None:
        self.action_refresh()
        self.focus_main()

    def focus_main(self) -> None:
        self.query_one(Table).focus()

    def about(self) -> str:
        return (
            "The experts that can teach, and what of them lies here. ✓ Ready: all files are there "
            "with the sizes that were verified; ◐ Partial: some are; ○ Missing: none."
        )

    def command_line(self) -> list[str]:
        return ["models"]

    # Reading

    def action_refresh(self) -> None:
        self._read()

    @work(thread=True, exclusive=True, group="shelf", exit_on_error=False)
    def _read(self) -> None:
        try:
            answer = ShelfRead(read_shelf(self.gladius.ws))
        except (GladiusError, OSError) as error:
            answer = ShelfRead(None, str(error))
        self.post_message(answer)

    def on_shelf_read(self, message: ShelfRead) -> None:
        if not self.composed:
            return
        if message.shelf is None:
            self.notice.say(message.error, "error")
            self.query_one("#detail-text", Static).update("Mend gladius.toml, then press r.")
            return
        self._shelf = message.shelf
        self._fill()

    def on_job_attached(self, _: JobAttached) -> None:
        self.action_refresh()

    def on_job_detached(self, _: JobDetached) -> None:
        self.action_refresh()

    def filter_changed(self, text: str) -> None:
        self._filter = text
        self._fill()

    # Showing

    def on_resize(self) -> None:
        self._fill()

    def theme_changed(self) -> None:
        self._fill()

    def _fill(self) -> None:
        """Write the table anew, the cursor on the same expert as before."""
        shelf = self._shelf
        if shelf is None or not self.composed:
            return
        table = self.query_one(Table)
        wide, broad = self.size.width >= 100, self.size.width >= 150
        header = ["state", "expert", "size>", "weight>"]
        header += ["repository"] if broad else []
        header += [""] if wide else []
        header += ["licence"] if broad else []
        rows: dict[str, list[Cell]] = {}
        for name in shelf.specs:
            if self._matches(name):
                rows[name] = self._row(shelf.specs[name], shelf.statuses[name], wide, broad)
        table.fill(header, rows)
        ready = sum(status.state == "ready" for status in shelf.statuses.values())
        present = sum(status.present_bytes for status in shelf.statuses.values())
        table.border_subtitle = (
            f"{ready} of {len(shelf.specs)} ready · {size(present)} here · {size(shelf.free)} free"
        )
        self._describe()

    def _row(self, spec: ExpertSpec, status: ExpertStatus, wide: bool, broad: bool) -> list[Cell]:
        mark, colour = MARKS[status.state]
        share = ""
        if status.state == "partial" and status.expected_bytes:
            share = f" {min(0.99, status.present_bytes / status.expected_bytes):.0%}"
        cells: list[Cell] = [
            coloured(self.app, f"{mark}{share}", colour),
            spec.title,
            size(status.expected_bytes) if status.expected_bytes else "–",
            f"{spec.weight:.2f}".removesuffix("0"),
        ]
        if broad:
            cells.append(spec.repo)
        if wide:
            kind = "required" if spec.required else "optional"
            cells.append(kind + (", gated" if spec.gated else ""))
        if broad:
            cells.append(spec.license or "–")
        return cells

    def _matches(self, name: str) -> bool:
        assert self._shelf is not None
        spec = self._shelf.specs[name]
        return (
            self._filter
            in " ".join([name, spec.title, spec.repo, spec.license, *spec.capabilities]).lower()
        )

    @property
    def chosen(self) -> str | None:
        """The expert under the cursor."""
        return self.query_one(Table).key

    def on_data_table_row_highlighted(self, _: DataTable.RowHighlighted) -> None:
        self._describe()

    def on_data_table_row_selected(self, _: DataTable.RowSelected) -> None:
        self.action_download()

    def _describe(self) -> None:
        if not self.composed:
            return
        text = self.query_one("#detail-text", Static)
        shelf, name = self._shelf, self.chosen
        if shelf is None or name is None:
            text.update("Nothing holds that text. Press esc to see all.")
            return
        spec, status = shelf.specs[name], shelf.statuses[name]
        self.query_one("#details").border_title = spec.title
        mark, colour = MARKS[status.state]
        gated = "yes: accept its licence on its page, set HF_TOKEN" if spec.gated else "no"
        revision = f" @ {spec.revision}" if spec.source == "hub" else ""
        rows: list[tuple[str, Cell]] = [
            ("state", coloured(self.app, mark, colour)),
            ("", status.detail),
            ("name", name),
            ("from", f"{spec.repo}{revision}"),
            ("licence", spec.license or "not told"),
            ("gated", gated),
            ("parameters", f"{spec.parameters:,}" if spec.parameters else "not told"),
            ("weight", f"{spec.weight:g} (share of budget and mix)"),
            ("teaches", ", ".join(word.replace("_", " ") for word in spec.capabilities)),
            ("disk", f"{size(status.present_bytes)} of {size(status.expected_bytes)}"),
        ]
        if shelf.files[name]:
            rows += [("", ""), ("files", "")]
            rows += [(size(count).rjust(10), file) for file, count in shelf.files[name]]
        if status.state != "ready" and spec.source in ("hub", "wheel"):
            fetch = f"press d to download it ({size(spec.size_bytes)})"
            rows += [("", ""), ("next", "press v to verify it" if status.unverified else fetch)]
        text.update(facts(rows))

    # Doing

    def on_told(self, message: Told) -> None:
        self.notice.say(message.text, message.tone)
        self.action_refresh()

    def action_download(self) -> None:
        """Fetch it on the Download screen."""
        name = self.chosen
        if name is None:
            return
        if self.gladius.watcher.jobs.get("download") is not None:
            self.gladius.action_mode("download")
            return
        self.gladius.action_mode("download")
        self.gladius.launch(["download", name])

    def action_verify(self) -> None:
        self._launch(["models", "--verify"], "hashing what is here; its progress stands at the top")

    def _launch(self, argv: list[str], saying: str) -> None:
        """Run a `models` command; it is a job of its own, of the kind that downloads are."""
        if "download" in self.gladius.watcher.jobs:
            self.notice.say("a download runs; try again when it has ended", "warning")
        elif self.gladius.launch(argv):
            self.notice.say(f"{saying}…")

    def launch_ended(self, ended: Ended) -> bool:
        if ended.argv[0] != "models":
            return False
        if ended.error:
            self.notice.say(ended.error, "error")
        else:
            told = {"--verify": "all that is here verifies", "add": "added", "remove": "removed"}
            self.notice.say(told.get(ended.argv[1], "done"), "done")
        self.action_refresh()
        return True

    def action_remove(self) -> None:
        shelf, name = self._shelf, self.chosen
        if shelf is None or name is None:
            return
        notice = self.notice
        spec, status = shelf.specs[name], shelf.statuses[name]
        if spec.source in ("folder", "gguf"):
            self._ask_remove(name, "It is taken out of gladius.toml; its files stay.")
        elif not status.present_bytes:
            notice.say(f"nothing of {name} lies here", "warning")
        elif busy := [job for job in ("train", "download") if job in self.gladius.watcher.jobs]:
            notice.say(f"{busy[0]} runs and may use it; stop that first", "warning")
        else:
            told = f"{size(status.present_bytes)} are deleted from tmp/. It can be fetched again."
            self._ask_remove(name, told)

    def _ask_remove(self, name: str, told: str) -> None:
        from gladius_tui.app.dialogs.choice import Choice

        self.app.push_screen(
            Choice(f"Remove {name}", told, [("keep", "Keep it"), ("remove", "Remove it")]),
            partial(self._remove_if, name),
        )

    def _remove_if(self, name: str, answer: str | None) -> None:
        if answer != "remove" or self._shelf is None:
            return
        if self._shelf.specs[name].source in ("folder", "gguf"):
            self._launch(["models", "remove", name], "removing")
        else:
            self._remove(name)

    @work(thread=True, group="remove", exit_on_error=False)
    def _remove(self, name: str) -> None:
        from engine.workspace import remove_entry

        ws = self.gladius.ws
        try:
            for path in (ws.expert_dir(name), ws.downloads_dir / name):
                if path.exists() or path.is_symlink():
                    remove_entry(path)
        except (OSError, GladiusError) as error:
            self.post_message(Told(f"{name}: {error}", "error"))
            return
        self.post_message(Told(f"{name} is removed", "done"))

    def action_add(self) -> None:
        from gladius_tui.app.dialogs.choice import Ask

        self.app.push_screen(
            Ask(
                "Add an expert",
                "It is checked, then written into gladius.toml of this root.",
                [
                    ("name", "a short name, such as mine"),
                    ("from", "org/model, ./folder or file.gguf"),
                ],
            ),
            self._add,
        )

    def _add(self, answer: list[str] | None) -> None:
        if answer is None:
            return
        if not all(answer):
            self.notice.say("a name and a place are needed; press a again", "warning")
            return
        self._launch(["models", "add", *answer], "checking it")
