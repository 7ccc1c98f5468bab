"""Owns the checks of the experts: whether they are here, what the Hub says of those that are not,
and how well each can be heard by the student.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Literal

from engine.config import RunConfig
from engine.doctor.check import Check
from engine.errors import GladiusError
from engine.events import TokenizersAudited
from engine.experts.registry import VERIFY, ExpertSpec, ExpertStatus, expert_path
from engine.units import size
from engine.workspace import Workspace

HUB_SECONDS = 15.0


def check_token(missing: Sequence[ExpertSpec]) -> Check:
    """Whether the Hub's client finds a token (which is never shown), and whether one is needed."""
    from huggingface_hub import constants, get_token

    gated = [spec.name for spec in missing if spec.gated]
    try:
        token = get_token()
    except Exception:  # an unreadable file, or a broken single sign-on
        token = None
    if token:
        place = "HF_TOKEN" if os.environ.get("HF_TOKEN") else constants.HF_TOKEN_PATH
        return Check(topic="token", status="ok", figure=f"found ({place})")
    if gated:
        return Check(
            topic="token",
            status="fail",
            figure=f"none, and {', '.join(gated)} can't be had without one",
            remedy="make one at https://huggingface.co/settings/tokens, then: hf auth login "
            "(or export HF_TOKEN=...)",
        )
    return Check(topic="token", status="note", figure="none, and none is needed")


def ask_hub(
    specs: Sequence[ExpertSpec], seconds: float = HUB_SECONDS
) -> dict[str, int | Exception]:
    """For each expert: the bytes that the Hub would send, or why it would not; all asked at once.

    TimeoutError for those that did not answer within `seconds`.
    """
    from engine.experts.hub import list_files

    answers: dict[str, int | Exception] = {}

    def ask(spec: ExpertSpec) -> None:
        try:
            answers[spec.name] = list_files(spec).total
        except Exception as error:
            answers[spec.name] = error

    threads = [threading.Thread(target=ask, args=(spec,), daemon=True) for spec in specs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    waiting = TimeoutError(f"no answer within {seconds:.0f} s")
    return {spec.name: answers.get(spec.name, waiting) for spec in specs}


def check_hub(answers: Mapping[str, int | Exception]) -> Check:
    """Whether the Hub answers, where something is still to be fetched from it."""
    from huggingface_hub import constants

    if not answers:
        figure = "not asked: nothing is to be fetched from it"
        return Check(topic="hub", status="note", figure=figure)
    # A GladiusError is the Hub's own answer, if not the one hoped for; anything else is the way.
    lost = [
        " ".join(str(error).split()).removeprefix(f"{name}: ")
        for name, error in answers.items()
        if isinstance(error, Exception) and not _is_answer(error)
    ]
    if lost:
        why = lost[0]
        figure = why.partition("; ")[0]
        if constants.ENDPOINT not in figure:
            figure = f"{constants.ENDPOINT}: {figure}"
        off = "HF_HUB_OFFLINE" in why
        way = "unset HF_HUB_OFFLINE" if off else "look at the network, HTTPS_PROXY and HF_ENDPOINT"
        return Check(
            topic="hub",
            status="fail",
            figure=figure,
            remedy=f"{way}; without a Hub, copy an expert's folder to tmp/models/NAME, then: "
            f"{VERIFY}",
        )
    return Check(topic="hub", status="ok", figure=f"{constants.ENDPOINT} answers")


def _is_answer(error: Exception) -> bool:
    return isinstance(error, GladiusError) and "HF_HUB_OFFLINE" not in str(error)


def check_expert(spec: ExpertSpec, state: ExpertStatus, answer: int | Exception | None) -> Check:
    """One expert of the run: whether it is here, and what gets it here."""
    topic = spec.name
    if state.state == "ready":
        return Check(topic=topic, status="ok", figure=f"ready, {size(state.present_bytes)}")
    whole = answer if isinstance(answer, int) else state.expected_bytes
    figure = f"missing, {size(whole)}" if whole else "missing"
    if state.state == "partial":
        figure = f"{size(state.present_bytes)} of {size(whole)}: {state.detail}"
    if spec.source in ("folder", "gguf"):
        what = "put the model" if state.state == "missing" else "put it right"
        remedy = f"{what} at {spec.repo}, or mend the path in gladius.toml"
    elif state.unverified:
        figure, remedy = figure.partition("; ")[0], VERIFY
    elif isinstance(answer, GladiusError) and _is_answer(answer):
        remedy = " ".join(str(answer).split()).removeprefix(f"{spec.name}: ")
    else:
        remedy = f"gladius_train download {spec.name}"
    return Check(topic=topic, status="fail", figure=figure, remedy=remedy)


# Tokenizers


def lender(ws: Workspace, config: RunConfig, experts: Mapping[str, ExpertSpec]) -> str:
    """The expert whose tokenizer the student borrows, where that one is not here; else ""."""
    wanted = config.student.tokenizer
    if wanted not in experts or wanted in audited_experts(ws, experts):
        return ""
    return wanted


def audited_experts(ws: Workspace, experts: Mapping[str, ExpertSpec]) -> list[str]:
    """The registered experts whose tokenizer lies here."""
    found = []
    for name, spec in experts.items():
        path = expert_path(ws, spec)
        if path.is_file() if spec.source == "gguf" else (path / "tokenizer.json").is_file():
            found.append(name)
    return found


def how_heard(audit: TokenizersAudited) -> Literal["good", "fair", "poor"]:
    """How well an expert can be heard, in a word.

    Where it was run, by its mean weight: good from 0.9, fair from 0.75. Else by the share of
    aligned positions, the mean over the kinds of text: good from 80%, fair from 60%; what is not
    aligned is heard through rule 2, at less weight. Never good with over 5% of the blocks skipped,
    poor with over 20%.
    """
    if audit.mean_weight is not None:
        score, good, fair = audit.mean_weight, 0.9, 0.75
    else:
        shares = [kind.aligned for kind in audit.kinds]
        score, good, fair = sum(shares) / max(1, len(shares)), 0.8, 0.6
    skipped = audit.skipped_blocks / max(1, audit.blocks + audit.skipped_blocks)
    if score >= good and skipped <= 0.05:
        return "good"
    return "fair" if score >= fair and skipped <= 0.2 else "poor"
