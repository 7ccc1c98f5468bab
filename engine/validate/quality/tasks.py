"""Run tasks of lm-evaluation-harness (extra `eval`): it has the tasks, their data and metrics."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.events import CheckDone
from engine.validate.check import Check, quality_row
from engine.validate.context import CheckContext

HOW_TO_INSTALL = "lm-evaluation-harness is not installed: pip install 'lm-eval[hf]'"
_MAX_SECONDS = 24 * 3600
_BATCH_SIZE = 8


def is_installed() -> bool:
    """Whether the harness is installed with what it needs for transformers; imports nothing."""
    return all(importlib.util.find_spec(name) is not None for name in ("lm_eval", "accelerate"))


def refuse_unknown(tasks: Sequence[str], include: Path | None = None) -> None:
    """Raise UsageError for a task that the harness does not have; does nothing without the harness.

    include: a folder with additional tasks.
    """
    if not tasks or not is_installed():
        return
    known = set(_task_manager(include).all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise UsageError(
            f"--tasks: unknown to lm-evaluation-harness: {', '.join(unknown)}; "
            "list all tasks with: lm_eval --tasks list"
        )


def check_tasks(context: CheckContext) -> Iterator[CheckDone]:
    """A row for each metric of each task that was requested."""
    tasks = context.config.tasks
    if not tasks:
        return
    if not is_installed():
        yield CHECK.skipped(HOW_TO_INSTALL)
        return
    include = Path(context.config.tasks_path) if context.config.tasks_path else None
    with context.job.busy("lm-evaluation-harness", at_most=_MAX_SECONDS):
        results = _evaluate(context, tasks, include)
    versions = results.get("versions", {})
    for task, metrics in results["results"].items():
        version = versions.get(task, "?")
        for key, value in metrics.items():
            metric = key.partition(",")[0]
            if metric == "sample_len" or metric.endswith("_stderr"):
                continue
            if isinstance(value, int | float):
                yield _metric_row(task, version, key, float(value), metrics)


def _evaluate(context: CheckContext, tasks: Sequence[str], include: Path | None) -> dict[str, Any]:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    loaded = context.model
    model = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=_BATCH_SIZE,
        max_length=loaded.context_length,
    )
    results: Any = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=_task_manager(include), log_samples=False
    )
    return results


def _metric_row(
    task: str, version: Any, key: str, value: float, metrics: dict[str, Any]
) -> CheckDone:
    """`key` is the harness's "metric,filter"."""
    metric, _, filter_name = key.partition(",")
    stderr = metrics.get(f"{metric}_stderr,{filter_name}")
    spread = f" ± {stderr:.3f}" if isinstance(stderr, int | float) else ""
    suffix = f", {filter_name}" if filter_name and filter_name != "none" else ""
    return quality_row(
        f"task:{task}:{key}",
        f"{task} {metric}",
        value=f"{value:.3f}{spread}",
        meaning=f"lm-evaluation-harness, task {task} version {version}{suffix}.",
        number=value,
    )


def _task_manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    return TaskManager(include_path=str(include) if include else None)


CHECK = Check(group="quality", name="tasks", title="tasks", run=check_tasks)
