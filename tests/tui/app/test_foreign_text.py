"""Every screen of the app with markup, control characters and bidi marks in all foreign text."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest

from engine.events import Job, RunStarted
from engine.run.history import History
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.dialogs.lens import Lens
from gladius_tui.app.model.modes import MODES
from tests.support.driving import opened, text_of, until
from tests.support.hostile_events import HOSTILE, hostile_events, is_clean

TEXT = HOSTILE.replace("\udcff", "")
TITLE = "Mine [/] v2 [b]"


@pytest.fixture
def hostile_root(root: Workspace) -> Workspace:
    """A root with a run of every job, whose texts are all hostile, and such an expert."""
    title = msgspec.json.encode(TITLE + TEXT).decode()
    (root.root / "expert").mkdir()
    root.user_config.write_text(f'[experts.mine]\nrepo = "./expert"\ntitle = {title}\n')
    history = History(root.history_file)
    for job in get_args(Job):
        run_id = f"{job}-1"
        history.begin_run(run_id, job, b"{}")
        attempt = history.begin_attempt(run_id)
        events = [
            msgspec.structs.replace(event, run_id=run_id)
            if isinstance(event, RunStarted)
            else event
            for event in hostile_events(TITLE + TEXT, job)
        ]
        history.append(run_id, attempt, events)
    history.close()
    return root


async def test_no_screen_parses_or_passes_on_foreign_text(hostile_root):
    async with opened(hostile_root, "models", size=(160, 50)) as (app, pilot):
        for mode in MODES:
            await pilot.press(mode.function_key)
            await until(pilot, lambda mode=mode: app.current_mode == mode.name)
            await pilot.press("down")
            await pilot.pause(0.2)
            assert is_clean(text_of(app.screen)), mode.name
        await pilot.press("f2", *["down"] * 7)
        await until(pilot, lambda: "Mine [/] v2 [b]" in text_of(app.screen))
        assert is_clean(text_of(app.screen))
        app.notify(TEXT, title=TITLE, markup=False)
        await pilot.pause(0.2)
        assert is_clean(text_of(app.screen))


async def test_the_lens_shows_a_title_with_markup_as_it_is(hostile_root):
    async with opened(hostile_root, "dashboard", size=(120, 40)) as (app, pilot):
        await until(pilot, lambda: app.screen.run_view is not None)
        await until(pilot, lambda: app.screen.run_view.probes)
        await pilot.press("v")
        await until(pilot, lambda: isinstance(app.screen, Lens))
        await until(pilot, lambda: "student and Mine [/] v2 [b]" in text_of(app.screen))
        assert is_clean(text_of(app.screen))


def test_an_app_that_crashes_ends_with_1_and_one_line(root, monkeypatch, capsys):
    from gladius_tui import cli, shell

    def crash(_: GladiusApp) -> None:
        raise RuntimeError("a fault\x1b[31m")

    run = GladiusApp.run
    monkeypatch.setattr(GladiusApp, "_begin", crash)
    monkeypatch.setattr(GladiusApp, "run", lambda self: run(self, headless=True, size=(80, 24)))
    monkeypatch.setattr(shell.Options, "use_screen", True)
    assert cli.main(["--root", str(root.root), "models"]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: RuntimeError: a fault\\u001b[31m; this is a bug")
    assert len(output.err.splitlines()) == 1 and not output.out
    assert "Traceback" in root.log_file().read_text()


async def test_pasted_lines_become_entries_where_a_field_takes_several(root, tmp_path):
    from textual.events import Paste
    from textual.widgets import Input

    paths = [tmp_path / "a.jsonl", tmp_path / "b c.jsonl"]
    for path in paths:
        path.write_text('{"text": "x"}\n')
    async with opened(root, "train") as (app, pilot):
        field = app.screen.query_one("#data", Input)
        field.focus()
        await pilot.pause()
        field.post_message(Paste(f"{paths[0]}\r\n\n{paths[1]}\n"))
        await until(pilot, lambda: field.value == f"{paths[0]} '{paths[1]}'")
        field.post_message(Paste("hf:org/name\nhf:org/other"))
        await until(pilot, lambda: field.value.endswith("' hf:org/name hf:org/other"))
        field.value = ""
        field.post_message(Paste("one two"))
        await until(pilot, lambda: field.value == "one two")
        words = "\n".join(["loss.alpha=0.3", "optimizer.lr=1e-3"])
        overrides = app.screen.query_one("#overrides", Input)
        overrides.focus()
        overrides.post_message(Paste(words))
        await until(pilot, lambda: overrides.value == "loss.alpha=0.3 optimizer.lr=1e-3")
