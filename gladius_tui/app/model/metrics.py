"""How charts show each metric: its panel, unit, title, colour and mark.

A metric has the same colour and mark whatever else is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.run.rollup import STEP_METRICS

PANELS = {
    "loss": "Loss (nats)",
    "bits_per_byte": "Held-out (bits/byte)",
    "lr": "Learning rate",
    "tokens_per_sec": "Speed (tokens/s)",
    "grad_norm": "Gradient norm",
    "update": "Update / weight norm of a log interval",
    "moved": "Distance from the initial weights / weight norm",
    "expert_kl": "KL to each expert, held-out (nats)",
    "agreement": "Top token equals the expert's (share)",
    "able": "Correct answers (share)",
    "step_seconds": "Step time (s)",
}
"""Title and unit of each panel; panels are shown in this order."""

_OTHER_TITLES = {
    "bits_per_byte": "held-out",
    "grad_norm": "gradient",
    "tokens_per_sec": "tok/s",
    "step_seconds": "s/step",
    "attention": "attn",
    "embeddings": "embed",
}
_COLOURS = {
    "kl": 0,
    "ce": 1,
    "bits_per_byte": 2,
    "loss": 3,
    "lr": 1,
    "tokens_per_sec": 0,
    "grad_norm": 4,
    "step_seconds": 3,
}
_MARKS = {"kl": 0, "loss": 1, "ce": 2}
_KINDS = ("attention", "mlp", "embeddings", "head")
"""Kinds of weights in the panels `update` and `moved`."""
_EXPERT_COLOURS = (0, 1, 3, 4, 2)
"""The mean over experts has colour 2."""

LINE_MARKS = "─┈╌┄"
"""Signs of the line patterns: solid, dotted, dashed, finely dashed."""
POINT_MARKS = "•▪▴◆+×"
"""Signs of measured values."""


def panel_of(metric: str) -> str:
    """The panel that shows a metric; metrics of one panel have one unit."""
    name, _, expert = metric.partition("/")
    if name in ("loss", "kl", "ce"):
        return "expert_kl" if expert else "loss"
    return name


def title_of(metric: str) -> str:
    """A short title: `kl/qwen` becomes `kl qwen`, `update/attention` becomes `attn`."""
    name, _, part = metric.partition("/")
    if part and name in ("update", "moved", "able"):
        return _OTHER_TITLES.get(part, part.replace("_", " "))
    title = {"bits_per_byte": "b/B"}.get(name, name) if part else _OTHER_TITLES.get(name, name)
    return f"{title} {part}".strip()


def choice_of(metric: str) -> str:
    """The metric in the list that is chosen from: its title, and its panel with the unit."""
    panel = panel_of(metric)
    return f"{title_of(metric):<18} {PANELS.get(panel, panel)}"


def in_order(metrics: Iterable[str]) -> tuple[str, ...]:
    """The metrics in the order of their panels; within a panel the order is kept."""
    order = list(PANELS)
    return tuple(
        sorted(
            metrics,
            key=lambda m: order.index(panel_of(m)) if panel_of(m) in PANELS else len(order),
        )
    )


def is_sparse(metric: str) -> bool:
    """Whether a metric is measured only now and then; steps without a value are then no gaps."""
    return metric not in STEP_METRICS


def style_of(metric: str, experts: Sequence[str] = ()) -> tuple[int, int]:
    """(colour, mark) of a metric, as indices.

    Args:
        experts: the names of the run's experts, in order.
    """
    name, _, part = metric.partition("/")
    if not part:
        return _COLOURS.get(name, 0), _MARKS.get(name, 0)
    if part in _KINDS:
        return _KINDS.index(part), _KINDS.index(part)
    if part in experts:
        number = list(experts).index(part)
    else:
        number = sum(part.encode()) % len(_EXPERT_COLOURS)
    return _EXPERT_COLOURS[number % len(_EXPERT_COLOURS)], number + 1
