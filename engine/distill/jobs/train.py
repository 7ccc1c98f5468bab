"""The training job: find the starting point, prepare the experts, train, save the model.

The worker process calls `main`. Only worker processes import torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import torch
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.budget import scores_online, streams_text
from engine.checkpoint.layout import RUN_CONFIG
from engine.checkpoint.model_record import describe_run, write_held_out
from engine.checkpoint.train_state import TrainState
from engine.cleaning import record_made
from engine.config import digest, to_json
from engine.determinism import refuse_nondeterminism, set_deterministic
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.attention import why_not_packed
from engine.distill.jobs.memory_fit import fit_into_memory
from engine.distill.jobs.preparation import PreparedRun, prepare_run
from engine.distill.jobs.resume import (
    StartingPoint,
    check_streamed_texts,
    check_tokenizer,
    find_starting_point,
)
from engine.distill.jobs.sealing import Sealing
from engine.distill.jobs.setup import RunSetup
from engine.distill.jobs.training_run import TrainingRun, open_run
from engine.distill.student import build_student, save_student
from engine.distill.teacher.pool import TeacherPool
from engine.distill.teacher.teacher import Teacher
from engine.distill.train.batches import TrainingData
from engine.distill.train.evaluator import EvaluationData
from engine.distill.train.lens import Lens
from engine.distill.train.on_policy import OnPolicyRounds
from engine.distill.train.phases import Decision, Phase
from engine.distill.train.questions import QuestionAnswerer
from engine.distill.train.run_files import RecentEvents, RunFiles
from engine.distill.train.session import Session
from engine.distill.train.trainer import Trainer, TrainerParts
from engine.errors import GladiusError
from engine.events import ExpertShare, JobRequest, PhasePlan, PhaseStarted, Progress
from engine.out_of_memory import is_out_of_memory
from engine.run.disk import retry_when_full
from engine.run.job import JobContext, JobStopped, run_started
from engine.sizing import GIB, parameter_count
from engine.template_date import use_date_of_run
from engine.workspace import write_bytes

SAMPLE_PROMPTS = (
    "What are your capabilities?",
    "Route this query to a tool: search for gold analysis",
    "Explain in two sentences why the sky is blue.",
)

_AFTER_ALL_STEPS = 10**9


def main(ctx: JobContext, request: JobRequest) -> int:
    """Train as requested; returns the worker's exit code."""
    transformers_logging.disable_progress_bar()  # libraries print nothing
    run = open_run(ctx, request)
    run.workspace.create()
    start = find_starting_point(run)
    _set_up_torch(run, start)
    sealing = Sealing(
        run.workspace, run.config, run.experts, ctx, request.run_id, sealed=start.seal
    )
    sealing.begin()
    use_date_of_run(sealing.began)
    config = to_json(sealing.stored_config)
    write_bytes(run.workspace.checkpoints_dir / RUN_CONFIG, config)
    recent = RecentEvents(ctx, start.state)
    _report_start(run, start, sealing)
    with refuse_nondeterminism():
        return _train(run, start, sealing, recent)


def _train(run: TrainingRun, start: StartingPoint, sealing: Sealing, recent: RecentEvents) -> int:
    """Prepare, train, finish; returns the worker's exit code."""
    fit = fit_into_memory(run, start)
    try:
        if start.state is None:
            _report_phase(run, run.phases[0])
        # What is prepared is stored piece by piece: on a full disk it is begun again where it was.
        prepared = retry_when_full(
            run.ctx, lambda: _prepare(run, sealing), what="the prepared text"
        )
        trainer = _build_trainer(run, start, prepared, fit.device, fit.decisions)
        seal = sealing.complete(prepared.vocabulary.digest, prepared.run.stream_fingerprints)
        trainer.checkpoints.keep_with_run(
            RunFiles(run.workspace.checkpoints_dir, sealing.stored_config, seal, recent)
        )
    except JobStopped:
        return run.ctx.ended("stopped", "stopped before the first step; what was prepared is kept")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise GladiusError(_preparation_text(run, error)) from error
    if trainer.run() == "stopped":
        progress = trainer.session.progress
        return run.ctx.ended(
            "stopped",
            f"stopped at step {progress.step}; continue with: resume",
            step=progress.step,
            tokens_seen=progress.tokens_seen,
            seconds=trainer.pace.training_seconds,
        )
    return _finish(run, prepared, trainer)


def _preparation_text(run: TrainingRun, error: Exception) -> str:
    """Out of memory before the first step, with the remedies."""
    what = " ".join(str(error).split())[:160]
    text = f"out of memory before the first step, with the smallest batches ({what}); "
    if run.device.type == "cuda":
        return text + "free memory on the GPU, or run on the CPU: --set device.device=cpu"
    return text + "close other programs, or choose smaller experts (--experts)"


# Before the first step


def _set_up_torch(run: TrainingRun, start: StartingPoint) -> None:
    """Threads as in the checkpoint: results are exact only for the same number of threads."""
    cores = hardware.physical_cores()
    threads = run.config.device.threads or start.threads or cores
    if threads > cores and not run.config.device.threads:
        run.ctx.log(
            f"the run uses {threads} threads and this machine has {cores} cores: training is "
            "slower, but gives the same results",
            "warning",
        )
    torch.set_num_threads(threads)
    torch.manual_seed(run.config.seed)
    set_deterministic(run.config.device.deterministic, run.device)
    if run.device.type == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        why = why_not_packed(run.device, run.dtype)
        if why:
            run.ctx.log(f"attention uses dense masks, packed attention is not available: {why}")
        run.ctx.log(f"GPU: {gpu.name}, {gpu.total_memory / GIB:.1f} GiB, id {gpu.uuid}")


def _report_start(run: TrainingRun, start: StartingPoint, sealing: Sealing) -> None:
    schedule = run.schedule(start.decisions)
    count = parameter_count(run.config.student).total
    mix = schedule.mix_at(_AFTER_ALL_STEPS)
    run.ctx.emit(
        run_started(
            run.request,
            step=start.step or 0,
            config=msgspec.to_builtins(run.config),
            config_digest=digest(sealing.stored_config),
            preset=run.config.preset,
            device=run.device.type,
            precision="bf16" if run.dtype == torch.bfloat16 else "fp32",
            current_params=count if start.state is not None else 0,
            target_params=count,
            max_steps=run.config.schedule.max_steps,
            tokens_per_step=schedule.tokens_per_step,
            phases=tuple(
                PhasePlan(index=p.index, name=p.name, expert=p.expert, share=p.share)
                for p in run.phases
            ),
            experts=tuple(
                ExpertShare(
                    name=spec.name,
                    title=spec.title,
                    share=mix[spec.name],
                    capabilities=spec.capabilities,
                )
                for spec in run.experts
            ),
            resumed_from=start.step,
            streams_text=streams_text(run.config),
        )
    )


def _report_phase(run: TrainingRun, phase: Phase, step: int = 0) -> None:
    """The start of a phase without optimizer steps."""
    run.ctx.emit(
        PhaseStarted(
            step=step,
            phase=phase.index,
            phases=run.phases[-1].index,
            name=phase.name,
            expert=phase.expert,
            first_step=step,
            last_step=step,
        )
    )


@dataclass(frozen=True)
class _PreparedTraining:
    """The prepared experts, and what follows from them.

    Attributes:
        held_out: folder of each expert's held-out targets, below the experts' cache.
        teachers: the experts in memory, by name.
    """

    run: PreparedRun
    vocabulary: ByteVocabulary
    held_out: dict[str, str]
    teachers: Mapping[str, Teacher]


def _prepare(run: TrainingRun, sealing: Sealing) -> _PreparedTraining:
    """Text, tokenizer and experts. Raises JobStopped."""
    pool = TeacherPool(
        run.workspace,
        run.ctx,
        run.device,
        run.dtype,
        keep_all=scores_online(run.config),
        check=sealing.checking_expert,
    )
    prepared = prepare_run(
        RunSetup(
            workspace=run.workspace,
            config=run.config,
            experts=run.experts,
            ctx=run.ctx,
            pool=pool,
            dtype=run.dtype,
            sealing=sealing,
        )
    )
    cache = run.workspace.experts_cache_dir
    held_out = {
        name: expert.held_out.folder.relative_to(cache).as_posix()
        for name, expert in prepared.experts.items()
    }
    write_held_out(run.workspace.checkpoints_dir, sealing.stored_config, held_out)
    tokenizer = prepared.tokenizer.backend_tokenizer
    return _PreparedTraining(
        run=prepared,
        vocabulary=ByteVocabulary(tokenizer, run.config.student.vocab_size),
        held_out=held_out,
        teachers=pool.loaded,
    )


def _build_trainer(
    run: TrainingRun,
    start: StartingPoint,
    prepared: _PreparedTraining,
    device: torch.device,
    decisions: list[Decision],
) -> Trainer:
    """A trainer at the starting point; `decisions` were made since the journal was read.

    Raises UsageError if the checkpoint belongs to another tokenizer or text.
    """
    texts = prepared.run.stream_fingerprints
    if start.state is not None:
        check_tokenizer(run, start.state, prepared.vocabulary.digest)
        check_streamed_texts(start.state, texts)
    session = Session(
        _create_student(run, prepared.run, device),
        optimizer=run.config.optimizer,
        guards=run.config.guards,
        vocabulary=prepared.vocabulary.digest,
        texts=texts,
    )
    trainer = Trainer(
        TrainerParts(
            config=run.config,
            ctx=run.ctx,
            session=session,
            data=_training_data(run, prepared.run),
            evaluation=_evaluation_data(prepared),
            schedule=run.schedule([*start.decisions, *decisions]),
            journal=run.journal,
            checkpoints=run.checkpoints,
            dtype=run.dtype,
            training_seconds=_training_seconds(run, start.state),
        )
    )
    if start.state is not None:
        trainer.restore(start.state)
    answerer = QuestionAnswerer(
        session.model, prepared.run.tokenizer, run.dtype, prepared.teachers, run.ctx
    )
    run.ctx.questions.attach(answerer.answer)
    return trainer


def _create_student(
    run: TrainingRun, prepared: PreparedRun, device: torch.device
) -> LlamaForCausalLM:
    with run.ctx.busy("creating the student"):
        model = build_student(run.config.student, prepared.tokenizer, run.config.seed)
        model.to(device)  # type: ignore[arg-type]
    run.ctx.emit(
        Progress(
            task="create",
            label="parameters created",
            done=sum(p.numel() for p in model.parameters()),
            total=parameter_count(run.config.student).total,
            unit="parameters",
            finished=True,
        )
    )
    return model


def _training_data(run: TrainingRun, prepared: PreparedRun) -> TrainingData:
    rounds = None
    if run.config.schedule.on_policy_share > 0:
        rounds = OnPolicyRounds(
            run.config,
            prepared.tokenizer,
            {name: expert.on_policy for name, expert in prepared.experts.items()},
            online=scores_online(run.config),
            dtype=run.dtype,
            heartbeat=run.ctx.checkpoint_point,
        )
    sources = {name: expert.sources for name, expert in prepared.experts.items()}
    return TrainingData(sources, rounds)


def _evaluation_data(prepared: _PreparedTraining) -> EvaluationData:
    tokenizer, experts = prepared.run.tokenizer, prepared.run.experts
    probes = {name: expert.probes for name, expert in experts.items() if expert.probes is not None}
    return EvaluationData(
        held_out={name: expert.held_out for name, expert in experts.items()},
        tokenizer=tokenizer,
        sample_prompts=SAMPLE_PROMPTS,
        capability_prompts=prepared.run.capability_prompts,
        lens=Lens(
            probes, prepared.vocabulary, lambda token: str(tokenizer.convert_ids_to_tokens(token))
        ),
    )


def _training_seconds(run: TrainingRun, state: TrainState | None) -> float:
    """Unpaused time of earlier attempts, and of this one so far."""
    former = 0.0 if state is None else float(state.scalars["training_seconds"])
    this_attempt = time.monotonic() - run.ctx.began - run.ctx.paused_seconds
    return max(run.request.training_seconds, former) + this_attempt


# After the last step


def _finish(run: TrainingRun, prepared: _PreparedTraining, trainer: Trainer) -> int:
    """Save a checkpoint and the finished model."""
    progress = trainer.session.progress
    _report_phase(run, run.phases[-1], progress.step)
    trainer.checkpoints.save("final")
    record_made(run.workspace, run.workspace.models / f".tmp-{run.workspace.model_dir.name}")
    with run.ctx.busy("saving the model"):
        record = describe_run(
            run.config,
            run.experts,
            step=progress.step,
            tokens_seen=progress.tokens_seen,
            training_seconds=trainer.pace.training_seconds,
            evaluations=progress.evaluations,
            held_out=prepared.held_out,
        )
        retry_when_full(
            run.ctx,
            lambda: save_student(
                trainer.session.model,
                prepared.run.tokenizer,
                run.workspace.model_dir,
                run.dtype,
                record,
            ),
            what="the model",
            step=progress.step,
        )
    return run.ctx.ended(
        "completed",
        f"trained {progress.step:,} steps",
        step=progress.step,
        model_path=str(run.workspace.model_dir),
        tokens_seen=progress.tokens_seen,
        seconds=trainer.pace.training_seconds,
    )
