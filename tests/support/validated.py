"""A tiny trained model, ways to damage it, and validations of it in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from safetensors import safe_open
from safetensors.torch import save_file

from engine.checkpoint.model_record import read_record, write_record
from engine.events import CheckDone, EvalDone, JobRequest, ReportDone, RunEnded
from engine.run.job import JobContext
from engine.validate.job import Validation
from engine.validate.report import Report, read_report
from engine.workspace import Workspace
from tests.support.small_run import KeepingLink, make_config, make_root, train

WEIGHTS = "model.safetensors"


def trained_root(folder: Path) -> tuple[Workspace, EvalDone]:
    """A workspace with a model trained for three steps, and its last evaluation."""
    workspace = make_root(folder)
    config = make_config(
        workspace, schedule__max_steps=3, student__max_position_embeddings=2048, optimizer__lr=0.02
    )
    link = KeepingLink()
    assert train(workspace, config, link) == 0
    return workspace, link.of(EvalDone)[-1]


class Outcome:
    """The events of a validation, and its exit code."""

    def __init__(self, code: int, link: KeepingLink) -> None:
        self.code = code
        self.link = link
        self.rows = {row.name: row for row in link.of(CheckDone)}
        self.end = link.of(RunEnded)[-1]

    def of(self, verdict: str, group: str = "structural") -> set[str]:
        """Names of the rows with this verdict."""
        return {n for n, r in self.rows.items() if r.verdict == verdict and r.group == group}

    @property
    def failed(self) -> set[str]:
        return self.of("fail")

    @property
    def report(self) -> Report:
        report = read_report(Path(self.link.of(ReportDone)[-1].path))
        assert report is not None
        return report


def validate(workspace: Workspace, link: KeepingLink | None = None, **config: Any) -> Outcome:
    """Run the validation job as a worker process does."""
    link = link or KeepingLink()
    request = JobRequest(
        job="validate",
        root=str(workspace.root),
        run_id="validation",
        attempt=1,
        config=msgspec.json.encode(config),
    )
    return Outcome(Validation(JobContext(link), request).run(), link)


def copy_model(workspace: Workspace, folder: Path) -> Path:
    """A copy of the workspace's finished model, for a test to damage."""
    model = folder / "model"
    shutil.copytree(workspace.model_dir, model)
    for report in model.glob("validation*.json"):
        report.unlink()
    return model


def reseal(model: Path) -> None:
    """Update the digests in gladius.json, so that only the damage itself is found."""
    record = read_record(model)
    assert record is not None
    write_record(model, record)


def change_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def change_tensors(model: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    with safe_open(model / WEIGHTS, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
