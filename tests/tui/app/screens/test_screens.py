"""The Models, Download, Train, Export and Validate screens, by their keys."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from textual.widgets import Input, Select

from engine.errors import GladiusError
from engine.events import AnyEvent, CheckDone, Exported, LogLine, Progress, ReportDone, RunEnded
from engine.events import RunStarted as Started
from engine.run.history import History
from engine.workspace import Workspace
from gladius_tui.app.dialogs.choice import Choice
from gladius_tui.app.dialogs.text_input import TextInput
from gladius_tui.app.widgets.expert_list import ExpertList
from gladius_tui.app.widgets.notice import Notice
from gladius_tui.app.widgets.table import Table
from tests.support.driving import opened, static_text, text_of, toy_run, until


def notice(app) -> str:
    return app.screen.query_one(Notice).text


def record(ws: Workspace, job, *events: AnyEvent) -> None:
    """Write a run of this job to the history, as its runner would have."""
    history = History(ws.history_file)
    run_id = f"{job}-1"
    history.begin_run(run_id, job, b"{}")
    attempt = history.begin_attempt(run_id)
    config = {"type": "q8_0"} if job == "export" else {}
    started = Started(run_id=run_id, job=job, attempt=attempt, pid=1, config=config)
    history.append(run_id, attempt, [started, *events])
    history.close()


# Models


async def test_models_shows_every_expert_and_the_details_of_one(root):
    async with opened(root, "models") as (app, pilot):
        table = app.screen.query_one(Table)
        await until(pilot, lambda: "0 of 6 ready" in str(table.border_subtitle))
        await pilot.press("down")
        await until(pilot, lambda: "meta-llama/Llama-3.2-1B-Instruct" in text_of(app.screen))
        assert "accept its" in text_of(app.screen) and "reasoning, fluency" in text_of(app.screen)


async def test_models_filter_and_escape_clears_it(root):
    async with opened(root, "models") as (app, pilot):
        table = app.screen.query_one(Table)
        await until(pilot, lambda: table.row_count == 6)
        await pilot.press("slash", *"gemma")
        await until(pilot, lambda: table.row_count == 1)
        await pilot.press("enter", "escape")
        await until(pilot, lambda: table.row_count == 6)


async def test_models_removes_what_is_here_after_asking(root):
    folder = root.experts_dir / "qwen"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: "◐ Partial" in text_of(app.screen))
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")  # keeps it
        await until(pilot, lambda: not isinstance(app.screen, Choice))
        assert folder.exists()
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: not folder.exists())
        await until(pilot, lambda: notice(app) == "qwen was removed")
        await pilot.press("x")
        assert "no files of qwen are on disk" in notice(app)


async def test_models_removes_nothing_while_a_job_may_use_it(root):
    folder = root.experts_dir / "qwen"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"x")
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            await until(pilot, lambda: app.watcher.jobs and "◐" in text_of(app.screen))
            await pilot.press("x")
            assert "train is running" in notice(app) and folder.exists()


async def test_models_add_shows_the_commands_error(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press(*"mine", "enter", *"./nowhere", "enter")
        await until(pilot, lambda: "nowhere" in notice(app))
        assert not root.user_config.exists()


async def test_an_invalid_gladius_toml_is_shown_and_does_not_end_the_app(root):
    root.user_config.write_text("[experts.mine]\nweight = -1\n")
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: "experts.mine.repo" in notice(app))
        root.user_config.unlink()
        await pilot.press("r")
        await until(pilot, lambda: app.screen.query_one(Table).row_count == 6)


# Download


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    from tests.support.hub_server import Hub

    server = Hub()
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("GLADIUS_RETRY_SECONDS", "0.01")
    yield server
    server.close()


async def test_download_fetches_the_selected_experts_and_ends_ready(root, hub):
    from tests.support.downloading import model_files

    hub.add("me/x", model_files())
    root.user_config.write_text('[experts.x]\nrepo = "me/x"\ntitle = "Mine"\n')
    async with opened(root, "download") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "4 selected" in static_text(screen, "#total"))
        for _ in range(4):  # only mine stays selected
            await pilot.press("space", "down")
        await pilot.press("down", "down", "space")
        await until(pilot, lambda: "1 selected" in static_text(screen, "#total"))
        assert screen.command_line() == ["download", "x"]
        await pilot.press("s")
        await until(pilot, lambda: screen.live, 60)
        assert screen.check_action("start", ()) is False and screen.check_action("cancel", ())
        await until(pilot, lambda: not screen.live, 60)
        await until(pilot, lambda: "✓ Ready" in text_of(screen))
        assert screen.ended.status == "completed"
        assert any(task.startswith("download:x:model.safetensors") for task in screen.tasks)
        await until(pilot, lambda: "Mine is ready" in static_text(screen, "#log-text"))


async def test_a_failed_download_shows_why_and_can_be_retried(root, hub):
    root.user_config.write_text('[experts.x]\nrepo = "me/nowhere"\n')
    async with opened(root, "download", launch=("download", "x")) as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "me/nowhere" in notice(app), 60)
        await until(pilot, lambda: "✗ Failed" in text_of(screen))
        assert screen.check_action("retry", ()) and screen.check_action("start", ())


async def test_a_download_that_was_over_before_the_app_saw_it_is_shown(root, hub, monkeypatch):
    def too_late(*_):
        raise GladiusError("it has ended")

    monkeypatch.setattr("engine.run.control.attach", too_late)
    root.user_config.write_text('[experts.x]\nrepo = "me/nowhere"\n')
    async with opened(root, "download", launch=("download", "x")) as (app, pilot):
        await until(pilot, lambda: "me/nowhere" in notice(app), 60)
        await until(pilot, lambda: "✗ Failed" in text_of(app.screen))


async def test_download_shows_the_last_run_and_its_log(root):
    progress = Progress(
        task="download:qwen", label="Qwen 2.5 1.5B", done=500e6, total=3098e6, unit="B", rate=1e6
    )
    ended = RunEnded(status="stopped", reason="stopped; the same command goes on with it")
    record(root, "download", progress, LogLine(text="qwen: cut, tried again"), ended)
    async with opened(root, "download") as (app, pilot):
        await until(pilot, lambda: "qwen: cut, tried again" in text_of(app.screen))


# Train


async def test_train_shows_the_command_and_the_preflight_checks(root):
    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "6,524,160 parameters" in text_of(screen))
        assert screen.command_line() == ["train", "--preset", "nano"]
        assert "download with: gladius_train download smollm2" in problems(screen)
        screen.query_one("#preset", Select).value = "1b"
        await until(pilot, lambda: "1,147,766,784 parameters" in text_of(screen))
        assert screen.query_one(ExpertList).selected == ("qwen", "llama", "phi", "tinyllama")
        experts = screen.query_one(ExpertList)
        experts.focus()
        await pilot.press("home", "space")
        await until(
            pilot, lambda: "--experts llama,phi,tinyllama" in static_text(screen, "#command")
        )
        for name, text in (("hours", "1.5"), ("overrides", "loss.alpha=0.3 optimizer.lr=1e-3")):
            screen.query_one(f"#{name}", Input).value = text
        screen.query_one("#device", Select).value = "cpu"
        await until(
            pilot,
            lambda: (
                screen.command_line()
                == [
                    *[
                        "train",
                        "--preset",
                        "1b",
                        "--experts",
                        "llama,phi,tinyllama",
                        "--hours",
                        "1.5",
                    ],
                    *["--set", "loss.alpha=0.3", "--set", "optimizer.lr=1e-3"],
                    *["--set", "device.device=cpu"],
                ]
            ),
        )


async def test_train_shows_every_problem_while_the_user_types(root):
    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "parameters" in text_of(screen))
        screen.query_one("#overrides", Input).value = "loss.alpha=7 optimizer.lr=no"
        await until(pilot, lambda: "loss.alpha" in problems(screen))
        assert "optimizer.lr" in problems(screen)
        screen.query_one("#overrides", Input).value = "'open"
        await until(pilot, lambda: "unclosed quote" in static_text(screen, "#command"))
        screen.query_one("#hours", Input).value = "soon"
        screen.query_one("#overrides", Input).value = ""
        await until(pilot, lambda: "'soon' is not a number" in problems(screen))
        await pilot.press("ctrl+s")
        assert "'soon' is not a number" in notice(app) and app.launched == []


def problems(screen) -> str:
    return " ".join(screen.assessment.problems) if screen.assessment else ""


async def test_train_starts_fresh_only_after_asking(root):
    async with opened(root, "train") as (app, pilot):
        await until(pilot, lambda: "parameters" in text_of(app.screen))
        await pilot.press("ctrl+n")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("down", "enter")
        await until(pilot, lambda: "no expert is ready" in notice(app), 30)


async def test_a_command_that_opened_the_app_fills_the_form_and_shows_its_error(root):
    argv = ("train", "--preset", "demo", "--hours", "2", "--set", "loss.alpha=0.1")
    async with opened(root, "train", launch=argv) as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: screen.command_line() == list(argv))
        await until(pilot, lambda: "no expert is ready" in notice(app), 30)
        assert "gladius_train download smollm2" in notice(app)


async def test_while_a_run_is_active_another_cant_be_started(root):
    with toy_run(root):
        async with opened(root, "train") as (app, pilot):
            await until(pilot, lambda: "train" in app.watcher.jobs)
            assert app.screen.check_action("start", ()) is False
            await until(pilot, lambda: "training is already running here" in problems(app.screen))


# Export and Validate


@pytest.mark.parametrize("mode", ["export", "validate"])
async def test_without_a_model_it_shows_what_to_do(root, mode):
    async with opened(root, mode) as (app, pilot):
        await until(pilot, lambda: "press 3 to train one" in text_of(app.screen).lower())
        await pilot.press("ctrl+s")
        assert app.launched == []


async def test_the_checkpoints_on_disk_can_be_selected(root):
    for step in (120, 80):
        (root.checkpoints_dir / f"step-{step:09d}").mkdir(parents=True)
    async with opened(root, "validate") as (app, pilot):
        source = app.screen.query_one("#source", Select)
        await until(pilot, lambda: source.value == "latest")
        source.value = "80"
        await pilot.pause()
        assert app.screen.command_line() == ["validate", "--checkpoint", "80"]


CHECKS = (
    CheckDone(
        group="structural", name="tensors", title="Tensors", value="all finite", bound="finite",
        verdict="pass", meaning="No weight is NaN or infinite.", former="all finite",
    ),
    CheckDone(
        group="quality", name="routing", title="Tool routing", value="0 of 3 valid",
        bound="2 of 3", verdict="warn", meaning="Whether it calls tools.",
        detail="> Route this query\n{\"tool\": \"search\"", number=0.0,
    ),
)  # fmt: skip
REPORT = ReportDone(
    structure="sound", quality="low", verdict="The files are whole; it knows little.", path="x"
)


async def test_validate_shows_the_last_report_row_by_row_and_in_full(root):
    record(root, "validate", *CHECKS, REPORT, RunEnded(status="completed"))
    async with opened(root, "validate") as (app, pilot):
        table = app.screen.query_one(Table)
        await until(pilot, lambda: table.row_count == 2)
        assert "✓ sound" in text_of(app.screen) and "! low" in text_of(app.screen)
        await pilot.press("down")
        await until(pilot, lambda: '{"tool": "search"' in text_of(app.screen))
        await pilot.press("slash", *"tensors")
        await until(pilot, lambda: table.row_count == 1)


async def test_export_shows_the_stages_of_the_last_export(root):
    task = Progress(task="write", label="writing tensors", done=10, total=10, finished=True)
    path = str(root.root / "models/x.gguf")
    made = Exported(
        path=path, weights="q8_0", bytes=2048, source="the model", parity="every tensor equal"
    )
    ended = RunEnded(status="completed", model_path=path, seconds=3.0)
    record(root, "export", task, LogLine(level="warning", text="rows of 48"), made, ended)
    async with opened(root, "export") as (app, pilot):
        await until(pilot, lambda: "writing tensors" in text_of(app.screen))
        shown = text_of(app.screen)
        assert "! rows of 48" in shown and "✓ models/x.gguf" in shown and "✓ done in 3s" in shown
        kind = app.screen.query_one("#type", Select)
        await until(pilot, lambda: kind.value == "q8_0")  # as that run had it


async def test_export_offers_the_models_on_disk_and_asks_before_an_upload(root, monkeypatch):
    root.model_dir.mkdir(parents=True)
    (root.model_dir / "config.json").write_text("{}")
    for name in ("step-000000020", "best-000000010"):
        (root.checkpoints_dir / name).mkdir()
    launched: list[list[str]] = []
    async with opened(root, "export") as (app, pilot):
        monkeypatch.setattr(app, "launch", lambda argv: launched.append(list(argv)))
        source = app.screen.query_one("#source", Select)
        await until(pilot, lambda: source.value == "")
        assert [value for _, value in source._options] == ["", "latest", "best", "20"]
        screen = app.screen
        screen.query_one("#push", Input).value = "me/student"
        for answer in range(3):
            screen.action_start()
            await until(pilot, lambda: isinstance(app.screen, Choice))
            await until(pilot, lambda: "leave this machine" in text_of(app.screen))
            await pilot.press(*["down"] * answer, "enter")
            await until(pilot, lambda: app.screen is screen)
        screen.action_start()
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)
    upload = ["export", "--type", "f16", "--push", "me/student", "--yes"]
    assert launched == [["export", "--type", "f16"], [*upload, "--private"], upload]
