"""What the Download screen knows: the experts, the selection, and the progress of the download."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.events import AnyEvent, LogLine, Progress, RunStarted
from gladius_tui.app.model.inventory import Inventory
from gladius_tui.app.model.job_info import download_stage

_LOG_LINES = 200


@dataclass(frozen=True)
class Totals:
    """Sums over the selected experts, in bytes and bytes per second."""

    experts: int
    done: float
    total: float
    speed: float
    free: int

    @property
    def needed(self) -> float:
        """Bytes that are still to be downloaded."""
        return max(0.0, self.total - self.done)


@dataclass
class DownloadState:
    """Folded from the download's events and the inventory."""

    inventory: Inventory | None = None
    selection: set[str] | None = None
    """The selected experts; None before the first inventory was read."""
    names: list[str] = field(default_factory=list)
    """The experts of the last download."""
    force: bool = False
    log: list[str] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)
    live: bool = False
    tasks: dict[str, Progress] = field(default_factory=dict)
    """The newest Progress of each task: `download:NAME`, `download:NAME:FILE`, `verify:NAME`."""

    def set_inventory(self, inventory: Inventory) -> None:
        """Take an inventory; the first one selects the required experts that are not ready."""
        self.inventory = inventory
        if self.selection is None:
            self.selection = {
                name
                for name, spec in inventory.specs.items()
                if spec.required and inventory.statuses[name].state != "ready"
            }

    def take(self, event: AnyEvent) -> None:
        """Take in an event."""
        match event:
            case RunStarted():
                names = event.config.get("names")
                self.names = [str(name) for name in names] if isinstance(names, list) else []
                self.force = bool(event.config.get("force"))
                if self.live:
                    self.selection = set(self.names)
            case LogLine():
                self.log = [*self.log[-_LOG_LINES:], event.text]
                if event.level == "error":
                    self.failed.add(event.text.partition(":")[0].split(" ")[0])

    @property
    def selected(self) -> list[str]:
        """The selected experts, in the registry's order."""
        names = self.inventory.specs if self.inventory else []
        return [name for name in names if name in (self.selection or ())]

    def progress_of(self, name: str) -> Progress | None:
        """The progress of an expert as a whole: verifying if that is in progress, else
        downloading."""
        verifying = self.tasks.get(f"verify:{name}")
        if verifying is not None and not verifying.finished:
            return verifying
        return self.tasks.get(f"download:{name}")

    def activity_of(self, name: str) -> str:
        """What is being done for an expert."""
        progress = self.progress_of(name)
        if progress is None:
            return "verifying"
        if (stage := download_stage(progress)) != "downloading":
            return stage
        files = [
            task.split(":", 2)[2]
            for task, file in self.tasks.items()
            if task.startswith(f"download:{name}:") and not file.finished
        ]
        return ", ".join(files[:2]) or "installing"

    def files(self) -> list[Progress]:
        """The files of the running download, those in progress first."""
        if not self.live:
            return []
        files = [progress for task, progress in self.tasks.items() if task.count(":") == 2]
        return sorted(files, key=lambda file: file.finished)

    def totals(self) -> Totals:
        """Sums over the selected experts."""
        assert self.inventory is not None
        done = total = speed = 0.0
        for name in self.selected:
            status, progress = self.inventory.statuses[name], self.progress_of(name)
            expected = float(status.expected_bytes or self.inventory.specs[name].size_bytes)
            present = float(min(status.present_bytes, expected))
            if self.live and progress is not None:
                expected = progress.total or expected
                present = expected if progress.finished else progress.done
                speed += 0.0 if progress.finished else progress.rate or 0.0
            done, total = done + present, total + expected
        return Totals(len(self.selected), done, total, speed, self.inventory.free)

    def hints(self) -> list[str]:
        """What to do next, while nothing is downloaded."""
        assert self.inventory is not None
        missing = [
            spec.title
            for name, spec in self.inventory.specs.items()
            if spec.required and self.inventory.statuses[name].state != "ready"
        ]
        if not missing:
            return ["All required experts are ready. Press 3 to train."]
        return [
            f"Missing: {', '.join(missing)}.",
            "Select with space, start with s. SmolLM2 is on PyPI and needs no account.",
        ]
