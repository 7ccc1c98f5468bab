"""Measure the student on held-out text, and let it answer a sample prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from engine.chat import render_chat
from engine.distill.data.packing import make_batch
from engine.distill.student import student_generator
from engine.distill.teacher.soft_targets import SoftTargets
from engine.distill.teacher.target_store import TargetStore
from engine.distill.train.forward import hidden_states
from engine.distill.train.position_scores import score_positions
from engine.events import EvalDone, ExpertScore
from engine.generation import MultinomialSampler
from engine.text.examples import Message


@torch.no_grad()
def evaluate_expert(
    model: LlamaForCausalLM,
    store: TargetStore,
    *,
    temperature: float,
    tokens_per_batch: int,
    device: torch.device,
    dtype: torch.dtype,
    heartbeat: Callable[[str], None],
) -> tuple[ExpertScore, float, int]:
    """Scores on one expert's held-out blocks, and the nats and bytes behind its bits per byte.

    Bits per byte counts the tokens of the text without ends of turn, so it is comparable between
    tokenizers. KL and agreement are means over the positions with a soft target.

    Args:
        temperature: of the stored targets.
        tokens_per_batch: tokens of a batch, padding included.
        dtype: of the matrix products.
        heartbeat: called for each batch.
    """
    nats = kl_sum = 0.0
    text_bytes = positions = with_target = agreed = 0
    for blocks in _batches(store, tokens_per_batch):
        heartbeat("evaluating")
        batch = make_batch([[store.block(n)] for n in blocks], device)
        text_bytes += sum(store.block(n).text_bytes for n in blocks)
        targets = store.targets(blocks, 0)
        hidden = hidden_states(
            model, batch.input_ids, batch.attention(dtype), batch.position_ids, dtype
        )  # (B, L, H)
        for part in score_positions(
            hidden.flatten(0, 1)[batch.gather],
            model.get_output_embeddings().weight,  # type: ignore[union-attr]
            batch.labels,
            SoftTargets.of(targets.to(device)),
            temperature=temperature,
            compute_dtype=dtype,
        ):
            soft = targets.weight[part.span] > 0
            nats += float(part.ce[~batch.is_end[part.span]].double().sum())
            kl_sum += float(part.kl.double().sum())
            positions += len(part.ce)
            with_target += int(soft.sum())
            # the entries are sorted: the first is the expert's most probable token
            agreed += int((part.best == targets.ids[part.span, 0])[soft].sum())
    score = ExpertScore(
        expert=store.key.expert,
        bits_per_byte=nats / math.log(2) / max(1, text_bytes),
        kl=kl_sum / with_target if with_target else None,
        agreement=agreed / with_target if with_target else None,
        positions=positions,
    )
    return score, nats, text_bytes


def _batches(store: TargetStore, tokens_per_batch: int) -> Iterator[list[int]]:
    lengths = store.token_counts()
    batch: list[int] = []
    for n in sorted(range(len(store)), key=lambda n: int(lengths[n])):
        if batch and (len(batch) + 1) * int(lengths[n]) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def evaluate(
    model: LlamaForCausalLM,
    stores: Mapping[str, TargetStore],
    **settings,
) -> EvalDone:
    """Scores on every expert's held-out text; the total bits per byte are over all bytes.

    settings: keyword arguments of `evaluate_expert`. Leaves the model in training mode.
    """
    model.eval()
    try:
        results = [evaluate_expert(model, store, **settings) for store in stores.values()]
    finally:
        model.train()
    nats = sum(n for _, n, _ in results)
    text_bytes = sum(b for _, _, b in results)
    return EvalDone(
        bits_per_byte=nats / math.log(2) / max(1, text_bytes),
        scores=tuple(score for score, _, _ in results),
    )


def draw_sample(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    max_new_tokens: int,
    seed: int,
    dtype: torch.dtype,
    heartbeat: Callable[[str], None],
) -> str:
    """The student's answer to `prompt`, sampled at temperature 0.7.

    seed: of a separate generator; the random state of the training does not change.
    """
    text = render_chat(tokenizer, [Message("user", prompt)])
    ids = tokenizer(text, add_special_tokens=False).input_ids
    sampler = MultinomialSampler(0.7, torch.Generator().manual_seed(seed))
    model.eval()
    try:
        (completion,) = student_generator(model, tokenizer, dtype).complete(
            [ids], [max_new_tokens], sampler, lambda _: heartbeat("writing a sample")
        )
    finally:
        model.train()
    return str(tokenizer.decode(list(completion.ids), skip_special_tokens=True))
