"""The commands, as real processes: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.events import RunEnded, RunPaused, decode_event
from engine.run.job import JOBS
from engine.run.lock import hold_lock
from engine.run.state import read_state
from engine.workspace import Workspace
from gladius_tui.shell import JOB_NAMES
from tests.support.paths import REPO

TOY = REPO / "tests" / "support" / "toy_job.py"
LAUNCHER = REPO / "gladius_train"


@pytest.fixture
def ws(tmp_path) -> Workspace:
    workspace = Workspace.find(tmp_path)
    workspace.create()
    return workspace


def gladius(ws: Workspace, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, **env},
        timeout=60,
    )


def error_of(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The only line on standard error of a command that must exit with `code`."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture
def toy(ws):
    """A running training job whose worker is tests/support/toy_job.py."""
    log = open(ws.root / "toy.out", "wb")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(ws.root), json.dumps({"seconds": 0.01})],
        stdout=log,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 30
    while read_state(ws).step < 1:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    log.close()


def test_status_and_models_answer_in_an_empty_root(ws):
    status = gladius(ws, "status")
    assert status.returncode == 0 and status.stdout.startswith("status       not_started\n")
    models = gladius(ws, "models")
    assert models.returncode == 0 and "○ Missing" in models.stdout


def test_global_options_come_before_or_after_the_command(ws):
    command = [sys.executable, "-m", "gladius_tui.cli"]
    root = str(ws.root)
    orders = (
        ["--json", "--root", root, "status"],
        ["status", "--json", f"--root={root}"],
        ["--no-ui", "status", "--quiet", "--root", root, "--json"],
    )
    for order in orders:
        result = subprocess.run([*command, *order], capture_output=True, text=True, cwd=REPO)
        status = json.loads(result.stdout)
        assert status["status"] == "not_started" and status["root"] == root
        assert {expert["state"] for expert in status["experts"]} == {"missing"}


def test_models_as_json_are_specs_with_states(ws):
    models = json.loads(gladius(ws, "models", "--json").stdout)
    assert [model["name"] for model in models][:2] == ["qwen", "llama"]
    assert models[0]["repo"] == "Qwen/Qwen2.5-1.5B-Instruct" and models[0]["state"] == "missing"


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["train", "--preset", "nanno"], 2, ["unknown preset 'nanno'", "'nano'"]),
        (["train", "--experts", "qwem"], 2, ["unknown expert 'qwem'", "'qwen'"]),
        (["train", "--preset", "nano"], 3, ["no expert is ready", "download smollm2"]),
        (
            ["data", "export", "x.jsonl", "--capability", "juggling"],
            2,
            ["juggling", "known: tool_"],
        ),
        (["data", "inspect"], 3, ["data make"]),
        (["data", "inspect", "--expert", "qwen"], 3, ["data make"]),
        (["data", "make", "--count", "0"], 2, ["--count"]),
        (["train", "--data", "gone.jsonl"], 2, ["data.files", "gone.jsonl doesn't exist"]),
        (["train", "--hours", "x"], 2, ["--hours", "train --help"]),
        (["train", "--set", "x"], 2, ["'x' is not section.field=value"]),
        (["trian"], 2, ["No such command 'trian'"]),
        (["train", "--foo"], 2, ["--foo"]),
        (["resume"], 3, ["no checkpoint", "gladius_train train"]),
        (["pause"], 3, ["no job is running here"]),
        (["stop", "--job", "train"], 3, ["no train job runs"]),
        (["checkpoint"], 3, ["no job is running here"]),
        (["dashboard", "--follow"], 3, ["none has run before"]),
        (["download", "qwem"], 2, ["unknown expert 'qwem'"]),
        (["clean", "everything"], 2, ["everything"]),
    ],
)
def test_wrong_input_gives_one_line_and_its_exit_code(ws, arguments, code, parts):
    line = error_of(gladius(ws, *arguments), code)
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_three_mistakes_are_named_at_once(ws):
    result = gladius(
        ws, "train", "--set", "optimizer.lr=-1", "--set", "loss.alfa=1", "--set", "device.device=x"
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.splitlines()[0] == "error: config: 3 problems"
    for part in ("optimizer.lr", "loss.alfa", "device.device"):
        assert part in result.stderr


def test_a_broken_line_and_an_empty_file_are_named(ws):
    (ws.root / "a.jsonl").write_text('{"text": "x"}\n{"text": \n')
    (ws.root / "b.jsonl").write_text("")
    line = error_of(gladius(ws, "train", "--preset", "nano", "--data", str(ws.root / "a.jsonl")), 2)
    assert "a.jsonl, line 2" in line
    line = error_of(gladius(ws, "train", "--preset", "nano", "--data", str(ws.root / "b.jsonl")), 2)
    assert "b.jsonl is empty" in line


def test_a_root_that_cant_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    result = gladius(Workspace(tmp_path / "file"), "train")
    assert "can't write in" in error_of(result, 1)


def test_a_second_trainer_ends_with_75_and_names_the_first(ws):
    with hold_lock(ws, "train"):
        line = error_of(gladius(ws, "train", "--preset", "nano"), 75)
        assert f"pid {os.getpid()}" in line
        assert "pid" in error_of(gladius(ws, "resume"), 75)


def test_a_traceback_is_shown_with_debug_only(ws):
    assert "Traceback" not in gladius(ws, "resume").stderr
    assert "Traceback" in gladius(ws, "resume", "--debug").stderr


def test_a_bug_is_one_line_and_its_traceback_is_in_the_log(ws):
    program = (
        "import sys; from gladius_tui import cli, status; del status.status_lines;"
        f"sys.exit(cli.main(['status', '--root', {str(ws.root)!r}]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO
    )
    assert "ImportError" in error_of(result, 1)
    assert "Traceback" in ws.log_file().read_text()


def test_commands_act_on_a_running_job_and_are_acknowledged_with_its_step(ws, toy):
    assert gladius(ws, "status").stdout.startswith(f"status       training (pid {toy.pid})\n")
    paused = decode_event(gladius(ws, "pause", "--json").stdout)
    assert isinstance(paused, RunPaused) and paused.step > 0
    assert json.loads(gladius(ws, "status", "--json").stdout)["status"] == "paused"
    saved = gladius(ws, "checkpoint")
    assert saved.stdout.startswith(f"checkpoint of step {paused.step:,} saved")
    assert gladius(ws, "resume").stdout == f"resumed at step {paused.step:,}\n"
    assert "pid" in error_of(gladius(ws, "resume"), 75)
    assert gladius(ws, "stop").stdout.startswith("stopped at step ")
    assert toy.wait(20) == 0
    assert gladius(ws, "status").stdout.startswith("status       stopped")


def test_follow_prints_events_until_the_run_ends(ws, toy):
    following = subprocess.Popen(
        [sys.executable, "-m", "gladius_tui.cli", "--root", str(ws.root), "dashboard", "--follow",
         "--json"],
        stdout=subprocess.PIPE,
        cwd=REPO,
    )  # fmt: skip
    time.sleep(1.0)
    gladius(ws, "stop")
    output, _ = following.communicate(timeout=30)
    events = [decode_event(line) for line in output.splitlines()]
    assert following.returncode == 0
    assert isinstance(events[-1], RunEnded) and events[-1].status == "stopped"
    numbers = [event.seq for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    again = gladius(ws, "dashboard", "--follow")
    assert "stopped at step" in again.stdout
    assert "status       stopped" in gladius(ws, "dashboard").stdout


def test_clean_lists_first_and_is_refused_while_a_job_is_running(ws):
    (ws.downloads_dir / "part").write_bytes(bytes(2048))
    shown = gladius(ws, "clean")
    assert "2.0 KiB  tmp/downloads/part" in shown.stdout and "--confirm" in shown.stdout
    with hold_lock(ws, "train"):
        assert "train is running here" in error_of(gladius(ws, "clean", "--confirm"), 75)
    assert (ws.downloads_dir / "part").exists()
    assert "deleted" in gladius(ws, "clean", "--confirm").stdout
    assert not (ws.downloads_dir / "part").exists()
    assert gladius(ws, "clean").stdout == "nothing to clean\n"


@pytest.mark.parametrize("arguments", [["status"], ["models"], ["--help"], ["train", "--help"]])
def test_commands_that_must_answer_at_once_load_no_heavy_module(ws, arguments):
    program = (
        "import sys; from gladius_tui.cli import main;"
        f"main({['--root', str(ws.root), *arguments]!r});"
        "heavy = ('torch', 'transformers', 'numpy', 'textual', 'pydantic', 'rich', 'sqlite3');"
        "sys.exit([name for name in heavy if name in sys.modules] or 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPO
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_the_option_job_accepts_every_job_but_the_audit_that_ends_with_its_doctor():
    assert set(JOB_NAMES) == set(JOBS) - {"audit"}


def test_status_starts_in_less_than_three_times_a_bare_python_plus_100_ms(ws):
    commands = {
        "bare": [sys.executable, "-c", "import sqlite3, json"],
        "status": [str(LAUNCHER), "--root", str(ws.root), "status"],
        "help": [str(LAUNCHER), "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(9):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            seconds[name].append(time.perf_counter() - began)
    # The fastest of each: other load on the machine only adds time.
    fastest = {name: min(values) for name, values in seconds.items()}
    limit = 3 * fastest["bare"] + 0.1
    assert fastest["status"] < limit and fastest["help"] < limit, fastest


def test_the_launcher_without_an_environment_names_the_command_that_makes_one(ws, tmp_path):
    """Without a virtual environment it names the command that makes one."""
    launcher = tmp_path / "elsewhere" / "gladius_train"
    launcher.parent.mkdir()
    launcher.write_bytes(LAUNCHER.read_bytes())
    launcher.chmod(0o755)
    empty = tmp_path / "bin"
    empty.mkdir()
    for tool in ("sh", "dirname", "readlink"):
        (empty / tool).symlink_to(Path("/bin") / tool)
    result = subprocess.run(
        [str(launcher), "status"], capture_output=True, text=True, env={"PATH": str(empty)}
    )
    assert result.returncode == 3 and "setup" in result.stderr


@pytest.mark.parametrize("words", [("status",), ("train", "--help"), ("models", "--json"), ("-x",)])
def test_a_terminal_that_is_not_utf_8_gets_every_line(root, words):
    """It got nothing, with exit code 0: UnicodeEncodeError was taken for a closed pipe."""
    root.user_config.write_text('[experts.x]\nrepo = "me/x"\ntitle = "Ä ✓ –"\n')

    def output(encoding: str) -> tuple[int, str, str]:
        result = subprocess.run(
            [sys.executable, "-m", "gladius_tui.cli", "--root", str(root.root), *words],
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": encoding},
            cwd=REPO,
            timeout=60,
        )
        return result.returncode, result.stdout.decode(encoding), result.stderr.decode(encoding)

    expected, found = output("utf-8"), output("ascii")
    assert found[0] == expected[0]
    for there, here in zip(expected[1:], found[1:], strict=True):
        assert len(there.splitlines()) == len(here.splitlines())
    if "--json" in words:
        assert json.loads(found[1]) == json.loads(expected[1])


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--set", "\x1b[2J.x=1"),
        ("train", "--experts", "\x1b]0;title\x07"),
        ("train", "--config", "no\u202efile.toml"),
        ("train", "--data", "no\x9b31mfile"),
        ("export", "--type", "\x1b[31m"),
        ("models", "add", "a\x1b[31m", "./x"),
        ("status", "--root", "a\x00b"),
        ("validate", "--model", "\udcff\udcfe"),
        ("\x1b[31m",),
    ],
)
def test_what_is_typed_is_quoted_without_control_characters(root, words, capsys):
    from gladius_tui import cli
    from tests.support.hostile_events import is_clean

    where = () if "--root" in words else ("--root", str(root.root))
    assert cli.main([*where, "--no-ui", *words]) in (1, 2, 3)
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and is_clean(output.err) and is_clean(output.out)
    assert "this is a bug" not in output.err
