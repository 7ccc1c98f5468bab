"""The app: modes, help, palette, theme, remapped keys, quitting."""

from __future__ import annotations

import subprocess
import sys
import time

import click
import pytest
from textual.app import App
from textual.command import CommandPalette
from textual.widgets import Input, OptionList

from engine.run.control import running_jobs
from engine.run.state import read_state
from gladius_tui.app.dialogs.choice import Choice
from gladius_tui.app.dialogs.help import Help
from gladius_tui.app.dialogs.leave import Leave
from gladius_tui.app.exit_summary import exit_summary
from gladius_tui.app.model.modes import MODES
from gladius_tui.app.widgets.key_bar import KeyBar
from gladius_tui.app.widgets.top_bar import TopBar
from gladius_tui.shell import app as group
from tests.support.driving import REPO, opened, static_text, text_of, toy_run, until


async def test_every_mode_has_a_number_a_function_key_and_a_place_to_click(root):
    async with opened(root, "models") as (app, pilot):
        for mode in (*MODES[1:], MODES[0]):
            await pilot.press(mode.key if mode.name != "train" else "f4")
            await until(pilot, lambda mode=mode: app.current_mode == mode.name)
            await pilot.press("f2" if mode.name != "models" else "f7")
            await until(pilot, lambda mode=mode: app.current_mode != mode.name)
            await pilot.press(mode.function_key)
            await until(pilot, lambda mode=mode: app.current_mode == mode.name)
        for mode in MODES[1:]:
            bar = app.screen.query_one(TopBar)
            await pilot.pause()
            place = str(bar.render()).index(f"{mode.key} {mode.title}")
            await pilot.click(bar, offset=(place + 1, 0))
            await until(pilot, lambda mode=mode: app.current_mode == mode.name)


async def test_escape_at_the_top_level_stays(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("4")
        await until(pilot, lambda: app.current_mode == "dashboard")
        await pilot.press("escape", "escape")
        await pilot.pause()
        assert app.current_mode == "dashboard"


@pytest.mark.parametrize("mode", [mode.name for mode in MODES])
async def test_help_lists_every_key_with_its_tooltip(root, mode):
    async with opened(root, mode) as (app, pilot):
        screen = app.screen
        own = [
            active
            for active in screen.active_bindings.values()
            if active.node in (screen, app) and active.binding.id
        ]
        assert len(own) > 8
        for active in own:
            if active.binding.description:
                assert active.tooltip, f"{active.binding.id} has no tooltip"
        app.action_help()
        await until(pilot, lambda: isinstance(app.screen, Help))
        await pilot.pause()
        from rich.console import Console

        console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        for _, table in app.screen.tables():
            console.print(table)
        shown = console.export_text()
        for active in own:
            if active.binding.description and not active.binding.system:
                assert active.binding.description in shown
                assert active.binding.id not in shown
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is screen)


async def test_the_palette_offers_every_screen_and_every_command(root):
    async with opened(root, "models") as (app, pilot):
        titles = [command.title for command in app.get_system_commands(app.screen)]
        for mode in MODES:
            assert f"Go to {mode.title}" in titles
        for name, command in group.commands.items():
            expected = f"gladius_train {name}"
            if isinstance(command, click.Group) and name not in {mode.name for mode in MODES}:
                assert any(title.startswith(expected) for title in titles)
            else:
                assert expected in titles
        await pilot.press("ctrl+p")
        await until(pilot, lambda: isinstance(app.screen, CommandPalette))
        await pilot.press(*"go to val")
        await pilot.pause(0.5)
        await pilot.press("enter")
        await until(pilot, lambda: app.current_mode == "validate")


async def test_stop_asks_from_the_palette_too(root):
    with toy_run(root) as process:
        async with opened(root, "models") as (app, pilot):
            await until(pilot, lambda: "train" in app.watcher.jobs)
            commands = {c.title: c.callback for c in app.get_system_commands(app.screen)}
            commands["gladius_train stop"]()
            await until(pilot, lambda: isinstance(app.screen, Choice))
            await pilot.press("escape")
            await pilot.pause(0.5)
            assert process.poll() is None and "train" in app.watcher.jobs
            commands["gladius_train stop"]()
            await until(pilot, lambda: isinstance(app.screen, Choice))
            await pilot.press("enter")
            await until(pilot, lambda: process.poll() == 0)


async def test_a_command_without_a_screen_prints_into_one(root):
    async with opened(root, "models") as (app, pilot):
        commands = {c.title: c.callback for c in app.get_system_commands(app.screen)}
        commands["gladius_train status"]()
        await until(pilot, lambda: "not_started" in text_of(app.screen))
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.screens["models"])


async def test_y_copies_the_command_line_and_f8_saves_a_picture(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("y")
        assert app.clipboard.endswith(f"gladius_train --root {root.root} models")
        await pilot.press("f8")
        (picture,) = await until(pilot, lambda: list((root.tmp / "pictures").glob("*.svg")))
        assert picture.read_text().lstrip().startswith("<svg")


async def test_while_a_field_has_the_focus_the_footer_shows_keys_that_are_not_letters(root):
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: "Qwen" in text_of(app.screen))
        assert "? Help" in text_of(app.screen) and "q Quit" in text_of(app.screen)
        await pilot.press("slash")
        await until(pilot, lambda: "^q Quit" in text_of(app.screen))
        await pilot.press("f1")
        await until(pilot, lambda: isinstance(app.screen, Help))


def test_the_exit_summary_lists_what_runs_and_what_to_do_next(root, monkeypatch):
    monkeypatch.chdir(root.root)
    assert exit_summary(root, {"train"}) == [], "no run was ever started"
    with toy_run(root, steps=3, seconds=1):
        lines = exit_summary(root, ())
        assert "The training is still running (pid" in lines[0]
        assert lines[1].strip().startswith("gladius_train dashboard ")
        assert lines[2].strip().startswith("gladius_train stop ")
        while running_jobs(root):
            time.sleep(0.05)
    assert exit_summary(root, ()) == [], "no job ran while the app was open"
    assert "Training finished at step 3." in exit_summary(root, {"train"})[0]
    monkeypatch.chdir("/")
    assert f"gladius_train --root {root.root} validate" in exit_summary(root, {"train"})[1]


async def test_the_theme_is_saved_beside_the_users_keys(root, home):
    (home / "gladius").mkdir(parents=True)
    settings = home / "gladius" / "settings.toml"
    settings.write_text('# mine\n[keys]\n"models.verify" = "ctrl+y"\n')
    async with opened(root, "models") as (app, pilot):
        app.theme = "colour-blind-light"
        await until(pilot, lambda: "colour-blind-light" in settings.read_text())
        assert "# mine" in settings.read_text()
    async with opened(root, "models") as (app, pilot):
        assert app.theme == "colour-blind-light"
        keys = {key: active.binding.id for key, active in app.screen.active_bindings.items()}
        assert keys["ctrl+y"] == "models.verify" and "v" not in keys


def colours(screen) -> list[tuple[object, object]]:
    """Of every widget of a screen."""
    widgets = screen.walk_children(with_self=True)
    return [(widget.styles.background, widget.styles.color) for widget in widgets]


async def test_a_screen_is_shown_again_in_the_current_theme(root, home):
    async with opened(root, "models") as (app, pilot):
        dark = colours(app.screen)
        await pilot.press("3")
        await until(pilot, lambda: app.current_mode == "train")
        app.theme = "textual-light"
        await pilot.press("1")
        await until(pilot, lambda: app.current_mode == "models")
        await pilot.pause()
        light = colours(app.screen)
        app.stylesheet.update(app.screen)
        assert colours(app.screen) == light != dark


async def test_a_screen_that_is_shown_again_unchanged_is_not_restyled(root, home, monkeypatch):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("6")
        await until(pilot, lambda: app.current_mode == "validate")
        await pilot.pause()
        styled = []
        whole = app.stylesheet.update_nodes

        def update_nodes(nodes, animate=False):
            nodes = list(nodes)
            styled.extend(nodes)
            whole(nodes, animate=animate)

        monkeypatch.setattr(app.stylesheet, "update_nodes", update_nodes)
        await pilot.press("1")
        await until(pilot, lambda: app.current_mode == "models")
        await pilot.pause()
        assert app.screen not in styled
        app.theme = "textual-light"
        await until(pilot, lambda: app.screen in styled)


@pytest.mark.parametrize("text", ["theme = 3", "not toml", "[keys]\nx = 1", 'theme = "nowhere"'])
async def test_invalid_settings_do_not_keep_the_app_from_starting(root, home, text):
    (home / "gladius").mkdir(parents=True)
    (home / "gladius" / "settings.toml").write_text(text)
    async with opened(root, "models") as (app, _):
        assert app.theme == App(None).theme


async def test_the_top_bar_of_every_screen_shows_what_runs(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            for mode in MODES:
                app.action_mode(mode.name)
                await until(pilot, lambda mode=mode: app.screens.get(mode.name) is app.screen)
                await until(
                    pilot, lambda: "● training" in str(app.screen.query_one(TopBar).render())
                )


@pytest.mark.parametrize("size", [(59, 30), (120, 15), (20, 3)])
async def test_a_tiny_terminal_gets_one_line(root, size):
    with toy_run(root):
        async with opened(root, "dashboard", size) as (app, pilot):
            await until(pilot, lambda: "training" in text_of(app.screen))
            lines = [line for line in text_of(app.screen).splitlines() if line.strip()]
            assert len(lines) <= 2


async def test_every_screen_fits_every_size(root):
    async with opened(root, "models") as (app, pilot):
        for mode in MODES:
            app.action_mode(mode.name)
            await until(pilot, lambda mode=mode: app.screens.get(mode.name) is app.screen)
            for size in ((60, 16), (80, 24), (200, 50)):
                await pilot.resize_terminal(*size)
                await until(pilot, lambda size=size: app.screen.size == size)
                await pilot.pause(0.1)
                shown = text_of(app.screen).splitlines()
                assert mode.title in shown[0] and "Quit" in shown[-1] and len(shown) == size[1]
                assert app.screen.query_one(KeyBar).region.bottom == size[1]


async def test_no_color_leaves_only_greys(root, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    async with opened(root, "models") as (app, pilot):
        await pilot.pause(0.3)
        assert app.no_color
        assert "○ Missing" in text_of(app.screen)


async def test_quit_asks_only_while_a_job_runs(root):
    async with opened(root, "models") as (app, pilot):
        await pilot.press("q")
        await pilot.pause()
        assert app.return_code == 0 and app._exit


async def test_quit_can_be_cancelled_or_stop_the_job(root):
    with toy_run(root):
        async with opened(root, "models") as (app, pilot):
            await until(pilot, lambda: "train" in app.watcher.jobs)
            await pilot.press("q")
            await until(pilot, lambda: isinstance(app.screen, Leave))
            assert app.screen.query_one(OptionList).highlighted == 0
            await pilot.press("down", "down", "enter")
            await until(pilot, lambda: not isinstance(app.screen, Leave))
            await pilot.press("ctrl+c")
            await until(pilot, lambda: isinstance(app.screen, Leave))
            assert app.screen.query_one(OptionList).highlighted == 1
            await pilot.press("enter")
            await until(pilot, lambda: app._exit)
            await until(pilot, lambda: running_jobs(root) == [])
        assert read_state(root).status == "stopped"


async def test_digits_are_text_where_text_is_typed(root):
    async with opened(root, "models") as (app, pilot):
        await until(pilot, lambda: "Qwen" in text_of(app.screen))
        await pilot.press("slash", *"135")
        assert app.current_mode == "models"
        assert app.screen.query_one("#filter", Input).value == "135"
        await until(pilot, lambda: "Qwen" not in static_text(app.screen, "#detail-text"))


def test_the_app_loads_neither_torch_nor_transformers(root):
    program = f"""
import asyncio, sys
from engine.workspace import Workspace
from gladius_tui.app.app import GladiusApp
from gladius_tui.app.model.modes import MODES

async def main():
    app = GladiusApp(Workspace.find({str(root.root)!r}), "models")
    async with app.run_test(size=(120, 36)) as pilot:
        for mode in MODES:
            app.action_mode(mode.name)
            await pilot.pause(0.2)
        app.action_help()
        await pilot.pause(0.2)
        assert len(app.screens) == 6

asyncio.run(main())
heavy = ("torch", "transformers", "huggingface_hub", "engine.distill", "engine.export",
"engine.validate")
print([name for name in sys.modules if name.startswith(heavy)])
"""
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip() == "[]"


async def test_an_error_that_no_screen_shows_is_a_notification(root):
    async with opened(root, "dashboard", launch=("resume",)) as (app, pilot):
        await until(
            pilot, lambda: any("no checkpoint" in note.message for note in app._notifications), 30
        )
