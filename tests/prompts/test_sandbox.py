"""The sandbox: its limits and each of its layers of isolation alone."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from engine.prompts import sandbox

LAYERS = [
    pytest.param({"hook": True, "namespaces": False}, id="hook and limits"),
    pytest.param({"hook": False, "namespaces": True}, id="namespaces and limits"),
]
needs_namespaces = pytest.mark.skipif(
    sandbox.isolation() != "namespaces", reason="this system does not let users create namespaces"
)


def _layer(layer: dict) -> dict:
    if layer["namespaces"] and sandbox.isolation() != "namespaces":
        pytest.skip("this system does not let users create namespaces")
    return layer


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_code_that_meets_its_tests_passes() -> None:
    assert sandbox.run("def f(x):\n    return x + 1", ["assert f(1) == 2"]).result == "passed"
    imports = "import math, re, json, collections, itertools, functools, datetime, random, heapq"
    assert sandbox.run(imports).result == "passed"


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(x):\n    return x", ["assert f(1) == 2"]),
        ("def f(:", []),
        ("x = 1 / 0", []),
        ("raise SystemExit(0)", []),
        ("def f(x):\n    return f(x)", ["f(1)"]),
        ("import numpy", []),  # only the standard library is available
    ],
)
def test_code_that_raises_fails(code: str, tests: list[str]) -> None:
    assert sandbox.run(code, tests).result == "failed"


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "import sys\nsys.stdout.close()\nx"])
def test_exiting_early_does_not_pass(code: str) -> None:
    assert sandbox.run(code, ["assert False"]).result != "passed"


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "code", ["while True: pass", "import time\ntime.sleep(60)", "while True: print('x' * 10000)"]
)
def test_an_endless_loop_is_stopped(layer: dict, code: str) -> None:
    before, began = _children(), time.monotonic()
    assert sandbox.run(code, seconds=1.5, **_layer(layer)).result == "stopped"
    assert time.monotonic() - began < 8
    assert _children() <= before


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(4 * 2**30)",
        "x = []\nwhile True: x.append('y' * 10**6 + str(len(x)))",
        "x = list(range(10**9))",
    ],
)
def test_allocating_4_gb_is_stopped(layer: dict, code: str) -> None:
    assert sandbox.run(code, **_layer(layer)).result == "stopped"


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        # Children in their own sessions, which killing the process group does not reach.
        "import os, time\n"
        "for _ in range(40):\n"
        "    try:\n"
        "        if os.fork() == 0:\n"
        "            os.setsid()\n"
        "            time.sleep(60)\n"
        "    except OSError: pass\n"
        "time.sleep(60)",
    ],
)
@pytest.mark.parametrize("layer", LAYERS)
def test_a_fork_bomb_leaves_no_process(layer: dict, bomb: str, tmp_path: Path) -> None:
    before = set(psutil.pids())
    result = sandbox.run(bomb, seconds=1.5, **_layer(layer)).result
    assert result != "passed"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [p for p in set(psutil.pids()) - before if _is_sandbox(p)]:
            return
        time.sleep(0.1)
    raise AssertionError("processes of the sandbox are still running")


def _is_sandbox(pid: int) -> bool:
    try:
        return any("sandbox_child" in part for part in psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "code",
    [
        "open({path!r}, 'w').write('a' * 100)",
        "import os\nos.write(os.open({path!r}, os.O_RDWR | os.O_CREAT), b'a')",
        "import posix\nposix.write(posix.open({path!r}, 65), b'a')",
        "import pathlib\npathlib.Path({path!r}).write_text('a')",
        "open('here', 'w').write('a' * 100)",
    ],
)
def test_no_file_is_written(layer: dict, code: str, tmp_path: Path) -> None:
    path = tmp_path / "written"
    assert sandbox.run(code.format(path=str(path)), **_layer(layer)).result != "passed"
    assert not path.exists()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.remove({path!r})",
        "import os\nos.rename({path!r}, {path!r} + 'x')",
        "import os\nos.truncate({path!r}, 0)",
        "import shutil\nshutil.rmtree({folder!r})",
        "import os\nos.chmod({path!r}, 0)",
    ],
)
def test_no_file_is_removed_or_changed(layer: dict, code: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    path.write_text("precious")
    mode = path.stat().st_mode
    text = code.format(path=str(path), folder=str(tmp_path))
    assert sandbox.run(text, **_layer(layer)).result != "passed"
    assert path.read_text() == "precious" and path.stat().st_mode == mode


@pytest.mark.parametrize("layer", LAYERS)
def test_there_is_no_network(layer: dict) -> None:
    """Not even to this machine: a listener gets no connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        accepted: list[object] = []

        def listen() -> None:
            for _ in range(20):
                try:
                    accepted.append(server.accept())
                except OSError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert sandbox.run(code, **_layer(layer)).result == "failed"
        thread.join()
        assert not accepted


def test_without_isolation_the_network_is_reachable() -> None:
    """Shows that the tests above can fail: the limits alone do not block the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection({server.getsockname()!r}, 1)"
        assert sandbox.run(code, hook=False, namespaces=False).result == "passed"


@needs_namespaces
def test_in_namespaces_our_processes_are_not_visible() -> None:
    code = f"import os\nos.kill({os.getpid()}, 0)"
    assert sandbox.run(code, hook=False).result == "failed"


@needs_namespaces
def test_in_namespaces_nothing_can_be_remounted_writable() -> None:
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/', None, 32 | 4096, None) == 0"
    )
    assert sandbox.run(code, hook=False).result == "failed"


def test_environment_variables_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    code = "import os\nassert 'HF_TOKEN' not in os.environ"
    assert sandbox.run(code).result == "passed"


def test_its_folder_is_deleted_afterwards() -> None:
    import tempfile

    sandbox.run("x = 1")
    assert not list(Path(tempfile.gettempdir()).glob("gladius-code-*/here"))
