"""Owns a training job from start to end: experts, text, student, training, the finished model.

The worker process calls `main`; nothing else of the program imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from engine import hardware
from engine.budget import scores_online
from engine.checkpoint.layout import JOURNAL, RUN_CONFIG, has_rejected, is_of_run, old_run_folder
from engine.checkpoint.manifest import Manifest
from engine.checkpoint.model_record import describe_run, write_held_out
from engine.checkpoint.store import CheckpointStore
from engine.checkpoint.train_state import TrainState
from engine.config import RunConfig, changed_fields, digest, from_json, to_json
from engine.distill.align.vocabulary import ByteVocabulary
from engine.distill.jobs.preparation import (
    Preparation,
    Prepared,
    TeacherPool,
    device_and_dtype,
    streamed_texts,
)
from engine.distill.student import build_student, save_student, student_encoder
from engine.distill.train.guards import OomLadder
from engine.distill.train.journal import Journal
from engine.distill.train.lens import Lens
from engine.distill.train.on_policy import OnPolicyRounds
from engine.distill.train.phases import Decision, Phase, Schedule, plan_phases
from engine.distill.train.session import Session
from engine.distill.train.trainer import Parts, Trainer
from engine.errors import GladiusError, MissingError, UsageError
from engine.events import (
    CheckpointRejected,
    ExpertShare,
    GuardTripped,
    JobRequest,
    PhasePlan,
    PhaseStarted,
    Progress,
)
from engine.experts.registry import ExpertSpec, expert_status, load_experts
from engine.run.job import JobContext, JobStopped, run_started
from engine.sizing import GIB, parameter_count, training_memory
from engine.workspace import Workspace, write_bytes

SAMPLE_PROMPTS = (
    "What are your capabilities?",
    "Route this query to a tool: search for gold analysis",
    "Explain in two sentences why the sky is blue.",
)


def main(ctx: JobContext, request: JobRequest) -> int:
    """Trains as the request says; returns the worker's exit code."""
    return TrainingJob(ctx, request).run()


class TrainingJob:
    """One attempt at a training run."""

    def __init__(self, ctx: JobContext, request: JobRequest) -> None:
        self.ctx = ctx
        self.request = request
        self.workspace = Workspace.find(request.root)
        self.config: RunConfig = from_json(request.config)
        self.held_out: dict[str, str] = {}
        self.experts = self._experts()
        self.phases = plan_phases(self.config, self.experts)
        self.journal = Journal(self.workspace.checkpoints_dir / JOURNAL)
        self.device, self.dtype = device_and_dtype(self.config, hardware.has_bf16)
        self.teacher_device = self.device  # stays where it is when the student must go to the CPU
        self.checkpoints = CheckpointStore(
            self.workspace.checkpoints_dir,
            self.config.checkpoint.keep,
            self.config.checkpoint.keep_best,
            lambda: ctx.heartbeat("reading or writing a checkpoint"),
        )

    def _experts(self) -> list[ExpertSpec]:
        known = load_experts(self.workspace)
        specs = [known[name] for name in self.config.experts.names]
        lacking = [s.name for s in specs if expert_status(self.workspace, s).state != "ready"]
        if lacking:
            raise MissingError(
                f"not ready: {', '.join(lacking)}; run: gladius_train download {' '.join(lacking)}"
            )
        return specs

    def run(self) -> int:
        transformers_logging.disable_progress_bar()  # libraries print nothing
        self.workspace.create()
        if self.request.fresh:
            self._set_aside_former_run()
        self.checkpoints.remove_temporaries()
        loaded = self._former()
        self._set_up_torch(loaded[1] if loaded else None)
        decisions = self.journal.read() if loaded else []
        if not loaded:
            self.journal.clear()
        write_bytes(self.workspace.checkpoints_dir / RUN_CONFIG, to_json(self.config))
        self._announce(loaded[0].step if loaded else None, decisions)
        decisions += self._fit_into_memory(decisions)
        try:
            trainer, tokenizer = self._build(loaded, decisions)
        except JobStopped:
            reason = "stopped before the first step; what was prepared is kept"
            return self.ctx.ended("stopped", reason)
        if trainer.run() == "stopped":
            step = trainer.session.progress.step
            return self.ctx.ended(
                "stopped",
                f"stopped at step {step:,}; continue with: resume",
                step=step,
                tokens_seen=trainer.session.progress.tokens_seen,
                seconds=trainer.pace.training_seconds,
            )
        return self._finish(trainer, tokenizer)

    # Before the first step

    def _set_aside_former_run(self) -> None:
        """Everything of the former run goes to old-<time>/, nothing is deleted."""
        folder = self.workspace.checkpoints_dir
        target = folder / old_run_folder()
        for item in sorted(folder.iterdir()):
            if is_of_run(item.name):
                target.mkdir(exist_ok=True)
                item.rename(target / item.name)

    def _former(self) -> tuple[TrainState, Manifest] | None:
        """The checkpoint to go on from, checked against this config."""
        folder = self.workspace.checkpoints_dir
        if not self.request.resume:
            if self.checkpoints.list():
                raise UsageError(
                    f"{folder} holds checkpoints of a run; go on with "
                    "`resume`, or start anew with `train --fresh` (they are kept aside)"
                )
            # Such as the tokenizer of a run with another config that never took a step.
            self._set_aside_former_run()
            return None
        loaded = self.checkpoints.load_newest(self._reject)
        if loaded is None:
            # A run that was stopped before its first checkpoint goes on with what it prepared.
            if (folder / RUN_CONFIG).is_file() and not has_rejected(folder):
                return None
            raise MissingError(
                f"no checkpoint in {folder} can be resumed (none was deleted); "
                "start anew with: gladius_train train --fresh"
            )
        state, manifest = loaded
        if manifest.config_digest != digest(self.config):
            old = from_json(self.checkpoints.read_config(state.step))
            differing = [
                f"{name} was {before!r}, now {after!r}"
                for name, before, after, mutable in changed_fields(old, self.config)
                if not mutable
            ]
            raise UsageError(
                f"the checkpoint of step {state.step} belongs to another config "
                f"({'; '.join(differing)}): put it back, or start anew with `train --fresh`"
            )
        return self._before_decay(state, manifest)

    def _before_decay(self, state: TrainState, manifest: Manifest) -> tuple[TrainState, Manifest]:
        """A finished run that is given more to do goes on from before its decay."""
        schedule = self._schedule(self.journal.read())
        decay, end = schedule.decay_begun, schedule.end_step
        limit = self.config.schedule.max_steps
        hours = self.config.schedule.hours
        more_steps = limit is not None and end is not None and limit > end
        spent = float(state.scalars.get("training_seconds", 0.0))
        more_hours = limit is None and hours is not None and hours * 3600 > spent + 60
        finished = decay is not None and end is not None and state.step >= end
        if not finished or not (more_steps or more_hours):
            return state, manifest
        earlier = self.checkpoints.load_newest(self._reject, up_to=decay)
        if earlier is None:
            return state, manifest
        self.checkpoints.supersede_after(earlier[0].step)
        self.journal.truncate(earlier[0].step)
        self.ctx.log(f"going on from step {earlier[0].step}, before the learning rate decayed")
        return earlier

    def _reject(self, path: Path, reason: str, moved_to: Path | None) -> None:
        self.ctx.emit(
            CheckpointRejected(
                path=str(path), reason=reason, moved_to="" if moved_to is None else str(moved_to)
            )
        )

    def _set_up_torch(self, manifest: Manifest | None) -> None:
        """Threads as the checkpoint had them: results are exact only for the same number."""
        cores = hardware.physical_cores()
        threads = self.config.device.threads or cores
        if manifest is not None and not self.config.device.threads:
            threads = manifest.threads
            if threads > cores:
                self.ctx.log(
                    f"the run had {threads} threads and this machine has {cores} cores: it is "
                    "slower, but goes on exactly",
                    "warning",
                )
        torch.set_num_threads(threads)
        torch.manual_seed(self.config.seed)
        if self.config.device.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)

    def _schedule(self, decisions: list[Decision]) -> Schedule:
        optimizer = self.config.optimizer
        tokens = optimizer.rows_per_step * optimizer.max_seq_len
        return Schedule(self.config, self.phases, tokens, decisions)

    def _announce(self, resumed_from: int | None, decisions: list[Decision]) -> None:
        optimizer = self.config.optimizer
        count = parameter_count(self.config.student).total
        mix = self._schedule(decisions).mix_at(10**9)
        self.ctx.emit(
            run_started(
                self.request,
                step=resumed_from or 0,
                config=msgspec.to_builtins(self.config),
                config_digest=digest(self.config),
                preset=self.config.preset,
                device=self.device.type,
                precision="bf16" if self.dtype == torch.bfloat16 else "fp32",
                current_params=count if resumed_from is not None else 0,
                target_params=count,
                max_steps=self.config.schedule.max_steps,
                tokens_per_step=optimizer.rows_per_step * optimizer.max_seq_len,
                phases=tuple(
                    PhasePlan(index=p.index, name=p.name, expert=p.expert, share=p.share)
                    for p in self.phases
                ),
                experts=tuple(
                    ExpertShare(
                        name=s.name,
                        title=s.title,
                        share=mix[s.name],
                        capabilities=s.capabilities,
                    )
                    for s in self.experts
                ),
                resumed_from=resumed_from,
            )
        )

    def _fit_into_memory(self, decisions: list[Decision]) -> list[Decision]:
        """Steps down the ladder until the estimate fits; refuses, with the figures, when none does.

        Before anything is allocated: a CPU has no out-of-memory error to catch.
        """
        ladder = OomLadder(
            rows_per_step=self.config.optimizer.rows_per_step,
            micro_batch_size=self.config.optimizer.micro_batch_size,
            activation_checkpointing=self.config.optimizer.activation_checkpointing,
            device=self.device.type,
        )
        for decision in decisions:
            ladder = ladder.after(decision)
        taken: list[Decision] = []
        online = scores_online(self.config)
        # Two bytes a parameter: experts stand beside the student in half precision.
        teachers = sum(2 * spec.parameters for spec in self.experts) if online else 0
        beside = f", the experts beside it {teachers / GIB:.1f} GiB" if teachers else ""
        while True:
            optimizer = msgspec.structs.replace(
                self.config.optimizer,
                micro_batch_size=ladder.micro_batch_size,
                activation_checkpointing=ladder.activation_checkpointing,
            )
            config = msgspec.structs.replace(self.config, optimizer=optimizer)
            need = training_memory(config, self.dtype == torch.bfloat16)
            free = self._free_memory(ladder.device)
            if need.total + teachers <= free:
                break
            decision = ladder.next(0)
            if decision is None:
                raise GladiusError(
                    f"training this student needs {need.sentence()}{beside}, and "
                    f"{free / GIB:.1f} GiB of {_memory_of(ladder.device)} are free: close other "
                    "programs, lower optimizer.max_seq_len, or choose a smaller student "
                    "(--preset nano)"
                )
            ladder = ladder.after(decision)
            taken.append(decision)
        self.device = torch.device(ladder.device)
        for decision in taken:
            self.journal.append(decision)
            self.ctx.emit(
                GuardTripped(
                    guard="out_of_memory",
                    action=f"{decision.kind.replace('_', ' ')} is {decision.value} from the start: "
                    "more would not fit in memory",
                )
            )
        return taken

    def _free_memory(self, device: str) -> int:
        if device == "cuda":
            return torch.cuda.mem_get_info()[0]
        return hardware.available_ram()

    def _build(
        self, loaded: tuple[TrainState, Manifest] | None, decisions: list[Decision]
    ) -> tuple[Trainer, PreTrainedTokenizerFast]:
        """Text, student and trainer."""
        online = scores_online(self.config)
        pool = TeacherPool(
            self.workspace, self.ctx, self.teacher_device, self.dtype, keep_all=online
        )
        preparation = Preparation(
            self.workspace,
            self.config,
            self.experts,
            self.ctx,
            pool,
            self.dtype,
        )
        if loaded is None:
            self._enter(self.phases[0])
        texts = preparation.texts()
        tokenizer = preparation.tokenizer(texts)
        prepared = preparation.prepare(texts, tokenizer)
        cache = self.workspace.experts_cache_dir
        self.held_out = {
            name: part.held_out.folder.relative_to(cache).as_posix()
            for name, part in prepared.items()
        }
        write_held_out(self.workspace.checkpoints_dir, self.config, self.held_out)
        vocabulary = ByteVocabulary(tokenizer.backend_tokenizer, self.config.student.vocab_size)
        if loaded is not None and loaded[0].scalars.get("vocabulary") != vocabulary.digest:
            raise UsageError(
                "the checkpoint was trained with another tokenizer than the one that is here now "
                f"({self.config.student.tokenizer}): put the former one back, or start anew with "
                "`train --fresh`"
            )
        texts = streamed_texts(prepared.values())
        self._refuse_other_text(loaded[0].scalars.get("texts", {}) if loaded else texts, texts)
        with self.ctx.busy("creating the student"):
            model = build_student(self.config.student, tokenizer, self.config.seed)
            model.to(self.device)  # type: ignore[arg-type]
        total = parameter_count(self.config.student).total
        self.ctx.emit(
            Progress(
                task="create",
                label="parameters created",
                done=sum(p.numel() for p in model.parameters()),
                total=total,
                unit="parameters",
                finished=True,
            )
        )
        trainer = Trainer(
            Parts(
                config=self.config,
                config_json=to_json(self.config),
                config_digest=digest(self.config),
                session=Session(
                    *(model, self.config.optimizer, self.config.guards),
                    *(vocabulary.digest, texts),
                ),
                tokenizer=tokenizer,
                feeds={name: part.feeds for name, part in prepared.items()},
                held_out={name: part.held_out for name, part in prepared.items()},
                schedule=self._schedule(decisions),
                journal=self.journal,
                checkpoints=self.checkpoints,
                ctx=self.ctx,
                device=self.device,
                dtype=self.dtype,
                sample_prompts=SAMPLE_PROMPTS,
                lens=_lens(prepared, vocabulary, tokenizer),
                rounds=self._rounds(prepared, tokenizer),
                training_seconds=self._training_seconds(loaded),
                measured=preparation.measured,
            )
        )
        if loaded is not None:
            trainer.restore(loaded[0])
        return trainer, tokenizer

    def _rounds(
        self, prepared: dict[str, Prepared], tokenizer: PreTrainedTokenizerFast
    ) -> OnPolicyRounds | None:
        if self.config.schedule.on_policy_share == 0:
            return None
        return OnPolicyRounds(
            self.config,
            tokenizer,
            student_encoder(tokenizer, self.config.student.vocab_size),
            {name: part.judge for name, part in prepared.items()},
            scores_online(self.config),
            self.dtype,
            self.ctx.checkpoint_point,
        )

    def _refuse_other_text(self, former: dict[str, str], texts: dict[str, str]) -> None:
        """A place in a text means nothing in another one."""
        changed = [name for name in {**former, **texts} if former.get(name) != texts.get(name)]
        if changed:
            raise UsageError(
                f"the streamed text of {', '.join(changed)} has changed since the checkpoint "
                "(files came, went or have another size): put it back, or start anew with "
                "`train --fresh`"
            )

    def _training_seconds(self, loaded: tuple[TrainState, Manifest] | None) -> float:
        """Unpaused worker time so far: of the former attempts, and of this one's preparation."""
        former = float(loaded[0].scalars["training_seconds"]) if loaded else 0.0
        here = time.monotonic() - self.ctx.began - self.ctx.paused_seconds
        return max(self.request.training_seconds, former) + here

    # After the last step

    def _finish(self, trainer: Trainer, tokenizer: PreTrainedTokenizerFast) -> int:
        """Phase 6: a checkpoint, and the model for others to use."""
        step = trainer.session.progress.step
        self._enter(self.phases[-1], step)
        trainer.save("final")
        with self.ctx.busy("saving the model"):
            progress = trainer.session.progress
            record = describe_run(
                self.config,
                self.experts,
                step=step,
                tokens_seen=progress.tokens_seen,
                training_seconds=trainer.pace.training_seconds,
                evaluations=progress.evaluations,
                held_out=self.held_out,
            )
            folder = self.workspace.model_dir
            save_student(trainer.session.model, tokenizer, folder, self.dtype, record)
        return self.ctx.ended(
            "completed",
            f"trained {step:,} steps",
            step=step,
            model_path=str(self.workspace.model_dir),
            tokens_seen=trainer.session.progress.tokens_seen,
            seconds=trainer.pace.training_seconds,
        )

    def _enter(self, phase: Phase, step: int = 0) -> None:
        self.ctx.emit(
            PhaseStarted(
                step=step,
                phase=phase.index,
                phases=self.phases[-1].index,
                name=phase.name,
                expert=phase.expert,
                first_step=step,
                last_step=step,
            )
        )


def _lens(
    prepared: Mapping[str, Prepared], vocabulary: ByteVocabulary, tokenizer: PreTrainedTokenizerFast
) -> Lens:
    experts = {name: part.probes for name, part in prepared.items() if part.probes is not None}
    return Lens(experts, vocabulary, lambda token: str(tokenizer.convert_ids_to_tokens(token)))


def _memory_of(device: str) -> str:
    return "GPU memory" if device == "cuda" else "memory"
