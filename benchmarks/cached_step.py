"""Measure `cached_step_ratio`: a step with cached soft targets over a bare step without any.

Numerator: `Trainer.train_step`, including reading the rows from shards. Denominator: `BareLoop` on
the same batch, already in tensors. The strict one computes no logits for positions without a label.
"""

from __future__ import annotations

from benchmarks.bare import BareLoop, full_labels
from benchmarks.timing import Figure, interleave, ratio
from benchmarks.workbench import Workbench, next_rows, take_step
from engine.distill.train.batches import batch_of

BOUND = 1.00
REPETITIONS = 20


def measure(bench: Workbench) -> dict[str, Figure]:
    trainer = bench.trainer("cached")
    loops = {
        name: BareLoop(bench.student(), bench.config.optimizer, bench.dtype, scored_only)
        for name, scored_only in (("bare", False), ("strict", True))
    }
    seconds: dict[str, list[float]] = {"ours": [], "bare": [], "strict": []}
    tokens = scored = 0
    warmup = 3
    for number in range(warmup + REPETITIONS):
        batch = batch_of(next_rows(trainer), trainer.session.device)
        labels = full_labels(batch)
        tokens += batch.tokens
        scored += len(batch.labels)
        taken = interleave(
            {
                "ours": lambda _: take_step(trainer),
                "bare": lambda _, b=batch, y=labels: loops["bare"].step(b, y),
                "strict": lambda _, b=batch, y=labels: loops["strict"].step(b, y),
            },
            repetitions=1,
            warmup=0,
        )
        if number >= warmup:
            for name, values in taken.items():
                seconds[name] += values
    rounds = warmup + REPETITIONS
    shape = {"tokens_per_step": tokens / rounds, "scored_per_step": scored / rounds}
    return {
        "cached_step_ratio": ratio(seconds["ours"], seconds["bare"], BOUND, **shape),
        "cached_step_ratio_strict": ratio(seconds["ours"], seconds["strict"], None, **shape),
    }
