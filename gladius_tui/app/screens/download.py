"""Owns the Download screen: which experts are fetched, how far they are, and what that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from engine.errors import GladiusError
from engine.events import AnyEvent, LogLine, Pause, Progress, Resume, RunStarted
from gladius_tui.app.model.texts import bar, eta, padded, rate, share_of
from gladius_tui.app.screens.job import JobScreen
from gladius_tui.app.screens.models import MARKS, Shelf, ShelfRead, read_shelf
from gladius_tui.app.watch import JobDetached
from gladius_tui.app.widgets.table import Cell, Table, coloured
from gladius_tui.format import size

if TYPE_CHECKING:
    from engine.experts.registry import ExpertSpec, ExpertStatus

_LINES = 200


class DownloadScreen(JobScreen):
    """The queue with a bar an expert, what happens in each file, and what is said about it."""

    MODE = "download"
    JOB = "download"
    FILTERS = True
    CSS = """
    #download { height: 1fr; }
    #queue { height: auto; max-height: 60%; min-height: 5; }
    #total { height: 4; }
    #lower { height: 1fr; min-height: 3; }
    #lower > * { width: 1fr; }
    """
    BINDINGS: ClassVar = [
        Binding("space", "mark", "Mark", id="download.mark",
                tooltip="Choose this expert for the download, or leave it out"),
        Binding("s", "start", "Start", id="download.start",
                tooltip="Fetch what is marked"),
        Binding("a", "all", "All", id="download.all",
                tooltip="Mark all that is not here, the optional ones too"),
        Binding("f", "force", "Again", id="download.force",
                tooltip="Fetch what is marked anew, even where it is ready (asks)"),
        Binding("p", "pause", "Pause", id="download.pause",
                tooltip="Stand still; what is fetched stays"),
        Binding("p", "resume", "Go on", id="download.resume", tooltip="Go on where it stands"),
        Binding("c", "cancel", "Cancel", id="download.cancel",
                tooltip="End the download; what is fetched stays"),
        Binding("r", "retry", "Retry", id="download.retry",
                tooltip="Start the last download again; what is there is not fetched twice"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self._shelf: Shelf | None = None
        self._marked: set[str] | None = None
        self._names: list[str] = []
        self._force = False
        self._log: list[str] = []
        self._failed: set[str] = set()
        self._filter = ""

    def compose_body(self) -> ComposeResult:
        with Vertical(id="download"):
            yield Table(id="queue", title="Queue")
            total = Static(id="total", classes="pane")
            total.border_title = "In all"
            yield total
            with Horizontal(id="lower"):
                with VerticalScroll(id="said", classes="pane") as said:
                    said.border_title = "Log"
                    yield Static(id="said-text", markup=False)
                with VerticalScroll(id="files", classes="pane") as files:
                    files.border_title = "Files"
                    yield Static(id="files-text")
        yield self.notice

    def on_mount(self) -> None:
        self._read()

    def on_screen_resume(self) -> None:
        self._read()
        self.focus_main()

    def focus_main(self) -> None:
        self.query_one(Table).focus()

    def about(self) -> str:
        return (
            "Fetches experts, up to four files at once, verified before they count as ready. What "
            "is fetched stays when it is cancelled, and is not fetched again. The download goes on "
            "when this app is closed."
        )

    def command_line(self) -> list[str]:
        words = ["download", *self._chosen()]
        return words

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        match action:
            case "mark" | "all":
                return not self.live
            case "start" | "force":
                return not self.live and not self.launching
            case "retry":
                return bool(self._names) and not self.live and not self.launching
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

    # Reading

    @work(thread=True, exclusive=True, group="shelf", exit_on_error=False)
    def _read(self) -> None:
        try:
            answer = ShelfRead(read_shelf(self.gladius.ws))
        except (GladiusError, OSError) as error:
            answer = ShelfRead(None, str(error))
        self.post_message(answer)

    def on_shelf_read(self, message: ShelfRead) -> None:
        if message.shelf is None:
            self.notice.say(message.error, "error")
            return
        self._shelf = message.shelf
        if self._marked is None:
            self._marked = {
                name
                for name, spec in message.shelf.specs.items()
                if spec.required and message.shelf.statuses[name].state != "ready"
            }
        self.show()

    def begin(self) -> None:
        self._log, self._failed = [], set()

    def take(self, event: AnyEvent) -> None:
        match event:
            case RunStarted():
                names = event.config.get("names")
                self._names = [str(name) for name in names] if isinstance(names, list) else []
                self._force = bool(event.config.get("force"))
                if self.live:
                    self._marked = set(self._names)
            case LogLine():
                self._log = [*self._log[-_LINES:], event.text]
                if event.level == "error":
                    self._failed.add(event.text.partition(":")[0].split(" ")[0])

    def on_job_detached(self, _: JobDetached) -> None:
        self._read()

    def filter_changed(self, text: str) -> None:
        self._filter = text
        self.show()

    # Showing

    def show(self) -> None:
        shelf = self._shelf
        if shelf is None or not self.composed:
            return
        width = self.size.width
        header = ["", "expert", "state", "", "size>" if width < 100 else "done>"]
        header += ["speed>", "eta>"] if width >= 80 else []
        header += ["doing"] if width >= 110 else []
        rows: dict[str, list[Cell]] = {}
        for name, spec in shelf.specs.items():
            if self._filter in f"{name} {spec.title} {spec.repo}".lower():
                rows[name] = self._row(spec, shelf.statuses[name], width)
        self.query_one("#queue", Table).fill(header, rows)
        self._show_total(shelf, width)
        self._show_files()
        said = self._log or ([] if self.live else self._hints(shelf))
        self.query_one("#said-text", Static).update("\n".join(said))
        self.query_one("#said", VerticalScroll).scroll_end(animate=False)

    def _hints(self, shelf: Shelf) -> list[str]:
        lacking = [
            spec.title
            for name, spec in shelf.specs.items()
            if spec.required and shelf.statuses[name].state != "ready"
        ]
        if not lacking:
            return ["All required experts are here. Press 3 to train."]
        return [
            f"Missing: {', '.join(lacking)}.",
            "Mark with space, start with s. SmolLM2 comes with pip and needs no account.",
        ]

    def _show_files(self) -> None:
        """A bar for each file, those that are fetched now first; none while none is."""
        files = [p for task, p in self.tasks.items() if task.count(":") == 2] if self.live else []
        pane = self.query_one("#files", VerticalScroll)
        pane.display = bool(files)
        room = max(8, (pane.size.width or 60) - 50)
        rows = [
            Content.assemble(
                padded(file.label.partition(": ")[2], 26),
                " ",
                bar(share_of(file), room, "$success" if file.finished else "$primary"),
                f" {size(file.done):>10} {rate(file):>12}",
            )
            for file in sorted(files, key=lambda file: file.finished)
        ]
        self.query_one("#files-text", Static).update(Content("\n").join(rows))

    def _progress(self, name: str) -> Progress | None:
        """What is told of an expert as a whole: that it is hashed, or fetched."""
        verifying = self.tasks.get(f"verify:{name}")
        if verifying is not None and not verifying.finished:
            return verifying
        return self.tasks.get(f"download:{name}")

    def _row(self, spec: ExpertSpec, status: ExpertStatus, width: int) -> list[Cell]:
        name = spec.name
        marked = name in (self._marked or ())
        progress = self._progress(name) if name in self._names or self.live else None
        working = self.live and progress is not None and not progress.finished
        mark, colour = MARKS[status.state]
        share = 1.0 if status.state == "ready" else 0.0
        if progress is not None and (working or self.live):
            share = share_of(progress) or 0.0
            if progress.finished:
                mark, colour = MARKS["ready"]
            elif working:
                sign = "#" if progress.task.startswith("verify") else "↓"
                mark, colour = f"{sign} {share:.0%}", "primary"
        elif status.state == "partial" and status.expected_bytes:
            share = min(0.99, status.present_bytes / status.expected_bytes)
        if self.live and marked and progress is None and status.state != "ready":
            mark, colour = "· Queued", "dim"
        if name in self._failed and status.state != "ready":
            mark, colour = "✗ Failed", "error"
        room = 10 if width < 100 else 24 if width < 150 else 40
        full = round(share * room)
        meter = coloured(self.app, "▇" * full, "primary" if share < 1 else "success")
        meter.append("▁" * (room - full), style="dim")
        told = progress if self.live else None  # what has ended now is not read anew yet
        done = told.done if told else status.present_bytes
        of = (told.total if told else 0) or status.expected_bytes
        cells: list[Cell] = [
            "●" if marked else coloured(self.app, "○", "dim"),
            spec.title,
            coloured(self.app, mark, colour),
            meter,
            "–" if not of else size(of) if width < 100 else f"{size(done)} of {size(of)}",
        ]
        if width >= 80:
            cells += [rate(progress), eta(progress)] if working and progress else ["", ""]
        if width >= 110:
            cells.append(self._doing(name) if working else "")
        return cells

    def _doing(self, name: str) -> str:
        """What happens to an expert now."""
        progress = self._progress(name)
        if progress is None or progress.task.startswith("verify"):
            return "verifying"
        files = [
            task.split(":", 2)[2]
            for task, file in self.tasks.items()
            if task.startswith(f"download:{name}:") and not file.finished
        ]
        return ", ".join(files[:2]) or "publishing"

    def _show_total(self, shelf: Shelf, width: int) -> None:
        """The sum over what is marked (or fetched now), against the disk."""
        chosen = [name for name in shelf.specs if name in (self._marked or ())]
        done = total = 0.0
        speed = 0.0
        for name in chosen:
            status, progress = shelf.statuses[name], self._progress(name)
            expected = float(status.expected_bytes or shelf.specs[name].size_bytes)
            present = float(min(status.present_bytes, expected))
            if self.live and progress is not None:
                expected = progress.total or expected
                present = expected if progress.finished else progress.done
                speed += 0.0 if progress.finished else progress.rate or 0.0
            done, total = done + present, total + expected
        need = max(0.0, total - done)
        room = max(10, min(60, width - 60))
        share = done / total if total else None
        line = Content.assemble(
            bar(share, room),
            f"  {share:.0%}" if share is not None else "  –",
            f"  {size(done)} of {size(total)}" if total else "  nothing is marked",
        )
        if self.live and speed:
            from gladius_tui.format import duration

            line = line.append(f"  {size(speed)}/s  {duration(need / speed)} left")
        told = f"{len(chosen)} marked · needs {size(need)} more · {size(shelf.free)} free"
        if need > shelf.free:
            line = line.append(Content.styled(f"\n✗ {told}: make room", "$text-error"))
        else:
            line = line.append(f"\n{told}")
        self.query_one("#total", Static).update(line)

    # Doing

    def _chosen(self) -> list[str]:
        """What is marked, in the registry's order."""
        names = self._shelf.specs if self._shelf else []
        return [name for name in names if name in (self._marked or ())]

    def action_mark(self) -> None:
        name = self.query_one("#queue", Table).key
        if name is not None and not self.live:
            self._marked = (self._marked or set()) ^ {name}
            self.show()

    def on_data_table_row_selected(self, _: Table.RowSelected) -> None:
        self.action_mark()

    def action_all(self) -> None:
        if self._shelf is not None and not self.live:
            statuses = self._shelf.statuses
            self._marked = {name for name in statuses if statuses[name].state != "ready"}
            self.show()

    def action_start(self) -> None:
        if not (names := self._chosen()):
            self.notice.say("nothing is marked; choose with space, or press a for all", "warning")
            return
        self.start(["download", *names])

    def action_force(self) -> None:
        if not (names := self._chosen()):
            self.notice.say("nothing is marked; choose with space", "warning")
            return
        from gladius_tui.app.dialogs.choice import Choice

        def answered(answer: str | None) -> None:
            if answer == "again":
                self.start(["download", *names, "--force"])

        self.app.push_screen(
            Choice(
                "Download again",
                f"{', '.join(names)}: what is here is replaced once the new files verify.",
                [("keep", "Keep what is here"), ("again", "Download again")],
            ),
            answered,
        )

    def action_retry(self) -> None:
        self.start(["download", *self._names, *(["--force"] if self._force else [])])

    def action_pause(self) -> None:
        self.gladius.watcher.ask(self, "download", Pause())

    def action_resume(self) -> None:
        self.gladius.watcher.ask(self, "download", Resume())

    def action_cancel(self) -> None:
        self.ask_stop()
