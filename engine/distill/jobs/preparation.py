"""Prepare a training run: text, the student's tokenizer, and every expert with its targets.

A pipeline of functions: `read_texts`, `student_tokenizer`, `prepare_experts`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from transformers import PreTrainedTokenizerFast

from engine.budget import BYTES_PER_TOKEN, scores_online
from engine.config import RunConfig
from engine.distill.data import corpus
from engine.distill.jobs.expert_preparation import PreparedExpert, SplitText, prepare_expert
from engine.distill.jobs.run_texts import RunTexts, read_texts, student_tokenizer
from engine.distill.jobs.setup import RunSetup
from engine.distill.student import student_encoder
from engine.distill.train.capabilities import score_expert, student_prompts
from engine.experts.registry import ExpertSpec
from engine.prompts.prompt import Prompt
from engine.text.examples import Example


@dataclass(frozen=True)
class PreparedRun:
    """Everything that training needs except the student.

    Attributes:
        experts: by name, in the order of the run.
        capability_prompts: held-out prompts that the student answers at each evaluation.
    """

    tokenizer: PreTrainedTokenizerFast
    experts: dict[str, PreparedExpert]
    capability_prompts: list[Prompt]

    @property
    def stream_fingerprints(self) -> dict[str, str]:
        """Identity of each streamed text, by source name; a resumed run must have the same."""
        parts = [expert.stream_fingerprints for expert in self.experts.values()]
        return {name: value for part in parts for name, value in part.items()}


def prepare_run(setup: RunSetup) -> PreparedRun:
    """Text, tokenizer and experts of a run. Emits DataReady and capability scores per expert.

    Raises JobStopped if a stop is requested; what is complete is kept on disk.
    """
    texts = read_texts(setup)
    return prepare_experts(setup, texts, student_tokenizer(setup, texts))


def prepare_experts(
    setup: RunSetup, texts: RunTexts, tokenizer: PreTrainedTokenizerFast
) -> PreparedRun:
    """Every expert's sources and held-out store."""
    config = setup.config
    fixed_text = frozenset[str]()
    if texts.streamed:
        fixed_text = frozenset(corpus.example_key(e) for p in texts.fixed.values() for e in p)
    fixed, held_out = _hold_out(texts, config)
    split = SplitText(
        student=student_encoder(tokenizer, config.student.vocab_size),
        held_out=held_out,
        streamed=texts.streamed,
        fixed_text=fixed_text,
        left_out=texts.left_out,
        table=texts.table,
    )
    with setup.ctx.busy("choosing capability prompts"):
        prompts = student_prompts(
            tokenizer,
            setup.experts,
            count=config.schedule.capability_prompts,
            max_new_tokens=config.schedule.capability_tokens,
            context=config.optimizer.max_seq_len,
        )
    experts: dict[str, PreparedExpert] = {}
    for spec in setup.experts:
        experts[spec.name] = prepare_expert(setup, spec, fixed[spec.name], split)
        _score_capabilities(setup, spec, prompts)
    if not scores_online(config):
        setup.pool.release()
    return PreparedRun(tokenizer, experts, prompts)


def _hold_out(
    texts: RunTexts, config: RunConfig
) -> tuple[dict[str, list[Example]], frozenset[str]]:
    """The text in memory, and the split keys of what is held out of it."""
    data = config.data
    block_bytes = round(config.optimizer.max_seq_len * BYTES_PER_TOKEN)
    held_out = corpus.held_out_keys(texts.fixed, data.held_out, data.max_held_out_blocks)
    budget = min(
        data.held_out * corpus.total_bytes(texts.fixed), data.max_held_out_blocks * block_bytes
    )
    return corpus.split_large_documents(texts.fixed, held_out, budget, block_bytes)


def _score_capabilities(setup: RunSetup, spec: ExpertSpec, prompts: list[Prompt]) -> None:
    """The expert's capability scores, on the prompts of the capabilities that it teaches."""
    taught_prompts = [prompt for prompt in prompts if prompt.capability in spec.capabilities]
    if not taught_prompts:
        return
    scores = score_expert(
        setup.cache_dir(spec),
        spec.name,
        setup.identity(spec) + str(setup.dtype),
        taught_prompts,
        setup.config.schedule.capability_tokens,
        load=lambda: setup.pool.get(spec),
        heartbeat=setup.ctx.checkpoint_point,
    )
    setup.ctx.emit(msgspec.structs.replace(scores, seq=0, time=0.0))
