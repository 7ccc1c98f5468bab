"""Estimates of a run's training text: which of it is streamed, how many tokens are available, and
how many the run will use. Imports no torch.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.config import CorpusConfig, DataConfig, RunConfig
from engine.errors import UsageError
from engine.experts.registry import ExpertSpec
from engine.text.sources import HUB, check_hub, need_datasets, parse_hub, source_bytes
from engine.text.survey import Survey, survey
from engine.text.tally import require_learnable
from engine.workspace import assets_dir

BYTES_PER_TOKEN = 4.0
"""For English prose and a vocabulary of about 32,000 tokens."""
MAX_EPOCHS = 4.0
"""More repetitions of the same text improve a model hardly any further (arXiv 2305.16264)."""
_ANSWER_SHARE = 0.5
"""Mean length of an answer as a share of its limit; a prompt is about a quarter of the limit."""


def corpora_in_use(data: DataConfig) -> list[CorpusConfig]:
    """The public corpora that the run streams; none if it trains on its files only."""
    return list(data.corpora) if data.generate else []


def streamed_files(data: DataConfig) -> list[str]:
    """The `data.files` that are streamed: Hub data sets, and all files if they are large.

    Raises UsageError if a path has no text.
    """
    size = sum(source_bytes(source) or 0 for source in data.files)
    large = size > data.stream_above * 2**20
    return [source for source in data.files if large or source.startswith(HUB)]


def streams_text(config: RunConfig) -> bool:
    """Whether any text is read during training."""
    return bool(corpora_in_use(config.data) or streamed_files(config.data))


def scores_online(config: RunConfig) -> bool:
    """Whether experts stay in memory during training and score batches."""
    source = config.targets.source
    return source == "online" or (source == "auto" and streams_text(config))


def survey_text(data: DataConfig) -> list[Survey]:
    """What `data.files` hold that can be learnt: read completely, or sampled where it is streamed.

    Data sets on the Hub are not read. Raises UsageError where a path has no text.
    """
    local = [source for source in data.files if not source.startswith(HUB)]
    large = [source for source in streamed_files(data) if not source.startswith(HUB)]
    small = [source for source in local if source not in large]
    parts = ((small, False), (large, True))
    return [survey(sources, is_large=is_large) for sources, is_large in parts if sources]


def check_text(config: RunConfig) -> list[Survey]:
    """Check the text of a run before it starts: small text completely, large text by a sample.

    Raises UsageError where it can't be read, or more than a tenth of it can't be learnt (unless
    `data.lenient`); MissingError with what is missing and the remedy.
    """
    for source in config.data.files:
        if source.startswith(HUB):
            check_hub(source)
    surveys = survey_text(config.data)
    for found in surveys:
        require_learnable(found.table, lenient=config.data.lenient, is_sample=found.is_sample)
    corpora = corpora_in_use(config.data)
    for corpus in corpora:
        parse_hub(corpus.source)
    if corpora:
        need_datasets(
            f"the public text of preset {config.preset} (train without: --set data.corpora=[])"
        )
    limited = config.data.max_teacher_tokens is not None
    if config.targets.source == "cached" and not limited and streams_text(config):
        source = (streamed_files(config.data) or [corpora[0].source])[0]
        raise UsageError(
            f"targets.source=cached would score all of {source} before the first step; set "
            "targets.source=auto, or data.max_teacher_tokens=N"
        )
    return surveys


@dataclass(frozen=True)
class TokenBudget:
    """Estimated numbers of student tokens."""

    answers: float
    """In the experts' answers to the prompts."""
    files: float | None
    """In `data.files`, of what can be learnt; None if the size of a data set is not known."""
    corpora: float | None
    """In the public corpora; None if the size of one is not known."""
    planned: float | None
    """That the run will train on; None if only the clock or convergence ends it."""

    @property
    def available(self) -> float | None:
        """All text together, each token once; None if not known."""
        if self.files is None or self.corpora is None:
            return None
        return self.answers + self.files + self.corpora

    @property
    def epochs(self) -> float | None:
        """How often the run sees each token, on average; None if not known."""
        if self.planned is None or not self.available:
            return None
        return self.planned / self.available

    @property
    def too_many_epochs(self) -> bool:
        """Whether there is too little text for the length of the run."""
        return self.epochs is not None and self.epochs > MAX_EPOCHS

    def sentence(self) -> str:
        """The numbers in one line, with the remedy if there is too little text."""
        if self.available is None:
            available = "an unknown number of"
        else:
            available = f"about {count_text(self.available)}"
        if self.planned is None:
            return f"text: {available} tokens available; the length of the run is open"
        text = f"text: {available} tokens available, {count_text(self.planned)} used"
        if self.epochs is not None:
            text += (
                f", {self.epochs:,.0f} epochs"
                if self.epochs >= 10
                else f", {self.epochs:.2g} epochs"
            )
        if self.too_many_epochs:
            text += f" (more than {MAX_EPOCHS:g} bring little; add text with --data)"
        return text


def token_budget(
    config: RunConfig,
    experts: Sequence[ExpertSpec],
    *,
    tokens_per_sec: float | None = None,
    prompts: Mapping[str, int] | None = None,
) -> TokenBudget:
    """Tokens that are available to a run of this config, and that it will use.

    Args:
        experts: the run's experts, in order.
        tokens_per_sec: a measured training speed, used with `schedule.hours`.
        prompts: prompts of each capability; None: those that come with the program.

    Raises UsageError if a file or folder of `data.files` has no text. Reads the files.
    """
    data = config.data
    files = None
    if not any(source.startswith(HUB) for source in data.files):
        files = sum(found.bytes for found in survey_text(data)) / BYTES_PER_TOKEN
    counts = [corpus.tokens for corpus in corpora_in_use(data)]
    corpora = None if None in counts else float(sum(t or 0 for t in counts))
    return TokenBudget(
        answers=_answer_tokens(config, experts, prompts or shipped_prompts()),
        files=files,
        corpora=corpora,
        planned=_used_tokens(config, len(experts), tokens_per_sec),
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
        used = [c for c in spec.capabilities if not data.capabilities or c in data.capabilities]
        count = data.answers_per_prompt * sum(prompts.get(c, 0) for c in used)
        # Variants of the hand-written prompts are unlimited.
        total += count if data.max_answers is None or not count else data.max_answers
    return total * each


def _used_tokens(config: RunConfig, experts: int, tokens_per_sec: float | None) -> float | None:
    schedule, optimizer = config.schedule, config.optimizer
    if schedule.max_steps is not None:
        return float(schedule.max_steps * optimizer.global_batch_size * optimizer.max_seq_len)
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


def count_text(tokens: float) -> str:
    """A number of tokens for people: 1.3 billion, 78,400."""
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if tokens >= size:
            return f"{tokens / size:.3g} {word}"
    return f"{tokens:,.0f}"
