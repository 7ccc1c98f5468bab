"""The jobs of the program, and the context that every job runs in: events out, commands in.

Nothing here imports torch: the runner and the user interface read the table of jobs too.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from engine.events import (
    AnyCommand,
    Checkpoint,
    Event,
    Job,
    JobRequest,
    LogLine,
    Pause,
    Progress,
    Question,
    QuestionAnswered,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    Stop,
)

_Result = TypeVar("_Result")

MAX_RESTARTS = 3
"""How often the runner restarts a worker that has died."""

_POLL_SECONDS = 0.1
_PAUSE_POLL_SECONDS = 0.5
_RATE_SECONDS = 0.5
"""A task must have run this long before its rate is reported."""


@dataclass(frozen=True)
class JobKind:
    """One kind of job.

    Attributes:
        name: stored in histories and used with `--job`.
        title: a noun for sentences: "the training".
        activity: a participle for status lines: "training".
        entry_point: "module:function"; the function is `main(ctx, request) -> int`.
        resume_command: arguments of `gladius_train` that continue a job that stopped.
        can_finish: whether `stop --finish` ends it early with a finished result; for the other
            jobs it is a plain stop.
    """

    name: Job
    title: str
    activity: str
    entry_point: str
    resume_command: str
    can_finish: bool = False


JOBS: Mapping[Job, JobKind] = {
    kind.name: kind
    for kind in (
        JobKind(
            name="train",
            title="training",
            activity="training",
            entry_point="engine.distill.jobs.train:main",
            resume_command="resume",
            can_finish=True,
        ),
        JobKind(
            name="download",
            title="download",
            activity="downloading",
            entry_point="engine.experts.fetch:main",
            resume_command="download",
        ),
        JobKind(
            name="export",
            title="export",
            activity="exporting",
            entry_point="engine.export.job:main",
            resume_command="export",
        ),
        JobKind(
            name="validate",
            title="validation",
            activity="validating",
            entry_point="engine.validate.job:main",
            resume_command="validate",
        ),
        JobKind(
            name="audit",
            title="tokenizer audit",
            activity="auditing tokenizers",
            entry_point="engine.distill.jobs.audit:main",
            resume_command="doctor",
        ),
        JobKind(
            name="data",
            title="data generation",
            activity="generating data",
            entry_point="engine.distill.jobs.make_data:main",
            resume_command="data make",
        ),
        JobKind(
            name="ask",
            title="answer",
            activity="answering",
            entry_point="engine.validate.ask:main",
            resume_command="ask",
        ),
    )
}
"""Every job by name."""


class JobStopped(Exception):
    """Stop was requested: the job drops unfinished work and ends."""


class JobLink(Protocol):
    """The connection between a job and its runner (`engine.run.worker.WorkerLink`)."""

    def emit(self, event: Event) -> None: ...
    def poll(self) -> list[AnyCommand]: ...
    def wait(self, timeout: float) -> list[AnyCommand]: ...
    def heartbeat(self, activity: str = "") -> None: ...
    def commit(self) -> None: ...
    def busy(self, activity: str, at_most: float = 3600.0) -> AbstractContextManager[None]: ...


@dataclass
class _Task:
    """Progress of one task so far, to throttle its events and measure its rate."""

    label: str
    first_done: float
    first_at: float = field(default_factory=time.monotonic)
    reported_at: float | None = None

    def is_due(self, every: float, after: float) -> bool:
        """Whether `every` seconds have passed since the last report, or `after` since the start."""
        now = time.monotonic()
        if self.reported_at is None:
            return now - self.first_at >= after
        return now - self.reported_at >= every

    def rate(self, done: float) -> float | None:
        """Units a second since the first report; None where it is too early to measure."""
        seconds = time.monotonic() - self.first_at
        new = done - self.first_done
        return new / seconds if seconds > _RATE_SECONDS and new > 0 else None


class JobContext:
    """Reports a job's events, and carries out commands between pieces of its work.

    `emit`, `log` and `heartbeat` may be called from any thread, all else from one.

    Attributes:
        link: the connection to the runner.
        questions: prompts of the user that wait for an answer.
        stop: the command to stop, once it was received.
        finish_requested: whether `stop --finish` was received: training decays the learning rate
            and saves its model.
        paused_seconds: total time spent paused.
        began: when the job began (monotonic clock).
        watch: called with each event that `emit` sends, its time set.
    """

    def __init__(self, link: JobLink, *, can_finish: bool = True) -> None:
        """`can_finish`: see `JobKind.can_finish`."""
        self.link = link
        self.stop: Stop | None = None
        self.finish_requested = False
        self.paused_seconds = 0.0
        self.began = time.monotonic()
        self._can_finish = can_finish
        self._paused = False
        self._checkpoint_requested = False
        self._save: Callable[[], None] | None = None
        self._step: Callable[[], int] = lambda: 0
        self._pause_hook: Callable[[], None] | None = None
        self._tasks: dict[str, _Task] = {}
        self.watch: Callable[[Event], None] | None = None
        self.questions = Questions(self)

    # Events

    def emit(self, event: Event) -> None:
        """Send an event to the runner."""
        if self.watch is not None:
            if not event.time:
                event = msgspec.structs.replace(event, time=time.time())
            self.watch(event)
        self.link.emit(event)

    def log(self, text: str, level: Literal["info", "warning", "error"] = "info") -> None:
        """Send a line for the log."""
        self.link.emit(LogLine(level=level, text=text))

    def progress(
        self,
        task: str,
        label: str,
        done: float,
        total: float | None = None,
        *,
        unit: str = "",
        finished: bool = False,
        every: float = 0.5,
        after: float = 0.0,
    ) -> None:
        """Report the progress of a task, at most once per `every` seconds.

        Rate and ETA are measured for tasks with a unit. The first event is sent once the task has
        run for `after` seconds; `finished` is always sent. A task whose label changes starts again.
        """
        state = self._tasks.get(task)
        if state is None or state.label != label:
            state = self._tasks[task] = _Task(label, done)
        if not finished and not state.is_due(every, after):
            return
        state.reported_at = time.monotonic()
        rate = state.rate(done) if unit else None
        self.link.emit(
            Progress(
                task=task,
                label=label,
                done=done,
                total=total,
                unit=unit,
                rate=rate,
                eta=(total - done) / rate if rate and total and total >= done else None,
                finished=finished,
            )
        )

    def ended(
        self, status: Literal["completed", "stopped", "failed"], reason: str = "", **fields: Any
    ) -> int:
        """Report the end of the job (`fields` of RunEnded); returns the worker's exit code."""
        fields.setdefault("seconds", time.monotonic() - self.began)
        self.link.emit(RunEnded(status=status, reason=reason, **fields))
        return 1 if status == "failed" else 0

    def heartbeat(self, activity: str = "") -> None:
        """Report that the job is alive; cheap. Does not read commands."""
        self.link.heartbeat(activity)

    def busy(self, activity: str, at_most: float = 3600.0) -> AbstractContextManager[None]:
        """Send heartbeats from a thread while the block runs, for at most `at_most` seconds."""
        return self.link.busy(activity, at_most)

    # Commands

    def checkpoint_point(self, activity: str) -> None:
        """Send a heartbeat and carry out the commands received since the last call.

        Blocks while the job is paused, and saves a checkpoint when one was requested.

        Raises:
            JobStopped: stop was requested, now or before.
        """
        self.link.heartbeat(activity)
        self._receive(self.link.poll())
        if self._paused and self.stop is None:
            self._wait_while_paused()
        self._save_if_requested()
        if self.stop is not None:
            raise JobStopped

    def attach_trainer(self, *, save: Callable[[], None], step: Callable[[], int]) -> None:
        """Register the trainer: `save` writes a checkpoint (also while paused), `step` returns the
        number of completed steps."""
        self._save, self._step = save, step

    @contextlib.contextmanager
    def on_pause(self, hook: Callable[[], None]) -> Iterator[None]:
        """Call `hook` before each pause that begins inside the block, to close connections."""
        self._pause_hook = hook
        try:
            yield
        finally:
            self._pause_hook = None

    def run_in_thread(self, work: Callable[[], _Result], activity: str) -> _Result:
        """The result of `work()`, run in a thread while commands are carried out here.

        Raises what `work` raises, or JobStopped; the thread then ends with the process.
        """
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["result"] = work()
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=run, name=activity, daemon=True)
        thread.start()
        while thread.is_alive():
            self.checkpoint_point(activity)
            thread.join(_POLL_SECONDS)
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    def sleep(self, seconds: float, activity: str) -> None:
        """Wait, carrying out commands meanwhile."""
        deadline = time.monotonic() + seconds
        while (remaining := deadline - time.monotonic()) > 0:
            self.checkpoint_point(activity)
            time.sleep(min(_POLL_SECONDS, remaining))

    def _receive(self, commands: list[AnyCommand]) -> None:
        for command in commands:
            match command:
                case Pause():
                    self._paused = True
                case Resume():
                    self._paused = False
                case Checkpoint():
                    self._checkpoint_requested = True
                case Stop(finish=True) if self._can_finish:
                    self._paused, self.finish_requested = False, True
                case Stop():
                    self._paused, self.stop = False, command
                case Question():
                    self.questions.add(command)

    def _wait_while_paused(self) -> None:
        began = time.monotonic()
        if self._pause_hook is not None:
            self._pause_hook()
        self.link.emit(RunPaused(step=self._step()))
        while self._paused:
            self._save_if_requested()
            self.questions.answer(paused=True)
            self._receive(self.link.wait(_PAUSE_POLL_SECONDS))
        self.paused_seconds += time.monotonic() - began
        if self.stop is None:
            self.link.emit(RunResumed(step=self._step()))

    def _save_if_requested(self) -> None:
        # Before the trainer is attached there is nothing to save: the request stays pending.
        if self._checkpoint_requested and self._save is not None:
            self._checkpoint_requested = False
            self._save()


class Questions:
    """Prompts of the user, answered where that can't disturb the job."""

    def __init__(self, ctx: JobContext) -> None:
        self._ctx = ctx
        self._waiting: list[Question] = []
        self._answerer: Callable[[Question], QuestionAnswered] | None = None

    def attach(self, answerer: Callable[[Question], QuestionAnswered]) -> None:
        """Register what answers; before that, and in other jobs, questions are declined."""
        self._answerer = answerer

    def add(self, question: Question) -> None:
        """Keep a question for the next call of `answer`."""
        self._waiting.append(question)
        if self._answerer is None:
            self.answer()

    def answer(self, *, paused: bool = False) -> None:
        """Answer all waiting questions; call it between two pieces of work.

        The time counts as paused, which it does already while the job is `paused`: no decision
        that depends on the clock changes.
        """
        while self._waiting:
            question = self._waiting.pop(0)
            began = time.monotonic()
            if self._answerer is None:
                text = "there is no student to ask yet; ask again when training steps are taken"
                answered = QuestionAnswered(id=question.id, prompt=question.prompt, note=text)
            else:
                answered = self._answerer(question)
                self._ctx.paused_seconds += 0.0 if paused else time.monotonic() - began
            self._ctx.emit(answered)


def run_started(request: JobRequest, **fields: Any) -> RunStarted:
    """The event that begins a job; `fields` are those of RunStarted that the job knows."""
    return RunStarted(
        run_id=request.run_id, job=request.job, attempt=request.attempt, pid=os.getpid(), **fields
    )
