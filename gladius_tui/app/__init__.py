"""The full-screen app: six modes, a screen each, that watch and control jobs and never do their
work.

How a screen receives the events of jobs
----------------------------------------
Every screen is a `GladiusScreen` (`screens/base.py`). Its `gladius` property is the app as
`AppServices` (`services.py`), with `ws` (the Workspace) and `watcher` (a `JobWatcher`, `watch.py`).
In `on_mount`:

    self.gladius.watcher.subscribe(self, "train")       # no job names: all jobs

From then on these messages arrive (`job_messages.py`); they never bubble:

- `JobAttached(job, run_id, pid, seq)`: the job is running. Events up to `seq` are in the history:
  read what you need there (in a thread worker; `History.series` for charts, `History.last` for the
  newest of a kind), never more than what is shown.
- `JobEvents(job, run_id, events)`: the events from `seq` + 1 on, in order, each exactly once. They
  may arrive while the history is still being read; keep them until then. At most ten messages a
  second, and never a second one before the first was handled: a slow screen gets larger ones.
- `JobDetached(job, run_id)`: the runner has exited and all its events were delivered (the last is
  RunEnded unless the runner was killed). A later run attaches again, with another run_id or the
  same (a resumed run).

`subscribe(self, "download", replay=True)` sends the run's history as JobEvents first (seq is 0
then); for jobs with few events.

`watcher.jobs` maps the running jobs to a `JobInfo` (status, step, progress); `JobsChanged` is sent
to the app when it changes. `watcher.send(self, "train", Pause())` sends a command and returns at
once; a `CommandAnswered(job, command, event, error)` arrives when the job has executed it.
`gladius.launch(["train", "--preset", "nano"])` starts a runner in a process of its own
(`gladius_tui.launch`).

A hidden screen stays subscribed: it takes in the events, and draws when it is shown again
(`self.is_current`, `on_screen_resume`).
"""
