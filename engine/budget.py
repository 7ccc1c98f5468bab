"""Owns what text a run will have: which of it is streamed, and how many tokens there are to be had
against those that the run will use. Torch-free; figures are estimates, and said to be.

It does not read the text (`textsources`), nor decide how long a run is (`distill.phases`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.config import CorpusConfig, DataConfig, RunConfig
from engine.errors import UsageError
from engine.experts.registry import ExpertSpec
from engine.text.sources import (
    HUB,
    check_source,
    need_datasets,
    parse_hub,
    source_bytes,
)
from engine.workspace import assets_dir

BYTES_PER_TOKEN = 4.0
"""Of English prose, with a vocabulary of about 32,000 tokens."""
MOST_EPOCHS = 4.0
"""Above this, more of the same text hardly teaches more (arXiv 2305.16264)."""
_ANSWER_SHARE = 0.5
"""An answer is about this share of its limit, its prompt about as long as a quarter of it."""


def corpora_in_use(data: DataConfig) -> list[CorpusConfig]:
    """The public corpora that the run streams: none where it learns from its files alone."""
    return list(data.corpora) if data.generate else []


def streamed_files(data: DataConfig) -> list[str]:
    """Those of `data.files` that are streamed: data sets, and all files where they are large.

    UsageError where a path holds no text.
    """
    size = sum(source_bytes(source) or 0 for source in data.files)
    large = size > data.stream_above * 2**20
    return [source for source in data.files if large or source.startswith(HUB)]


def streams_text(config: RunConfig) -> bool:
    """Whether any text of the run is read while it trains."""
    return bool(corpora_in_use(config.data) or streamed_files(config.data))


def scores_online(config: RunConfig) -> bool:
    """Whether experts stay in memory beside the student."""
    source = config.targets.source
    return source == "online" or (source == "auto" and streams_text(config))


def check_text(config: RunConfig) -> None:
    """Text of a run, looked at before it starts: the beginning of each file, in moments.

    UsageError names the file and line; MissingError what lacks, with the remedy.
    """
    for source in config.data.files:
        check_source(source)
    corpora = corpora_in_use(config.data)
    for corpus in corpora:
        parse_hub(corpus.source)
    if corpora:
        need_datasets(
            f"the public text of preset {config.preset} (--set data.corpora=[] goes without)"
        )
    bounded = config.data.max_teacher_tokens is not None
    if config.targets.source == "cached" and not bounded and streams_text(config):
        what = (streamed_files(config.data) or [corpora[0].source])[0]
        raise UsageError(
            f"targets.source=cached would score all of {what} before the first step; set "
            "targets.source=auto, or data.max_teacher_tokens=N"
        )


@dataclass(frozen=True)
class TokenBudget:
    """Student tokens, roughly."""

    answers: float
    """That the experts' answers to the prompts will have."""
    files: float | None
    """Of `data.files`; None where a data set does not say its size."""
    corpora: float | None
    """Of the public corpora; None where one does not say its size."""
    to_be_used: float | None
    """That the run will train on; None where only the clock or convergence ends it."""

    @property
    def to_be_had(self) -> float | None:
        """All text together, each token once; None where not known."""
        if self.files is None or self.corpora is None:
            return None
        return self.answers + self.files + self.corpora

    @property
    def epochs(self) -> float | None:
        """How often the run sees a token, in the mean; None where not known."""
        if self.to_be_used is None or not self.to_be_had:
            return None
        return self.to_be_used / self.to_be_had

    @property
    def warns(self) -> bool:
        """Whether the text is too little for so long a run."""
        return self.epochs is not None and self.epochs > MOST_EPOCHS

    def sentence(self) -> str:
        """The figures in a few words, with what to do where there is too little text."""
        had = "of unknown size" if self.to_be_had is None else f"about {in_words(self.to_be_had)}"
        if self.to_be_used is None:
            return f"text: {had} tokens to be had; how many are used depends on how long it runs"
        text = f"text: {had} tokens to be had, {in_words(self.to_be_used)} to be used"
        if self.epochs is not None:
            text += (
                f", {self.epochs:,.0f} epochs"
                if self.epochs >= 10
                else f", {self.epochs:.2g} epochs"
            )
        if self.warns:
            text += f" (over {MOST_EPOCHS:g} teach little: give more text with --data)"
        return text


def token_budget(
    config: RunConfig,
    experts: Sequence[ExpertSpec],
    *,
    tokens_per_sec: float | None = None,
    prompts: Mapping[str, int] | None = None,
) -> TokenBudget:
    """The text that a run of this config has, and what it will use of it.

    Args:
        experts: the run's, in order.
        tokens_per_sec: a measured speed, which makes tokens of `schedule.hours`.
        prompts: prompts of each capability; None: as many as ship.

    UsageError where a file or folder of `data.files` holds no text. Costs a listing of the files.
    """
    data = config.data
    sizes = [source_bytes(source) for source in data.files]
    files = None if None in sizes else sum(s or 0 for s in sizes) / BYTES_PER_TOKEN
    given = [corpus.tokens for corpus in corpora_in_use(data)]
    corpora = None if None in given else float(sum(t or 0 for t in given))
    return TokenBudget(
        answers=_answer_tokens(config, experts, prompts or shipped_prompts()),
        files=files,
        corpora=corpora,
        to_be_used=_used_tokens(config, len(experts), tokens_per_sec),
    )


def _answer_tokens(
    config: RunConfig, experts: Sequence[ExpertSpec], prompts: Mapping[str, int]
) -> float:
    data = config.data
    if not data.generate:
        return 0.0
    each = data.max_answer_tokens * (_ANSWER_SHARE + 0.25)
    total = 0
    for spec in experts:
        asked = [c for c in spec.capabilities if not data.capabilities or c in data.capabilities]
        count = data.answers_per_prompt * sum(prompts.get(c, 0) for c in asked)
        # Beyond the hand-written prompts there are variants of them without an end.
        total += count if data.max_answers is None or not count else data.max_answers
    return total * each


def _used_tokens(config: RunConfig, experts: int, tokens_per_sec: float | None) -> float | None:
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.max_steps is not None:
        return float(schedule.max_steps * optimizer.rows_per_step * optimizer.max_seq_len)
    if schedule.hours is not None:
        return None if tokens_per_sec is None else schedule.hours * 3600 * tokens_per_sec
    if schedule.unified_tokens is None:
        return None  # until it has converged
    return float(experts * schedule.expert_tokens + schedule.unified_tokens)


@functools.cache
def shipped_prompts() -> dict[str, int]:
    """Prompts of each capability in assets/prompts."""
    counts = {}
    for path in sorted((assets_dir() / "prompts").glob("*.jsonl")):
        counts[path.stem] = sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return counts


def in_words(tokens: float) -> str:
    """A number of tokens, short: 1.3 billion."""
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if tokens >= size:
            return f"{tokens / size:.3g} {word}"
    return f"{tokens:.0f}"
