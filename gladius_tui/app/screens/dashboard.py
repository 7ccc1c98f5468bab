"""Owns the Dashboard: the training run, live or as the history tells it, and the keys that steer it
and its chart. What is known of the run is `board`'s, how it is written `panes`'.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.content import Content
from textual.widgets import Static

from engine.events import (
    AnyCommand,
    AnyEvent,
    Checkpoint,
    Pause,
    Resume,
    RunStarted,
    Stop,
)
from engine.run.view import LogEntry, RunView, Status
from gladius_tui.app.watch import CommandAnswered, JobAttached, JobDetached, JobEvents
from gladius_tui.app.widgets.dashboard_panes import SIDES, Pane, Panes, Tabs
from gladius_tui.app.widgets.metric_chart import ChartKeys
from gladius_tui.app.widgets.panes import summary_line
from gladius_tui.app.widgets.partial_refresh import is_behind

if TYPE_CHECKING:
    from gladius_tui.app.dialogs.lens import Lens

wall_clock = time.time
"""What ages are measured by."""
_DRAW_SECONDS = 0.25
"""Between two drawings, at least."""
_MOST_SECONDS = 4.0
"""Between two drawings where the line is slow."""
_AGE_SECONDS = 10.0
"""After which ages such as `6 min ago` are looked at, when nothing else is new."""

EMPTY = """\
No run yet.

Press 3 to choose a config and start one; the preset nano needs no GPU, and its expert comes
with pip (press 2 to fetch it). Runs that are started elsewhere show up here by themselves."""


class DashboardScreen(ChartKeys):
    """The training run."""

    MODE = "dashboard"
    BINDINGS: ClassVar = [
        Binding("p", "pause", "Pause", id="dashboard.pause",
                tooltip="Stand still after this step, or go on"),
        Binding("c", "checkpoint", "Checkpoint", id="dashboard.checkpoint",
                tooltip="Save a checkpoint after this step"),
        Binding("s", "stop", "Stop", id="dashboard.stop",
                tooltip="End with a checkpoint; asks once"),
        Binding("f", "finish", "Finish", id="dashboard.finish",
                tooltip="Decay the learning rate, then save the model; asks once"),
        Binding("r", "resume", "Resume", id="dashboard.resume",
                tooltip="Go on with the run that has ended, from its newest checkpoint"),
        *ChartKeys.KEYS,
        Binding("v", "lens", "Lens", id="dashboard.lens",
                tooltip="The student's next tokens beside the expert's, position by position"),
        Binding("a", "abilities", "Abilities", id="dashboard.abilities",
                tooltip="What student and experts can do, in the log's place; or the log again"),
        Binding("tab", "tab(1)", "Next pane", show=False, priority=True, id="dashboard.next_pane",
                tooltip="The next pane, where only one has room"),
        Binding("shift+tab", "tab(-1)", "Former pane", show=False, priority=True,
                id="dashboard.former_pane", tooltip="The pane before"),
    ]  # fmt: skip
    DEFAULT_CSS = """
    DashboardScreen {
        #notice { display: none; width: 100%; height: 100%; content-align: center middle;
                  text-align: center; color: $foreground 70%; padding: 1 4; }
        &.-empty #notice { display: block; }
        &.-empty Panes { display: none; }
        Panes {
            layout: grid;
            grid-size: 3 4;
            grid-columns: 33 1fr 30;
            grid-rows: 1fr 1fr 8 5;
        }
        #run-pane, #chart-pane, #hardware-pane { row-span: 2; }
        #able-pane { display: none; }
        Panes.-able #hardware-pane { row-span: 1; }
        Panes.-able #able-pane { display: block; }
        .part {
            height: 100%;
            padding: 0 1;
            border: round $foreground 25%;
            border-title-color: $foreground 80%;
            border-title-style: bold;
            border-subtitle-color: $foreground 55%;
        }
        #tabs { display: none; height: 1; padding: 0 1; }
        #chart-pane { padding: 0 1 0 0; }
        #log-pane, #abilities-pane { column-span: 3; }
        #abilities-pane, &.-abilities #log-pane { display: none; }
        &.-abilities #abilities-pane { display: block; }
        &.-h30 Panes { grid-rows: 1fr 8 7; }
        #log-pane, #abilities-pane { column-span: 3; }
        #abilities-pane, &.-abilities #log-pane { display: none; }
        &.-abilities #abilities-pane { display: block; }
        &.-h30 Panes { grid-rows: 1fr 1fr 8 7; }
        &.-w160 Panes { grid-columns: 42 1fr 42; }
        &.-w160.-h30 Panes { grid-rows: 1fr 1fr 9 10; }
        &.-w60 Panes { layout: vertical; }
        &.-w60 #tabs { display: block; }
        &.-w60 .side { display: none; height: 11; }
        &.-w60 #abilities-pane { display: none; }
        &.-w60 .side.-chosen, &.-w60 #log-pane.-chosen, &.-w60 #abilities-pane.-chosen {
            display: block; dock: bottom;
        }
        &.-w60 #tabs { dock: bottom; margin-bottom: 11; }
        &.-w60.-h16 .side { height: 9; }
        &.-w60.-h16 #tabs { margin-bottom: 9; }
        &.-w60 #chart-pane { height: 1fr; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self.board: RunView | None = None
        self._pending: list[AnyEvent] = []
        self._loading = ""
        """What is being read: changes with every reading, so that a stale one is dropped."""
        self._attached = ""
        """Id of the run that is watched live."""
        self._asked: dict[str, str] = {}
        """Commands that were sent and not yet carried out: what to say of each."""
        self._drawn_at = 0.0
        self._interval = _DRAW_SECONDS
        self._scheduled = False
        self._status: Status | None = None
        """The run's, when the keys were last looked at."""
        self._stale: set[str] = set()
        """What has changed since it was drawn."""
        self._lens: Lens | None = None
        """The lens, while it is open over this screen."""

    # Life

    def compose_body(self) -> ComposeResult:
        yield Static(id="notice", markup=False)
        yield Panes()

    def on_mount(self) -> None:
        self.gladius.watcher.subscribe(self, "train")
        self.set_interval(_AGE_SECONDS, self._grow_older)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """After the first paint: what would delay it."""
        if not self._loading:
            self._load("", None)
        await self.make_chart()

    def on_screen_resume(self) -> None:
        # What was drawn last is shown at once; then what has come since.
        self.call_after_refresh(self._redraw)

    def on_resize(self) -> None:
        self.call_after_refresh(self._redraw)

    def command_line(self) -> list[str]:
        return ["dashboard"]

    def about(self) -> str:
        return (
            "The training run: where it stands, its curves, and how each expert is learnt. It "
            "shows what runs on this root, wherever it was started, or the last run."
        )

    def summary(self) -> Content:
        return Content(f"GLADIUS {summary_line(self.board)}")

    # What is heard

    def on_job_attached(self, message: JobAttached) -> None:
        self._attached = message.run_id
        self._pending = []
        self._load(message.run_id, message.seq)

    def on_job_events(self, message: JobEvents) -> None:
        if message.run_id != self._attached:
            return
        events = message.events
        if self._loading:
            self._pending.extend(events)
        else:
            self._take(events)

    def on_job_detached(self, message: JobDetached) -> None:
        if message.run_id != self._attached:
            return
        self._attached = ""
        self._asked.clear()
        if self.board is not None and not self._loading:
            self.board.mark_killed()
            self._schedule()

    def _load(self, run_id: str, seq: int | None) -> None:
        self._loading = f"{run_id}:{seq}:{time.monotonic_ns()}"
        if self.board is None:
            self._notice("reading the history …")
        self._read(self._loading, run_id, seq)

    @work(thread=True, exclusive=True, group="board", exit_on_error=False)
    def _read(self, ticket: str, run_id: str, seq: int | None) -> None:
        from engine.run.lock import lock_owner
        from gladius_tui.app.model.past_runs import read_run_view

        board = read_run_view(self.gladius.ws, run_id, seq)
        owner = lock_owner(self.gladius.ws, "train")
        if board is not None and seq is None and owner is None:
            board.mark_killed()
        elif board is not None and owner is not None:
            board.mark_restarted(owner.since)
        self.app.call_later(self._loaded, ticket, board)

    def _loaded(self, ticket: str, board: RunView | None) -> None:
        if ticket != self._loading:
            return
        self._loading = ""
        if board is None and self._attached:
            board = RunView(run_id=self._attached)  # so new that nothing of it was written yet
        self.board = board
        if self._lens is not None and board is not None:
            self._lens.show(board)
        if board is None:
            self._notice(EMPTY)
            self._redraw()
            return
        self.remove_class("-empty")
        self.open_chart(board)
        pending, self._pending = self._pending, []
        self._take(pending)
        self.call_after_refresh(self._redraw)  # the panes may have no size before

    def _notice(self, text: str) -> None:
        self.add_class("-empty")
        self.query_one("#notice", Static).update(text)

    def _take(self, events) -> None:
        board = self.board
        if board is None:
            return
        new = [event for event in events if not event.seq or event.seq > board.seq]
        board.take(new)
        if any(isinstance(event, RunStarted) for event in new):
            self.read_curves()
        self.grow_chart(new)
        self._schedule()

    # What is drawn

    def _schedule(self) -> None:
        """Draw soon: at most four times a second, less often over a slow line, and not while
        another screen is shown."""
        if self._scheduled or not (self.is_current or self._lens is not None):
            return
        self._scheduled = True
        wait = max(0.01, self._interval - (time.monotonic() - self._drawn_at))
        self.set_timer(wait, self._draw_in_turn)

    def _draw_in_turn(self) -> None:
        """Draw, unless the terminal is still busy with what it was sent before."""
        self._scheduled = False
        if is_behind(self.app):
            self._interval = min(2 * self._interval, _MOST_SECONDS)
            self._drawn_at = time.monotonic()
            self._schedule()
            return
        self._interval = max(_DRAW_SECONDS, 0.8 * self._interval)
        self._draw()

    def _grow_older(self) -> None:
        if self.board is not None and self.is_current:
            self._stale.add("run")
            self._schedule()

    def _redraw(self) -> None:
        """Draw all of it now."""
        self._stale |= {*SIDES, "capabilities", "chart"}
        self._draw()

    def _draw(self) -> None:
        self._scheduled = False
        if not self.is_mounted or not self.is_running:
            return
        self._drawn_at = time.monotonic()
        board = self.board
        if board is not None and board.status != self._status:
            self._status = board.status
            self.refresh_bindings()
        stale = self._stale | (board.take_changes() if board is not None else set())
        if self._lens is not None and "probes" in stale:
            self._lens.refresh_lens()
        if not self.is_current:
            self._stale = stale  # drawn when this is seen again
            return
        now = wall_clock()
        if stale & {"capabilities", "hardware"}:
            self.query_one(Panes).make_room(board)
        for pane in self.query(Pane):
            if pane.shows & stale:
                pane.show(board, now)
        self._stale = set()
        if stale & {"chart", "step", "eval"} and not self.draw_chart():
            self._stale.add("chart")
            self._schedule()
        if stale & {"run", "step"}:
            self._tell_asked()
            if self.has_class("-w0") or self.has_class("-h0"):
                self.query_one("#summary", Static).update(self.summary(), layout=False)

    def _tell_asked(self) -> None:
        pane = self.query_one("#run-pane", Pane)
        text = " · ".join(self._asked.values())
        if text != (pane.border_subtitle or ""):
            pane.border_subtitle = text

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "tab":
            return self.has_class("-w60")
        if action == "abilities":
            # There it is one of the tabs, or stands in the grid anyway.
            return not self.has_class("-w60") and not self.query_one(Panes).has_class("-able")
        if action == "resume":
            board = self.board
            return not self._attached and board is not None and board.status in ("ended", "failed")
        return super().check_action(action, parameters)

    def called(self, action: str, name: str) -> str:
        if action in ("pause", "checkpoint", "stop", "finish") and not self._attached:
            return ""
        if action == "pause" and self.board is not None and self.board.status == "paused":
            return "Go on"
        return name

    def action_tab(self, by: int) -> None:
        panes = self.query_one(Panes)
        panes.choose(panes.query_one(Tabs).next(by))
        self.call_after_refresh(self._redraw)

    def action_abilities(self) -> None:
        self.toggle_class("-abilities")
        self.call_after_refresh(self._redraw)

    def on_tabs_chosen(self, _: Tabs.Chosen) -> None:
        self.call_after_refresh(self._redraw)

    def on_pane_sized(self, message: Pane.Sized) -> None:
        """A pane has another size, or has only now one: it is written anew."""
        self._stale |= message.pane.shows
        self._schedule()

    def action_pause(self) -> None:
        if self.board is not None and self.board.status == "paused":
            self._ask(Resume(), "going on")
        else:
            self._ask(Pause(), "pause")

    def action_resume(self) -> None:
        self.gladius.launch(["resume"])
        self.notify("it goes on as soon as its worker is loaded", title="Resume", markup=False)

    def action_checkpoint(self) -> None:
        self._ask(Checkpoint(), "checkpoint")

    def action_stop(self) -> None:
        self._ask_first(
            "Stop", "The run ends with a checkpoint; `resume` goes on from it.", Stop(), "stop"
        )

    def action_finish(self) -> None:
        self._ask_first(
            "Finish",
            "The learning rate decays over some last steps, then the model is saved. A later "
            "`resume` can go on from before the decay.",
            Stop(finish=True),
            "finish",
        )

    def _ask_first(self, title: str, text: str, command: AnyCommand, name: str) -> None:
        from gladius_tui.app.dialogs.choice import Choice

        if not self._runs():
            return

        def answered(choice: str | None) -> None:
            if choice == "yes":
                self._ask(command, name)

        answers = [("yes", f"{title} the run"), ("no", "Let it go on")]
        key = title[0].lower()
        self.app.push_screen(Choice(title, text, answers, marked="yes", again=key), answered)

    def _runs(self) -> bool:
        if not self._attached:
            self.notify(
                "No training runs here; press 3 to start one", severity="warning", markup=False
            )
        return bool(self._attached)

    def _ask(self, command: AnyCommand, name: str) -> None:
        if not self._runs():
            return
        key = _key(command)
        if key in self._asked:
            return
        self._asked[key] = f"{name} asked …"
        self._tell_asked()
        self.gladius.watcher.ask(self, "train", command)

    def on_command_answered(self, message: CommandAnswered) -> None:
        key = _key(message.command)
        self._asked.pop(key, None)
        if message.event is None:
            text, level = f"{key}: {message.error}", "error"
            self.notify(message.error, severity="error", markup=False)
        else:
            text, level = f"{key} asked → {_done(message)}", "good"
        if self.board is not None:
            self.board.log.append(LogEntry(wall_clock(), level, text))  # type: ignore[arg-type]
            self.board.logged += 1
        self._stale |= {"log", "run"}
        self._tell_asked()
        self._schedule()

    # The lens

    def action_lens(self) -> None:
        from gladius_tui.app.dialogs.lens import Lens

        if self.board is None:
            return

        def closed(_: None) -> None:
            self._lens = None

        self._lens = Lens(self.board)
        self.app.push_screen(self._lens, closed)


def _key(command: AnyCommand) -> str:
    name = type(command).__name__.lower()
    return "finish" if isinstance(command, Stop) and command.finish else name


def _done(message: CommandAnswered) -> str:
    step = message.event.step if message.event is not None else 0
    words = {"pause": "paused at", "resume": "goes on from", "checkpoint": "taken at"}
    return f"{words.get(_key(message.command), 'ended at')} step {step:,}"
