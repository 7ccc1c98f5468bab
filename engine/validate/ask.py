"""The ask job: a trained model, and an expert beside it, answer one prompt of the user's own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.config import RunConfig
from engine.distill.device import device_and_dtype
from engine.distill.student import student_generator
from engine.distill.teacher.loading import load_teacher
from engine.distill.train.questions import answer_of
from engine.errors import GladiusError, UsageError
from engine.events import STUDENT, Answer, JobRequest, Question, QuestionAnswered
from engine.experts.registry import ExpertSpec, expert_path, expert_status, load_experts
from engine.export.model_source import ModelSource
from engine.run.job import JobContext, JobStopped, run_started
from engine.structs import nearest
from engine.validate.choice import ValidateConfig, choose_model
from engine.validate.loading import LoadedModel, load_folder, set_threads
from engine.workspace import Workspace


class AskConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, of which model."""

    question: Question
    checkpoint: str | None = None
    """`latest`, `best` or a step; None: the finished model, or else the newest checkpoint."""
    experts: tuple[str, ...] | None = None
    """Experts that answer too; None: the first expert of the run that is on this machine."""


def main(ctx: JobContext, request: JobRequest) -> int:
    """Answer the AskConfig in `request.config`; returns the worker's exit code."""
    transformers_logging.disable_progress_bar()
    config = msgspec.json.decode(request.config, type=AskConfig)
    workspace = Workspace.find(request.root)
    ctx.emit(run_started(request, config=msgspec.to_builtins(config)))
    began = time.monotonic()
    try:
        choice = ValidateConfig(checkpoint=config.checkpoint)
        with choose_model(workspace, choice, lambda: ctx.checkpoint_point("reading")) as source:
            answers = list(_answers(ctx, workspace, config, source))
    except JobStopped:
        return ctx.ended("stopped", "stopped before the answer")
    ctx.emit(
        QuestionAnswered(
            id=config.question.id,
            prompt=config.question.prompt,
            answers=tuple(answers),
            note="" if len(answers) > 1 else "no expert answered: none of this run is here",
            seconds=time.monotonic() - began,
        )
    )
    return ctx.ended("completed")


def _answers(
    ctx: JobContext, workspace: Workspace, config: AskConfig, source: ModelSource
) -> Iterator[Answer]:
    """The student's answer, then the experts'; each model is dropped before the next is loaded."""
    experts = _experts(workspace, config, source)
    yield _student_answer(ctx, config.question, source)
    for spec in experts:
        yield _expert_answer(ctx, workspace, config.question, spec)


def _experts(workspace: Workspace, config: AskConfig, source: ModelSource) -> list[ExpertSpec]:
    known = load_experts(workspace)
    if config.experts is not None:
        for name in config.experts:
            if name not in known:
                raise UsageError(f"unknown expert {name!r}; {nearest(name, known)}")
        return [known[name] for name in config.experts]
    taught = source.record.experts if source.record is not None else ()
    specs = [known[expert.name] for expert in taught if expert.name in known]
    return [spec for spec in specs if expert_status(workspace, spec).state == "ready"][:1]


def _student_answer(ctx: JobContext, question: Question, source: ModelSource) -> Answer:
    with ctx.busy(f"loading {source.title}"):
        loaded = _loaded(source)
        set_threads(sum(parameter.numel() for parameter in loaded.model.parameters()))
    generator = student_generator(loaded.model, loaded.tokenizer, loaded.dtype)
    return answer_of(generator, STUDENT, "student", question, ctx.checkpoint_point)


def _loaded(source: ModelSource) -> LoadedModel:
    result = load_folder(source.folder)
    if result.loaded is None:
        raise GladiusError(f"{source.title} does not load: {result.value}; see: validate")
    return result.loaded


def _expert_answer(
    ctx: JobContext, workspace: Workspace, question: Question, spec: ExpertSpec
) -> Answer:
    status = expert_status(workspace, spec)
    if status.state != "ready":
        raise UsageError(
            f"{spec.name} is not ready: {status.detail}; run: gladius_train download {spec.name}"
        )
    device, dtype = device_and_dtype(RunConfig(), hardware.has_bf16)
    with ctx.busy(f"loading {spec.title}"):
        path = expert_path(workspace, spec)
        teacher = load_teacher(path, spec, device, dtype, ctx.heartbeat)
        set_threads(sum(parameter.numel() for parameter in teacher.model.parameters()))
    return answer_of(teacher, spec.name, spec.title, question, ctx.checkpoint_point)
