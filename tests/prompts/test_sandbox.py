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
# What a layer alone must hold; that namespaces can't be had here is told, not passed over.
needs_namespaces = pytest.mark.skipif(
    sandbox.walls() != "namespaces", reason="this system lets no user make namespaces"
)


def _layer(layer: dict) -> dict:
    if layer["namespaces"] and sandbox.walls() != "namespaces":
        pytest.skip("this system lets no user make namespaces")
    return layer


def _children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_code_that_passes_its_tests_passes() -> None:
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
        ("import numpy", []),  # nothing but Python's own library
    ],
)
def test_code_that_raises_fails(code: str, tests: list[str]) -> None:
    assert sandbox.run(code, tests).result == "failed"


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "import sys\nsys.stdout.close()\nx"])
def test_ending_early_is_no_way_to_pass(code: str) -> None:
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
def test_4_gb_of_memory_are_not_to_be_had(layer: dict, code: str) -> None:
    assert sandbox.run(code, **_layer(layer)).result == "stopped"


@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        # Children that hide in sessions of their own, where killing the group misses them.
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
def test_a_fork_bomb_leaves_nobody_behind(layer: dict, bomb: str, tmp_path: Path) -> None:
    before = set(psutil.pids())
    result = sandbox.run(bomb, seconds=1.5, **_layer(layer)).result
    assert result != "passed"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not [p for p in set(psutil.pids()) - before if _is_sandbox(p)]:
            return
        time.sleep(0.1)
    raise AssertionError("processes of the sandbox live on")


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
    """Not even to this machine: a listener hears nobody."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        heard: list[object] = []

        def listen() -> None:
            for _ in range(20):
                try:
                    heard.append(server.accept())
                except OSError:
                    continue

        thread = threading.Thread(target=listen)
        thread.start()
        port = server.getsockname()[1]
        code = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        assert sandbox.run(code, **_layer(layer)).result == "failed"
        thread.join()
        assert not heard


def test_without_the_walls_the_network_would_be_there() -> None:
    """That the tests above can fail: the limits alone keep nobody from the network."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket\nsocket.create_connection({server.getsockname()!r}, 1)"
        assert sandbox.run(code, hook=False, namespaces=False).result == "passed"


@needs_namespaces
def test_in_namespaces_it_sees_and_signals_no_process_of_ours() -> None:
    code = f"import os\nos.kill({os.getpid()}, 0)"
    assert sandbox.run(code, hook=False).result == "failed"


@needs_namespaces
def test_in_namespaces_nothing_can_be_mounted_back_for_writing() -> None:
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/', None, 32 | 4096, None) == 0"
    )
    assert sandbox.run(code, hook=False).result == "failed"


def test_the_environment_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    code = "import os\nassert 'HF_TOKEN' not in os.environ"
    assert sandbox.run(code).result == "passed"


def test_its_folder_is_gone_afterwards() -> None:
    import tempfile

    sandbox.run("x = 1")
    assert not list(Path(tempfile.gettempdir()).glob("gladius-code-*/here"))
