"""Doctor checks of the experts: files, Hub access, and alignment with the student's tokenizer."""

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
    """Whether a Hub token is found (its value is never shown), and whether one is needed."""
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
            figure=f"none; needed to download {', '.join(gated)}",
            remedy="create one at https://huggingface.co/settings/tokens, then: hf auth login "
            "(or export HF_TOKEN=...)",
        )
    return Check(topic="token", status="note", figure="none, not needed")


def query_hub(
    specs: Sequence[ExpertSpec], seconds: float = HUB_SECONDS
) -> dict[str, int | Exception]:
    """For each expert the bytes of its download, or the error; all are requested in parallel.

    The value is a TimeoutError if there was no answer within `seconds`.
    """
    from engine.experts.hub import list_files

    answers: dict[str, int | Exception] = {}

    def query(spec: ExpertSpec) -> None:
        try:
            answers[spec.name] = list_files(spec).total
        except Exception as error:
            answers[spec.name] = error

    threads = [threading.Thread(target=query, args=(spec,), daemon=True) for spec in specs]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    timeout = TimeoutError(f"no answer within {seconds:.0f} s")
    return {spec.name: answers.get(spec.name, timeout) for spec in specs}


def check_hub(answers: Mapping[str, int | Exception]) -> Check:
    """Whether the Hub answers; a note if no expert needs to be downloaded."""
    from huggingface_hub import constants

    if not answers:
        figure = "not contacted: nothing to download"
        return Check(topic="hub", status="note", figure=figure)
    # A GladiusError is an answer of the Hub (such as a refusal); other errors mean no connection.
    failures = [
        " ".join(str(error).split()).removeprefix(f"{name}: ")
        for name, error in answers.items()
        if isinstance(error, Exception) and not _is_answer(error)
    ]
    if failures:
        reason = failures[0]
        figure = reason.partition("; ")[0]
        if constants.ENDPOINT not in figure:
            figure = f"{constants.ENDPOINT}: {figure}"
        remedy = "check the network, HTTPS_PROXY and HF_ENDPOINT"
        if "HF_HUB_OFFLINE" in reason:
            remedy = "unset HF_HUB_OFFLINE"
        return Check(
            topic="hub",
            status="fail",
            figure=figure,
            remedy=f"{remedy}; without a network, copy the expert's folder to tmp/models/NAME, "
            f"then: {VERIFY}",
        )
    return Check(topic="hub", status="ok", figure=f"{constants.ENDPOINT} answers")


def _is_answer(error: Exception) -> bool:
    return isinstance(error, GladiusError) and "HF_HUB_OFFLINE" not in str(error)


def check_expert(spec: ExpertSpec, state: ExpertStatus, answer: int | Exception | None) -> Check:
    """Whether an expert is ready on this machine.

    `answer` is its value from `query_hub`; None if the Hub was not queried.
    """
    topic = spec.name
    if state.state == "ready":
        return Check(topic=topic, status="ok", figure=f"ready, {size(state.present_bytes)}")
    if state.only_times_differ:
        figure = f"{size(state.present_bytes)}, copied: its hashes are compared when it is used"
        return Check(topic=topic, status="note", figure=figure)
    total = answer if isinstance(answer, int) else state.expected_bytes
    figure = f"missing, {size(total)}" if total else "missing"
    if state.state == "partial":
        figure = f"{size(state.present_bytes)} of {size(total)}: {state.detail}"
    if spec.source in ("folder", "gguf"):
        action = "put the model" if state.state == "missing" else "complete the model"
        remedy = f"{action} at {spec.repo}, or correct the path in gladius.toml"
    elif state.unverified:
        figure, remedy = figure.partition("; ")[0], VERIFY
    elif isinstance(answer, GladiusError) and _is_answer(answer):
        remedy = " ".join(str(answer).split()).removeprefix(f"{spec.name}: ")
    else:
        remedy = f"gladius_train download {spec.name}"
    return Check(topic=topic, status="fail", figure=figure, remedy=remedy)


# Tokenizers


def missing_student_tokenizer(
    ws: Workspace, config: RunConfig, experts: Mapping[str, ExpertSpec]
) -> str:
    """The expert whose tokenizer the student uses, if that one is not downloaded; else ""."""
    name = config.student.tokenizer
    if name not in experts or name in experts_with_tokenizer(ws, experts):
        return ""
    return name


def experts_with_tokenizer(ws: Workspace, experts: Mapping[str, ExpertSpec]) -> list[str]:
    """The registered experts whose tokenizer is on this machine."""
    found = []
    for name, spec in experts.items():
        path = expert_path(ws, spec)
        if path.is_file() if spec.source == "gguf" else (path / "tokenizer.json").is_file():
            found.append(name)
    return found


def alignment_quality(audit: TokenizersAudited) -> Literal["good", "fair", "poor"]:
    """How well an expert's distributions can be projected into the student's vocabulary.

    Rated by the mean projection weight if the expert was run (`--listen`): good from 0.9, fair
    from 0.75. Otherwise by the share of aligned positions, the mean over the kinds of text: good
    from 80%, fair from 60%. With more than 5% of the blocks skipped it is at most fair, with more
    than 20% poor.
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
