"""What a run is given beside its config: a name, a note, and other programs for its metrics."""

from __future__ import annotations

from dataclasses import dataclass

from engine.workspace import Workspace


@dataclass(frozen=True)
class RunExtras:
    """Options of a run that its numbers do not depend on.

    Attributes:
        name: in the list of runs; None leaves it as it is.
        note: likewise.
        log_to: names of sinks (see engine.run.sinks.sink).
    """

    name: str | None = None
    note: str | None = None
    log_to: tuple[str, ...] = ()

    def check(self, ws: Workspace, resume: bool) -> None:
        """Check them before a run starts; `resume`: it continues the newest run.

        Raises UsageError for a name that can't be used, MissingError for a sink whose library is
        not installed.
        """
        if self.name is not None:
            from engine.run.runs import check_name, list_runs

            newest = list_runs(ws)[:1] if resume else []
            check_name(ws, self.name, newest[0].run_id if newest else "")
        if self.log_to:
            from engine.run.sinks.sink import check_installed

            check_installed(self.log_to)
