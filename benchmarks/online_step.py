"""Measure `online_step_ratio`: a step whose targets the expert computes on the fly, over a bare
step plus a bare forward pass of the same expert on the same texts.
"""

from __future__ import annotations

from benchmarks.bare import BareLoop, BareTeacher, full_labels
from benchmarks.timing import Figure, interleave, ratio
from benchmarks.workbench import Workbench, next_rows, take_step
from engine.distill.data.sources import OnlineSource
from engine.distill.train.batches import batch_of

BOUND = 1.25
REPETITIONS = 7
TOKENS_PER_BATCH = 2048


def measure(bench: Workbench) -> dict[str, Figure]:
    trainer = bench.trainer("online")
    source = trainer.batches.sources[bench.expert.name]
    assert isinstance(source, OnlineSource)
    teacher = BareTeacher(bench.pool.get(bench.expert).model, TOKENS_PER_BATCH)
    loop = BareLoop(bench.student(), bench.config.optimizer, bench.dtype, scored_only=False)
    seconds: dict[str, list[float]] = {"ours": [], "teacher": [], "bare": []}
    teacher_tokens = 0
    warmup = 1
    for number in range(warmup + REPETITIONS):
        rows = next_rows(trainer)
        batch = batch_of(rows, trainer.session.device)
        labels = full_labels(batch)
        texts = [source.blocks[n].teacher_ids for row, _ in rows for n in row.blocks]
        teacher_tokens += sum(len(text) for text in texts)
        padded = teacher.batches(texts)
        taken = interleave(
            {
                "ours": lambda _: take_step(trainer),
                "teacher": lambda _, p=padded: teacher.forward(p),
                "bare": lambda _, b=batch, y=labels: loop.step(b, y),
            },
            repetitions=1,
            warmup=0,
        )
        if number >= warmup:
            for name, values in taken.items():
                seconds[name] += values
    below = [t + b for t, b in zip(seconds["teacher"], seconds["bare"], strict=True)]
    figure = ratio(
        seconds["ours"],
        below,
        BOUND,
        teacher_tokens_per_step=teacher_tokens / (warmup + REPETITIONS),
    )
    return {"online_step_ratio": figure}
