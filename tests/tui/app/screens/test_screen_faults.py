"""Faults that were seen on the Models, Download, Train and Export screens."""

from __future__ import annotations

import json

import pytest
from textual.widgets import Input, Select, SelectionList

from engine import programs
from engine.events import Progress
from engine.workspace import Workspace
from gladius_tui.app.dialogs.choice import Choice
from gladius_tui.app.dialogs.pick import Pick
from gladius_tui.app.dialogs.text_input import TextInput
from gladius_tui.app.model.download_state import DownloadState
from gladius_tui.app.widgets.filter_bar import FilterBar
from gladius_tui.app.widgets.key_bar import KeyBar
from gladius_tui.app.widgets.notice import Notice
from gladius_tui.app.widgets.table import Table
from tests.support.driving import opened, static_text, text_of, until
from tests.support.tiny_expert import make_expert


def notice(app) -> str:
    return app.screen.query_one(Notice).text


def add_own_expert(ws: Workspace) -> None:
    """An expert of the user's own, which is ready, and text to train on."""
    make_expert(ws.root / "tiny")
    ws.user_config.write_text(
        '[experts.tiny]\nrepo = "./tiny"\nend_tokens = ["<|im_end|>"]\nsize_bytes = 2471645608\n'
    )
    (ws.root / "text.jsonl").write_text('{"text": "the river and the mill"}\n' * 40)


# Models


@pytest.mark.parametrize("mode", ["models", "download", "validate"])
async def test_the_filters_field_is_not_behind_the_key_bar(root, mode):
    async with opened(root, mode, size=(80, 24)) as (app, pilot):
        await pilot.press("slash", "q")
        field, keys = app.screen.query_one(FilterBar), app.screen.query_one(KeyBar)
        await until(pilot, lambda: field.region.height == 1)
        assert not field.region.overlaps(keys.region)
        assert field.region.bottom == keys.region.y


async def test_what_was_typed_into_add_is_there_again_after_an_error(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press(*"mine", "enter", *"./nowhere", "enter")
        await until(pilot, lambda: "press a to correct it" in notice(app))
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        assert [field.value for field in app.screen.query(Input)] == ["mine", "./nowhere"]
        assert "nowhere" in static_text(app.screen, "#input-error")


async def test_an_empty_field_of_add_does_not_close_it(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("a")
        await until(pilot, lambda: isinstance(app.screen, TextInput))
        await pilot.press("tab", *"./somewhere", "enter")
        await until(pilot, lambda: "enter the name" in static_text(app.screen, "#input-error"))
        assert [field.value for field in app.screen.query(Input)] == ["", "./somewhere"]


async def test_a_folder_has_its_own_size_not_the_registrys(root):
    add_own_expert(root)
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: app.screen.query_one(Table).row_count)
        await pilot.press("end")
        await until(pilot, lambda: "tiny" in str(app.screen.query_one("#details").border_title))
        assert "GiB" not in static_lines(app, "disk") and "iB" in static_lines(app, "disk")


def static_lines(app, word: str) -> str:
    lines = text_of(app.screen).splitlines()
    return "\n".join(line for line in lines if f"│ {word} " in line)


async def test_more_on_disk_than_the_download_is_not_a_share_of_it(root):
    folder = root.downloads_dir / "smollm2"
    folder.mkdir(parents=True)
    for name, size in (("a.whl", 92_900_000), ("expert.gguf", 98_300_000)):
        with open(folder / name, "wb") as file:
            file.truncate(size)
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: app.screen.query_one(Table).row_count)
        await pilot.press("slash", *"smollm2", "enter")
        await until(pilot, lambda: "182.3 MiB" in static_lines(app, "disk"))
        assert "182.3 MiB of" not in text_of(app.screen)


# Download


def test_a_complete_download_is_verifying_not_downloading():
    state = DownloadState(live=True)
    state.tasks["download:x"] = Progress(
        task="download:x", label="Mine", done=100, total=100, unit="B"
    )
    assert state.activity_of("x") == "verifying"
    state.tasks["download:x"] = Progress(
        task="download:x", label="Mine: converting", done=50, total=100, unit="B"
    )
    assert state.activity_of("x") == "converting"


# Dialogs and fields


async def test_space_and_down_in_one_go_selects_the_row_it_was_pressed_on(root):
    async with opened(root, "models") as (app, pilot):
        dialog = Pick("Metrics", "", [("a", "A"), ("b", "B"), ("c", "C")], [])
        app.push_screen(dialog)
        await until(pilot, lambda: dialog.query(SelectionList))
        items = dialog.query_one(SelectionList)
        items.action_select()  # as a terminal delivers both keys before a message is handled
        items.action_cursor_down()
        await pilot.pause()
        assert items.selected == ["a"] and items.highlighted == 1


async def test_a_pasted_block_is_kept_whole(root):
    from textual.events import Paste

    async with opened(root, "train") as (app, pilot):
        field = app.screen.query_one("#data", Input)
        await until(pilot, lambda: app.screen.assessment is not None)
        field.focus()
        field.post_message(Paste("one.txt\n  two.txt\n\nthree.txt\n"))
        await until(pilot, lambda: field.value == "one.txt two.txt three.txt")


# Train


async def test_one_bad_field_does_not_blank_the_checks_of_the_others(root):
    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: "6,524,160 parameters" in text_of(screen))
        screen.query_one("#hours", Input).value = "soon"
        screen.query_one("#overrides", Input).value = "student.num_hidden_layers=3 loss.alpha=7"
        await until(pilot, lambda: len(screen.assessment.problems) == 2)
        assert screen.assessment.bad_fields == ("hours", "overrides")
        assert "3 layers of 256" in text_of(screen)
        assert screen.query_one("#hours").has_class("-bad")
        assert not screen.query_one("#data").has_class("-bad")


async def test_whether_it_can_start_is_seen_in_a_small_terminal(root):
    add_own_expert(root)
    data = str(root.root / "text.jsonl")
    argv = ("train", "--preset", "nano", "--experts", "tiny", "--data", data)
    async with opened(root, "train", size=(80, 24)) as (app, pilot):
        await until(pilot, lambda: app.screen.assessment is not None)
        app.launched.append(argv)  # fills the form, and starts nothing
        app.screen._fill_from_command()
        app.launched.clear()
        app.screen.assess()
        await until(pilot, lambda: app.screen.assessment and not app.screen.assessment.problems)
        await until(pilot, lambda: "✓ ^s to start" in text_of(app.screen))


async def test_start_pressed_at_once_waits_for_the_checks(root, monkeypatch):
    add_own_expert(root)
    launched: list[list[str]] = []
    async with opened(root, "train") as (app, pilot):
        monkeypatch.setattr(app, "launch", lambda argv: launched.append(list(argv)))
        await pilot.press("ctrl+s")  # before the form is assessed for the first time
        await until(pilot, lambda: isinstance(app.screen, Choice))  # smollm2 is missing
        assert "smollm2" in text_of(app.screen)
        await pilot.press("enter")
        await until(pilot, lambda: launched == [["download", "smollm2"]])


async def test_an_error_of_the_form_goes_when_it_is_corrected(root):
    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: screen.assessment is not None)
        screen.query_one("#hours", Input).value = "soon"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "'soon' is not a number" in notice(app))
        screen.query_one("#hours", Input).value = "1"
        await until(pilot, lambda: notice(app) == "")


async def test_a_run_starts_when_its_experts_have_been_fetched(root, monkeypatch):
    """The download is a real job; what it starts is only recorded."""
    from gladius_tui.launch import Ended

    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: screen.assessment is not None)
        launched: list[list[str]] = []

        def launch(argv) -> bool:
            launched.append(list(argv))
            return True

        monkeypatch.setattr(app, "launch", launch)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(app.screen, Choice))
        await pilot.press("enter")
        await until(pilot, lambda: launched == [["download", "smollm2"]])
        make_expert(root.experts_dir / "smollm2")
        folder = root.experts_dir / "smollm2"
        files = {p.name: {"size": p.stat().st_size, "sha256": ""} for p in folder.iterdir()}
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        screen.launch_ended(Ended(("download", "smollm2"), 0, ""))
        await until(pilot, lambda: len(launched) == 2)
        assert launched[1] == ["train", "--preset", "nano"]


async def test_start_during_a_verification_starts_when_it_has_ended(root, monkeypatch):
    """`v` on Models, then `3` and `^s` at once: it started nothing."""
    folder = root.experts_dir / "smollm2"
    make_expert(folder)  # not verified yet
    async with opened(root, "train") as (app, pilot):
        screen = app.screen
        await until(pilot, lambda: screen.assessment is not None and screen.assessment.problems)
        launched: list[list[str]] = []
        monkeypatch.setattr(app, "launch", lambda argv: launched.append(list(argv)))
        app.launched.append(("models", "--verify"))
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "the run starts when" in notice(app))
        files = {p.name: {"size": p.stat().st_size, "sha256": ""} for p in folder.iterdir()}
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        app.launched.clear()
        screen.on_job_detached(None)
        await until(pilot, lambda: launched == [["train", "--preset", "nano"]])


# Export


async def test_export_counts_the_parameters_of_the_model_that_is_there(root):
    add_own_expert(root)
    root.model_dir.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (root.model_dir / name).write_bytes((root.root / "tiny" / name).read_bytes())
    root.state_file.write_text(
        json.dumps({"status": "failed", "current_params": 598336, "target_params": 598336})
    )
    async with opened(root, "export") as (app, pilot):
        await until(pilot, lambda: app.screen.sources is not None)
        await until(pilot, lambda: app.screen.parameters)
        assert "598,336" not in text_of(app.screen)
        assert f"{app.screen.parameters:,}" in text_of(app.screen)


async def test_a_type_without_its_tool_is_marked_and_does_not_start(root, monkeypatch):
    monkeypatch.setattr(programs, "find_quantizer", lambda: None)
    monkeypatch.setattr(programs, "find_python", lambda: None)
    root.model_dir.mkdir(parents=True)
    (root.model_dir / "config.json").write_text("{}")
    async with opened(root, "export") as (app, pilot):
        kind = app.screen.query_one("#type", Select)
        await until(pilot, lambda: len(kind._options) > 3)
        labels = {value: str(label) for label, value in kind._options}
        assert "needs llama.cpp" in labels["q6_k"] and "needs" not in labels["q8_0"]
        kind.value = "q6_k"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "needs llama.cpp's quantizer" in notice(app))
        assert app.launched == []


async def test_paths_in_a_notice_are_relative_to_the_root(root):
    async with opened(root, "models") as (app, _):
        app.screen.notice.show(f"{root.root}/models/x.gguf can't be written")
        assert notice(app) == "models/x.gguf can't be written"
