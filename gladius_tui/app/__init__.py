"""The full-screen app: six modes, a screen each, that watch and steer jobs and never do their work.

How a screen hears of jobs
--------------------------
Every screen is a `GladiusScreen` (`screen.py`); `self.app` is the `GladiusApp`, with `app.ws` (the
Workspace) and `app.watcher` (a `JobWatcher`, `watch.py`). In `on_mount`:

    self.app.watcher.subscribe(self, "train")           # no job names: all four kinds

From then on these messages come, and never bubble:

- `JobAttached(job, run_id, pid, seq)`: it runs. Events up to `seq` are in the history: read what
  you need of them there (in a thread worker; `History.series` for charts, `History.last` for the
  newest of a kind), never more than what is shown.
- `JobEvents(job, run_id, events)`: the events from `seq` + 1 on, in order, none lost, none twice.
  They may come while the history is still being read; keep them until then. At most ten messages a
  second, and never a second one before the first was handled: a slow screen gets larger ones.
- `JobDetached(job, run_id)`: its runner is gone, all its events were given (the last is RunEnded
  unless the runner was killed). A later run attaches anew, with another run_id or the same
  (a resumed run).

`subscribe(self, "download", replay=True)` sends the run's history as JobEvents first (seq is 0
then); for jobs of few events.

`app.watcher.jobs` maps the jobs that run to a `JobInfo` (status, step, progress); `JobsChanged`
comes to the app when it changes. `app.watcher.ask(self, "train", Pause())` sends a command and
returns at once; a `CommandAnswered(job, command, event, error)` comes when the job has done it.
`app.launch(["train", "--preset", "nano"])` starts a runner of its own (`gladius_tui.launch`).

A screen that is not shown stays subscribed: it should take note of what comes, and draw when it is
shown (`self.is_current`, `on_screen_resume`).
"""
