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
    pytest.param({"hook": True, "namespaces": False, "filter": False}, id="hook"),
    pytest.param({"hook": False, "namespaces": True, "filter": False}, id="namespaces"),
    pytest.param({"hook": False, "namespaces": False, "filter": True}, id="filter"),
]
FILTER = {"hook": False, "namespaces": False, "filter": True}
"""A container, where no namespaces can be made; the audit hook bypassed."""
needs_filter = pytest.mark.skipif(
    not sandbox._can("filter"), reason="this kernel has no filters of system calls"
)
needs_namespaces = pytest.mark.skipif(
    sandbox.isolation() != "namespaces", reason="this system does not let users create namespaces"
)


def _layer(layer: dict) -> dict:
    if layer["namespaces"] and sandbox.isolation() != "namespaces":
        pytest.skip("this system does not let users create namespaces")
    if layer["filter"] and not sandbox._can("filter"):
        pytest.skip("this kernel has no filters of system calls")
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
            for _ in range(5):
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
        assert sandbox.run(code, hook=False, namespaces=False, filter=False).result == "passed"


@needs_namespaces
def test_in_namespaces_our_processes_are_not_visible() -> None:
    code = f"import os\nos.kill({os.getpid()}, 0)"
    assert sandbox.run(code, hook=False, filter=False).result == "failed"


@needs_namespaces
def test_in_namespaces_nothing_can_be_remounted_writable() -> None:
    code = (
        "import ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'none', b'/', None, 32 | 4096, None) == 0"
    )
    assert sandbox.run(code, hook=False, filter=False).result == "failed"


def test_environment_variables_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    code = "import os\nassert 'HF_TOKEN' not in os.environ"
    assert sandbox.run(code).result == "passed"


def test_its_folder_is_deleted_afterwards() -> None:
    import tempfile

    sandbox.run("x = 1")
    assert not list(Path(tempfile.gettempdir()).glob("gladius-code-*/here"))


@pytest.mark.parametrize("landlock", [True, False], ids=["landlock", "no landlock"])
def test_the_filter_lets_code_compute(landlock: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not landlock:
        monkeypatch.setattr(sandbox, "_CHILD", _child_without_landlock(monkeypatch))
    code = (
        "import math, re, json, collections, itertools, functools, datetime, random, heapq\n"
        "from dataclasses import dataclass\nimport time\n"
        "def f(x):\n    time.sleep(0.01)\n"
        "    return sorted(re.findall(r'\\d+', x)), math.pi, 10**50"
    )
    test = "assert f('a1b0') == (['0', '1'], 3.141592653589793, 10**50)"
    found = sandbox.run(code, [test.replace("10**50", "1" + "0" * 50)], **FILTER)
    assert found == ("passed", "")
    assert sandbox.run("open('/etc/passwd')", **FILTER).result == "failed"


def _child_without_landlock(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The script as on a kernel without Landlock."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="gt-"))
    for name in ("sandbox_child.py", "sandbox_filter.py"):
        text = sandbox._CHILD.with_name(name).read_text()
        (folder / name).write_text(text.replace("return max(0, _libc()", "return min(0, _libc()"))
    return folder / "sandbox_child.py"


ATTACKS = {
    "signal the worker": "import os\nos.kill({pid}, 0)",
    "signal its own parent": "import os\nos.kill(os.getppid(), 18)",
    "queue a signal": "import signal\nsignal.sigqueue({pid}, 18)"
    if hasattr(socket, "no such name")
    else "import ctypes\nassert ctypes.CDLL(None).sigqueue({pid}, 18, 0) == 0",
    "signal by fcntl": "import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, {pid})",
    "make a file outside": "open({path!r}, 'w')",
    "make a folder outside": "import os\nos.mkdir({path!r})",
    "read the worker's environment": "open('/proc/{pid}/environ', 'rb').read()",
    "read the worker's memory": "open('/proc/{pid}/mem', 'rb')",
    "read the user's files": "open({secret!r}).read()",
    "trace the worker": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "start a process": "import os\nos.fork()",
    "start a program": "import os\nos.execv('/bin/true', ['true'])",
    "start a process with clone": "import ctypes\n"
    "assert ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) >= 0",
    "leave the session": "import os\nos.setsid()",
    "connect": "import socket\nsocket.socket()",
    "reach its terminal": "import fcntl, termios\nfcntl.ioctl(0, termios.TIOCSTI, b'x')",
    "raise its limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (9, 9))",
    "use io_uring": "import ctypes\nassert ctypes.CDLL(None).syscall(425, 1, 0) >= 0",
    "share memory": "import ctypes\nassert ctypes.CDLL(None).shmget(1, 4096, 0o1600) >= 0",
}


@needs_filter
@pytest.mark.parametrize("attack", ATTACKS)
def test_without_namespaces_no_attack_leaves_the_sandbox(
    attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-secret")
    secret = tmp_path / "secret"
    secret.write_text("a-secret")
    path = tmp_path / "made"
    code = ATTACKS[attack].format(pid=os.getpid(), path=str(path), secret=str(secret))
    before = set(psutil.pids())
    assert sandbox.run(code, **FILTER).result == "failed"
    assert not path.exists()
    assert not [pid for pid in set(psutil.pids()) - before if _is_sandbox(pid)]


@needs_filter
def test_code_does_not_outlive_the_process_that_wants_its_result(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "from engine.prompts import sandbox\n"
        "sandbox.run('import time; time.sleep(60)', seconds=60, namespaces=False, filter=True)"
    )
    before = set(psutil.pids())
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        deadline = time.monotonic() + 20
        while not (mine := [p for p in set(psutil.pids()) - before if _is_sandbox(p)]):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    deadline = time.monotonic() + 10
    while any(_is_sandbox(pid) for pid in mine):
        assert time.monotonic() < deadline
        time.sleep(0.02)


FORGERIES = [
    # Find the caller's frame, and what it would report with.
    "import sys, os\nframe = sys._getframe()\n"
    "while frame:\n    report = frame.f_locals.get('report', 0)\n"
    "    if report:\n        os.write(report, b'ran \\nvalue true\\npassed\\n' * 9)\n"
    "    frame = frame.f_back\ndef f(x): return 0",
    "class Equal(int):\n    __eq__ = lambda *_: True\ndef f(x): return Equal(0)",
    "class Equal:\n    __eq__ = lambda *_: True\ndef f(x): return Equal()",
    "import builtins\nbuiltins.AssertionError = builtins.MemoryError = type('E', (), {})\n"
    "def f(x): return 0",
    "import os, sys\nos.write(int(sys.argv[1]), b'passed\\n' * 9)\nos._exit(0)",
    "import json\njson.dumps = lambda *_: 'true'\ndef f(x): return 0",
]


@pytest.mark.parametrize("code", FORGERIES)
def test_code_can_not_forge_its_verdict(code: str) -> None:
    """Not even with nothing but the limits around it: it never has what is expected of it."""
    test = f"assert f(1) == {12344 + 1}"
    assert sandbox.run(code, [test], hook=False, namespaces=False, filter=False).result != "passed"


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == 2\nif f(2) == 2: pass",
        "assert [f(i) for i in range(3)] == [0, 1, 2]",
        "assert f(f(1) == 2)",
        "assert (lambda: 2)() == f(1)",
        "assert ().__class__ == f(1)",
        "assert 'a' * 10**10 == f(1)",
    ],
)
def test_a_test_that_can_not_be_checked_outside_is_not_run(test: str) -> None:
    outcome = sandbox.run("def f(x):\n    return 2", [test])
    assert outcome.result == "not_run" and "can't be checked" in outcome.detail


def test_all_tests_of_the_shipped_and_generated_prompts_can_be_checked() -> None:
    import json
    from random import Random

    from engine.prompts.prompt import CodeCheck
    from engine.prompts.sandbox_tests import split_test
    from engine.prompts.variants import programs
    from tests.support.paths import REPO

    texts = [
        test
        for line in (REPO / "assets/prompts/code.jsonl").read_text().splitlines()
        for test in json.loads(line).get("check", {}).get("tests", ())
    ]
    assert len(texts) > 50
    rng = Random(1)
    for _ in range(200):
        check = programs.draft(rng).check
        assert isinstance(check, CodeCheck)
        texts += check.tests
    for text in texts:
        split = split_test(text)
        assert split.values >= 1 and split.comparisons


def test_where_nothing_isolates_code_it_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.doctor.machine import check_sandbox
    from engine.prompts.prompt import CodeCheck
    from engine.prompts.structured_checks import check_code

    monkeypatch.setattr(sandbox, "isolation", lambda: "none")
    assert sandbox.run("x = 1").result == "not_run"
    check = CodeCheck(tests=("assert f(1) == 2",))
    assert check_code(check, "def f(x):\n    return 2") == "code_not_run"
    assert check_sandbox("none").status == "warn" and "dropped" in check_sandbox("none").figure
    assert check_sandbox("filter").status == "ok"


def test_values_keep_their_types() -> None:
    code = (
        "def f(kind):\n"
        "    return {'set': {1}, 'tuple': ((1, 2),), 'dict': {1: {(2,): None}}, 'c': 1j,\n"
        "        'b': b'a', 'r': range(3), 'z': zip([1], [2]), 't': True, 'big': 2**200}[kind]"
    )
    tests = [
        "assert f('set') == {1}",
        "assert f('tuple') == ((1, 2),)",
        "assert not f('tuple') == [(1, 2)]",
        "assert f('dict') == {1: {(2,): None}}",
        "assert f('b') == b'a'",
        "assert f('r') == range(3)",
        "assert not f('r') == [0, 1, 2]",
        "assert list(f('z')) == [(1, 2)]",
        "assert f('t') is True",
        f"assert f('big') == {2**200}",
        "assert len(f('tuple')) == 1 and max(x for x in f('set')) == 1",
    ]
    tests = [test.replace("range(3)", "f('r')") for test in tests]
    assert sandbox.run(code, tests) == ("passed", "")
