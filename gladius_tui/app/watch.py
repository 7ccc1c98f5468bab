"""Watch the jobs that run on a root: post their events to subscribers and send them commands.

One thread looks for jobs that have a runner; each such job gets a `JobReader` in a thread of its
own. `gladius_tui.app` documents how a screen uses this.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from textual.message_pump import MessagePump

from engine.errors import GladiusError
from engine.events import AnyCommand, AnyEvent, Job
from engine.run.job import JOBS
from engine.workspace import Workspace
from gladius_tui.app.event_queue import EventQueue
from gladius_tui.app.job_messages import CommandAnswered, JobAttached, JobDetached, JobsChanged
from gladius_tui.app.job_reader import JobReader
from gladius_tui.app.model.job_info import JobInfo

_SCAN_SECONDS = 0.5
_RETRY_SECONDS = 0.2


@dataclass
class _Subscription:
    target: MessagePump
    jobs: Sequence[Job]
    replay: bool
    queues: dict[Job, EventQueue] = field(default_factory=dict)


class JobWatcher:
    """Watches the jobs of one root. The app calls `start` and `stop`; all methods return at once
    and may be called from any thread."""

    def __init__(self, ws: Workspace, app: MessagePump) -> None:
        self._ws = ws
        self._app = app
        self._lock = threading.RLock()
        self._scan_now = threading.Event()
        self._subscriptions: list[_Subscription] = []
        self._readers: dict[Job, JobReader] = {}
        self._claimed: set[Job] = set()
        """Jobs that have a thread, attached or still trying."""
        self.stopped = threading.Event()
        self.jobs: dict[Job, JobInfo] = {}
        """The running jobs, as last reported; replaced, never changed in place."""
        self.scanned = threading.Event()
        """Set once the watcher knows which jobs run."""

    def start(self) -> None:
        """Begin to watch."""
        threading.Thread(target=self._scan, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Detach from all jobs; they keep running."""
        self.stopped.set()
        self._scan_now.set()

    def scan_now(self) -> None:
        """Look for running jobs now, not at the next interval: one was just started."""
        self._scan_now.set()

    def subscribe(self, target: MessagePump, *jobs: Job, replay: bool = False) -> None:
        """Post JobAttached, JobEvents and JobDetached of these jobs (none named: all) to `target`.

        For a job that already runs, JobAttached is posted at once. With `replay` its `seq` is 0
        and the run's history is posted first, as JobEvents: for jobs with few events, not for
        training.
        """
        subscription = _Subscription(target, jobs or tuple(JOBS), replay)
        with self._lock:
            self._subscriptions.append(subscription)
            self._connect(list(self._readers.values()), [subscription])

    def unsubscribe(self, target: MessagePump) -> None:
        """Post nothing more to `target`."""
        with self._lock:
            self._subscriptions = [s for s in self._subscriptions if s.target is not target]

    def send(self, target: MessagePump, job: Job, command: AnyCommand) -> None:
        """Send a command to a running job; `target` gets a CommandAnswered when it is done."""

        def send_command() -> None:
            from engine.run.control import attach

            try:
                with attach(self._ws, job) as attachment:
                    answer = CommandAnswered(job, command, attachment.send(command))
            except (GladiusError, OSError) as error:
                answer = CommandAnswered(job, command, None, str(error))
            target.post_message(answer)

        threading.Thread(target=send_command, name=f"send-{job}", daemon=True).start()

    # Called by the readers, in their threads

    def deliver(self, reader: JobReader, events: Sequence[AnyEvent]) -> None:
        """Queue the events for every subscriber."""
        with self._lock:
            reader.delivered_seq = events[-1].seq
            for subscription in self._subscriptions:
                if queue := subscription.queues.get(reader.job):
                    queue.put(events)

    def update_info(self, job: Job, info: JobInfo | None) -> None:
        """Publish the job's state in `jobs`; None: it no longer runs."""
        with self._lock:
            if self.jobs.get(job) == info:
                return
            others: dict[Job, JobInfo] = {
                name: known for name, known in self.jobs.items() if name != job
            }
            self.jobs = others if info is None else {**others, job: info}
        self._app.post_message(JobsChanged())

    def detach(self, reader: JobReader) -> None:
        """Post JobDetached to every subscriber."""
        with self._lock:
            del self._readers[reader.job]
            for subscription in self._subscriptions:
                if (queue := subscription.queues.pop(reader.job, None)) is not None:
                    queue.close(JobDetached(reader.job, reader.run_id))
            self.update_info(reader.job, None)

    # Threads

    def _scan(self) -> None:
        from engine.run.lock import lock_owner

        while not self.stopped.is_set():
            for job in JOBS:
                if job not in self._claimed and lock_owner(self._ws, job) is not None:
                    self._claimed.add(job)
                    threading.Thread(
                        target=self._read_job, args=(job,), name=f"watch-{job}", daemon=True
                    ).start()
            self.scanned.set()
            self._scan_now.wait(_SCAN_SECONDS)
            self._scan_now.clear()

    def _read_job(self, job: Job) -> None:
        """Attach to a job, and deliver its events until it ends."""
        from engine.run.control import attach

        try:
            reader = JobReader(self, self._ws, job, attach(self._ws, job))
        except (GladiusError, OSError):
            # It is starting or ending, or can't be reached; retried while its lock is held.
            self.stopped.wait(_RETRY_SECONDS)
            self._claimed.discard(job)
            self.scan_now()
            return
        with self._lock:
            self._readers[job] = reader
            self.update_info(job, reader.info)
            self._connect([reader], self._subscriptions)
        try:
            reader.run()
        finally:
            self._claimed.discard(job)
            self.scan_now()

    def _connect(
        self, readers: Sequence[JobReader], subscriptions: Sequence[_Subscription]
    ) -> None:
        """Called under the lock: nothing is delivered between JobAttached and the first event."""
        for reader in readers:
            for subscription in subscriptions:
                if reader.job not in subscription.jobs:
                    continue
                target, replay = subscription.target, subscription.replay
                queue = EventQueue(target, reader.job, reader.run_id, replay=replay)
                seq = 0 if replay else reader.delivered_seq
                target.post_message(JobAttached(reader.job, reader.run_id, reader.pid, seq))
                subscription.queues[reader.job] = queue
                if replay:
                    threading.Thread(target=_replay, args=(reader, queue), daemon=True).start()


def _replay(reader: JobReader, queue: EventQueue) -> None:
    past: Sequence[AnyEvent] = ()
    try:
        past = reader.read_history()
    finally:  # if the history can't be read, live events and the end are still delivered
        queue.replay_history(past)
