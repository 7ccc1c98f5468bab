"""A training job from start to end, in this process: events, commands, refusals and files."""

from __future__ import annotations

import json

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.checkpoint.manifest import encode_manifest, is_run_file, read_manifest
from engine.distill.jobs import train as worker_module
from engine.errors import GladiusError, MissingError, UsageError
from engine.events import Checkpoint as CheckpointCommand
from engine.events import (
    CheckpointRejected,
    CheckpointSaved,
    DataReady,
    EvalDone,
    GuardTripped,
    LogLine,
    Pause,
    PhaseStarted,
    Progress,
    Resume,
    RunEnded,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleDrawn,
    StepDone,
    Stop,
)
from engine.sizing import GIB, parameter_count, training_memory
from tests.support.small_run import KeepingLink, make_config, make_root, train


@pytest.fixture
def ws(tmp_path):
    return make_root(tmp_path)


def when(kind: type, step: int, *commands):
    """A link's reaction: these commands at the event of this kind and step."""
    return lambda event: list(commands) if isinstance(event, kind) and event.step == step else []


def ended(link: KeepingLink) -> RunEnded:
    (end,) = link.of(RunEnded)
    assert link.events[-1] is end
    return end


def losses(*links: KeepingLink) -> dict[int, str]:
    return {
        event.step: event.loss.hex() for link in links for event in link.of(StepDone) if event.loss
    }


def test_a_run_reports_its_progress_and_saves_a_model_and_a_checkpoint(ws):
    config = make_config(ws, schedule__eval_interval=5)
    link = KeepingLink()
    assert train(ws, config, link) == 0
    (started,) = link.of(RunStarted)
    count = parameter_count(config.student).total
    assert (started.current_params, started.target_params) == (0, count)
    assert started.resumed_from is None and started.max_steps == 12
    assert (
        [plan.name for plan in started.phases]
        == [e.name for e in link.of(PhaseStarted)]
        == ["Create the student", "Tiny", "All experts", "Save the model"]
    )
    (ready,) = link.of(DataReady)
    assert ready.expert == "tiny" and ready.blocks > 0 and ready.held_out_blocks > 0
    (created,) = [e for e in link.of(Progress) if e.task == "create"]
    assert created.done == created.total == count
    assert link.steps() == list(range(1, 13))
    assert {e.step for e in link.of(EvalDone)} >= {0, 5, 10, 12}
    assert len(link.of(SampleDrawn)) == len(link.of(EvalDone))
    last = link.of(CheckpointSaved)[-1]
    assert (last.step, last.reason) == (12, "final")
    end = ended(link)
    assert (end.status, end.step) == ("completed", 12)
    assert end.tokens_seen == sum(e.tokens for e in link.of(StepDone))
    assert end.model_path == str(ws.model_dir)
    model = AutoModelForCausalLM.from_pretrained(ws.model_dir)
    assert sum(p.numel() for p in model.parameters()) == count


def test_a_run_stopped_and_resumed_anywhere_gives_the_same_numbers(ws, tmp_path):
    """Also between two micro-batches, before an evaluation and before the first step."""
    other = tmp_path / "other"
    other.mkdir()
    fields = {"optimizer__micro_batch_size": 1, "schedule__eval_interval": 3}
    uninterrupted = KeepingLink()
    assert train(make_root(other), make_config(make_root(other), **fields), uninterrupted) == 0

    config = make_config(ws, **fields)
    links = [KeepingLink(when(EvalDone, 0, Stop()))]
    assert train(ws, config, links[0]) == 0 and ended(links[0]).status == "stopped"
    for link in (
        KeepingLink(when(StepDone, 2, Stop())),
        KeepingLink(when(CheckpointSaved, 6, Stop())),
        StoppedInside(8, times=4),
        StoppedInside(9, times=2),
    ):
        links.append(link)
        assert train(ws, config, links[-1], resume=True, attempt=len(links)) == 0
        assert ended(links[-1]).status == "stopped"
    # inside the accumulation of step 9; in the evaluation after it
    assert [link.steps()[-1] for link in links[3:]] == [8, 9]
    assert links[-1].of(EvalDone) == []
    links.append(KeepingLink())
    assert train(ws, config, links[-1], resume=True) == 0
    assert ended(links[-1]).status == "completed"
    assert losses(*links) == losses(uninterrupted)
    values = {e.step: e.bits_per_byte for link in links for e in link.of(EvalDone)}
    assert values == {e.step: e.bits_per_byte for e in uninterrupted.of(EvalDone)}
    for name in ("model.safetensors", "optimizer.safetensors"):
        paths = [r / f"tmp/checkpoints/step-000000012/{name}" for r in (ws.root, other)]
        assert paths[0].read_bytes() == paths[1].read_bytes()


class StoppedInside(KeepingLink):
    """Sends a stop at the n-th time that commands are read after a step: the first is between the
    steps, the next ones are inside an evaluation or the next step."""

    def __init__(self, step: int, times: int) -> None:
        super().__init__()
        self._after = step
        self._times = times
        self._polls = 0

    def poll(self):
        if self.steps()[-1:] == [self._after]:
            self._polls += 1
        return [Stop()] if self._polls == self._times else super().poll()


def test_a_paused_run_saves_a_checkpoint_on_request_and_resumes(ws):
    def react(event):
        if isinstance(event, StepDone) and event.step == 4:
            return [Pause(), CheckpointCommand()]
        if isinstance(event, CheckpointSaved) and event.reason == "asked":
            return [Resume()]
        return []

    link = KeepingLink(react)
    assert train(ws, make_config(ws), link) == 0
    kinds = [type(e) for e in link.events]
    at = kinds.index(RunPaused)
    assert kinds[at : at + 3] == [RunPaused, CheckpointSaved, RunResumed]
    assert {e.step for e in link.events[at : at + 3]} == {4}
    assert link.steps() == list(range(1, 13))


def test_stop_finish_decays_and_saves_the_model(ws):
    link = KeepingLink(when(StepDone, 20, Stop(finish=True)))
    assert train(ws, make_config(ws, schedule__max_steps=1000), link) == 0
    end = ended(link)
    assert end.status == "completed" and 20 < end.step < 30
    rates = [e.lr for e in link.of(StepDone)]
    assert rates[-1] < rates[19] and (ws.model_dir / "model.safetensors").is_file()
    assert [e.phase for e in link.of(PhaseStarted)] == [0, 1, 2, 3]


def test_an_online_run_trains_from_start_to_end(ws):
    link = KeepingLink()
    assert train(ws, make_config(ws, targets__source="online"), link) == 0
    assert ended(link).status == "completed" and link.steps() == list(range(1, 13))
    steps = link.of(StepDone)
    assert steps[-1].ce < steps[0].ce and steps[0].kl > 0


def test_two_experts_have_a_phase_each(ws):
    table = (ws.root / "gladius.toml").read_text()
    (ws.root / "gladius.toml").write_text(
        table + table.replace("experts.tiny", "experts.other").replace("Tiny", "Other")
    )
    link = KeepingLink()
    config = make_config(ws, experts=["tiny", "other"])
    assert train(ws, config, link) == 0
    assert [e.expert for e in link.of(PhaseStarted)] == [None, "tiny", "other", None, None]
    (end,) = [e for e in link.of(EvalDone) if e.step == 12]
    assert [score.expert for score in end.scores] == ["tiny", "other"]


def test_a_checkpoint_requested_before_the_first_step_can_be_resumed(ws):
    def react(event):
        if isinstance(event, DataReady):
            return [CheckpointCommand()]
        return [Stop()] if isinstance(event, CheckpointSaved) else []

    uninterrupted = KeepingLink()
    assert train(ws, make_config(ws), uninterrupted) == 0
    first = KeepingLink(react)
    assert train(ws, make_config(ws), first, fresh=True) == 0
    assert next((e.step, e.reason) for e in first.of(CheckpointSaved)) == (0, "asked")
    second = KeepingLink()
    assert train(ws, make_config(ws), second, resume=True) == 0
    assert losses(first, second) == losses(uninterrupted)


def test_a_run_without_a_budget_ends_when_held_out_loss_stops_falling(ws):
    link = KeepingLink()
    config = make_config(
        ws,
        schedule__max_steps="none",
        schedule__expert_tokens=4 * 512,
        schedule__eval_interval=5,
        schedule__converge_patience=2,
        schedule__converge_delta=5.0,
    )
    assert train(ws, config, link) == 0
    assert ended(link).status == "completed"
    # unified from step 5: evaluated at 5, 10 and 15, two of them without progress
    assert 15 < link.steps()[-1] <= 20
    rates = [e.lr for e in link.of(StepDone)]
    assert rates[14] == max(rates) > rates[-1]


# Starting, resuming, starting over


def test_a_run_stopped_before_its_first_step_resumes_with_what_it_prepared(ws):
    config = make_config(ws)
    first = KeepingLink(lambda event: [Stop()] if isinstance(event, DataReady) else [])
    assert train(ws, config, first) == 0
    second = KeepingLink()
    assert train(ws, config, second, resume=True, attempt=2) == 0
    assert second.steps() == list(range(1, 13))


def test_a_new_run_does_not_use_the_tokenizer_of_another_run(ws):
    first = KeepingLink(when(PhaseStarted, 0, Stop()))
    assert train(ws, make_config(ws, student__vocab_size=400), first) == 0
    config = make_config(ws, student__vocab_size=320)
    assert train(ws, config, KeepingLink()) == 0
    assert AutoModelForCausalLM.from_pretrained(ws.model_dir).config.vocab_size == 320


def test_fresh_moves_the_previous_run_aside_and_plain_train_refuses_it(ws):
    config = make_config(ws, checkpoint__interval_steps=4)
    train(ws, config, KeepingLink())
    with pytest.raises(UsageError, match=r"holds checkpoints.*--fresh"):
        train(ws, config, KeepingLink())
    link = KeepingLink()
    assert train(ws, config, link, fresh=True) == 0
    assert link.steps() == list(range(1, 13))
    (aside,) = ws.checkpoints_dir.glob("old-*")
    assert {"step-000000012", "tokenizer", "journal.jsonl", "config.json"} <= {
        path.name for path in aside.iterdir()
    }


def test_a_checkpoint_of_another_config_is_refused_with_the_field_named(ws):
    train(ws, make_config(ws), KeepingLink(when(StepDone, 4, Stop())))
    other = make_config(ws, optimizer__lr=0.1)
    with pytest.raises(UsageError, match=r"optimizer.lr was 0.002, now 0.1.*--fresh"):
        train(ws, other, KeepingLink(), resume=True)


def exchange_two_tokens(ws) -> bytes:
    """Change the run's tokenizer; returns its file as it was."""
    path = ws.checkpoints_dir / "tokenizer" / "tokenizer.json"
    before = path.read_bytes()
    tokenizer = json.loads(before)
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))
    return before


def test_another_tokenizer_is_replaced_by_that_of_the_checkpoint(ws):
    config = make_config(ws)
    train(ws, config, KeepingLink(when(StepDone, 4, Stop())))
    before = exchange_two_tokens(ws)
    link = KeepingLink()
    assert train(ws, config, link, resume=True) == 0
    assert (ws.checkpoints_dir / "tokenizer" / "tokenizer.json").read_bytes() == before
    assert any("tokenizer was restored" in line.text for line in link.of(LogLine))


def test_an_old_checkpoint_with_another_tokenizer_is_refused(ws):
    """Checkpoints of older versions have no copy from which it could be restored."""
    config = make_config(ws)
    train(ws, config, KeepingLink(when(StepDone, 4, Stop())))
    exchange_two_tokens(ws)
    (ws.checkpoints_dir / "seal.json").unlink()
    for folder in ws.checkpoints_dir.glob("step-*"):
        manifest = read_manifest(folder)
        files = {name: f for name, f in manifest.files.items() if not is_run_file(name)}
        old = msgspec.structs.replace(manifest, files=files)
        (folder / "manifest.json").write_bytes(encode_manifest(old))
    with pytest.raises(UsageError, match=r"another tokenizer"):
        train(ws, config, KeepingLink(), resume=True)


def test_a_resume_without_a_valid_checkpoint_fails_every_time(ws):
    """Neither a later attempt nor a later resume starts at step 0 without a request."""
    config = make_config(ws, checkpoint__interval_steps=3)
    train(ws, config, KeepingLink(when(StepDone, 7, Stop())))
    saved = sorted(ws.checkpoints_dir.glob("step-*"))
    for path in saved:
        (path / "model.safetensors").write_bytes(b"")
    for attempt in (2, 3):
        link = KeepingLink()
        with pytest.raises(MissingError, match=r"none was deleted.*--fresh"):
            train(ws, config, link, resume=True, attempt=attempt)
        assert len(link.of(CheckpointRejected)) == (len(saved) if attempt == 2 else 0)
    assert len(list(ws.checkpoints_dir.glob("rejected-*"))) == len(saved)
    assert train(ws, config, KeepingLink(), fresh=True) == 0


def test_a_finished_run_with_more_steps_resumes_from_before_its_decay(ws, tmp_path):
    train(ws, make_config(ws, schedule__max_steps=20), KeepingLink())
    link = KeepingLink()
    assert train(ws, make_config(ws, schedule__max_steps=40), link, resume=True) == 0
    (started,) = link.of(RunStarted)
    assert started.resumed_from == 17  # the last 3 of 20 were the decay
    assert link.steps() == list(range(18, 41))
    assert link.of(StepDone)[0].lr == pytest.approx(0.002)
    assert ended(link).status == "completed"


def test_a_resumed_finished_run_saves_its_model_again(ws):
    config = make_config(ws)
    train(ws, config, KeepingLink())
    before = (ws.model_dir / "model.safetensors").read_bytes()
    (ws.model_dir / "model.safetensors").unlink()
    link = KeepingLink()
    assert train(ws, config, link, resume=True) == 0
    assert link.steps() == [] and ended(link).status == "completed"
    assert (ws.model_dir / "model.safetensors").read_bytes() == before


# Memory


def test_a_student_that_is_too_large_is_refused_before_anything_is_allocated(ws, monkeypatch):
    config = make_config(
        ws,
        student__hidden_size=2048,
        student__intermediate_size=5632,
        student__num_hidden_layers=24,
        student__num_attention_heads=16,
        student__num_key_value_heads=4,
        student__vocab_size=32000,
    )
    assert parameter_count(config.student).total == 1_147_766_784
    monkeypatch.setattr(worker_module.hardware, "available_ram", lambda: 8 * GIB)
    monkeypatch.setattr(worker_module, "prepare_run", lambda *_: pytest.fail("it was prepared"))
    monkeypatch.setattr(worker_module, "build_student", lambda *_: pytest.fail("it was built"))
    with pytest.raises(GladiusError, match=r"needs .* GiB .*17\.1.*8\.0 GiB.*--preset nano"):
        train(ws, config, KeepingLink())


def test_memory_settings_are_reduced_until_training_fits(ws, monkeypatch):
    config = make_config(ws, schedule__max_steps=3)

    def need(micro_batch_size: int, checkpointing: bool) -> int:
        optimizer = msgspec.structs.replace(
            config.optimizer,
            micro_batch_size=micro_batch_size,
            activation_checkpointing=checkpointing,
        )
        return training_memory(msgspec.structs.replace(config, optimizer=optimizer), False).total

    free = {"bytes": need(2, False)}
    monkeypatch.setattr(worker_module.hardware, "available_ram", lambda: free["bytes"])
    link = KeepingLink()
    assert train(ws, config, link) == 0
    assert ["micro batch is 2" in e.action for e in link.of(GuardTripped)] == [True]

    free["bytes"] = need(1, True)
    link = KeepingLink()
    assert train(ws, config, link, fresh=True) == 0
    actions = [e.action.partition(" from")[0] for e in link.of(GuardTripped)]
    assert actions == [
        "micro batch is 2",
        "micro batch is 1",
        "activation checkpointing is True",
    ]
    # from the journal: a resume has the same settings without new decisions
    link = KeepingLink()
    assert train(ws, config, link, resume=True) == 0
    assert link.of(GuardTripped) == []


def test_the_number_of_threads_is_stored_in_the_checkpoint(ws):
    train(ws, make_config(ws), KeepingLink(when(StepDone, 4, Stop())))
    config = make_config(ws)
    assert torch.get_num_threads() == config.device.threads == 1
    manifest = json.loads((ws.checkpoints_dir / "step-000000004" / "manifest.json").read_text())
    assert manifest["threads"] == 1


def test_a_missing_expert_is_named(ws):
    config = make_config(ws)
    (ws.root / "tiny" / "config.json").unlink()
    with pytest.raises(MissingError, match=r"not ready: tiny"):
        train(ws, config, KeepingLink())
