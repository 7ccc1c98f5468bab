"""Owns handing a model to lm-evaluation-harness (extra `eval`), and its results as rows.

Tasks, their data and their metrics are the harness's.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UsageError
from engine.events import CheckDone
from engine.validate.checks.check import row, skipped
from engine.validate.checks.load import Loaded

REMEDY = "lm-evaluation-harness is not installed: pip install 'lm-eval[hf]'"


def installed() -> bool:
    """Whether the harness is here, with what it needs for transformers; imports nothing."""
    return all(importlib.util.find_spec(name) is not None for name in ("lm_eval", "accelerate"))


def refuse_unknown(tasks: Sequence[str], include: Path | None = None) -> None:
    """UsageError for a task that the harness does not know; nothing where it is not installed."""
    if not tasks or not installed():
        return
    known = set(_manager(include).all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise UsageError(
            f"--tasks: unknown to lm-evaluation-harness: {', '.join(unknown)}; "
            "its names: lm_eval --tasks list"
        )


def check_tasks(
    loaded: Loaded, tasks: Sequence[str], include: Path | None = None
) -> Iterator[CheckDone]:
    """A row for each metric of each task; one skipped row that says why there are none."""
    if not installed():
        yield skipped("quality", "tasks", "tasks", REMEDY)
        return
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval.evaluator import simple_evaluate  # type: ignore[import-not-found]
    from lm_eval.models.huggingface import HFLM  # type: ignore[import-not-found]

    model = HFLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        batch_size=8,
        max_length=loaded.context,
    )
    results: Any = simple_evaluate(
        model=model, tasks=list(tasks), task_manager=_manager(include), log_samples=False
    )
    versions = results.get("versions", {})
    for task, metrics in results["results"].items():
        for key, value in metrics.items():
            metric, _, how = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            if metric == "sample_len":
                continue
            error = metrics.get(f"{metric}_stderr,{how}")
            spread = f" ± {error:.3f}" if isinstance(error, int | float) else ""
            plain = f", {how}" if how and how != "none" else ""
            yield row(
                "quality",
                f"task:{task}:{key}",
                f"{task} {metric}",
                True,
                f"{value:.3f}{spread}",
                f"lm-evaluation-harness, task {task} version {versions.get(task, '?')}{plain}.",
                number=float(value),
            )


def _manager(include: Path | None) -> Any:
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    return TaskManager(include_path=str(include) if include else None)
