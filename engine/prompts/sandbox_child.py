"""The script that runs inside the sandbox process: isolate itself, then run code and report values.

It imports only Python's standard library. `sandbox` starts it.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import sys

_CLONE_NEWNS = 0x00020000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 1
_SYS_MOUNT_SETATTR = 442  # the same number on all of Linux's 64-bit architectures
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38

# Prefixes of rejected audit events (Python docs: "Audit events table").
_FORBIDDEN = (
    "os.fork",
    "os.forkpty",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "os.killpg",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "subprocess.",
    "socket.",
    "ctypes.",
    "shutil.",
    "signal.pthread_kill",
    "ftplib.",
    "http.",
    "urllib.",
    "smtplib.",
    "sqlite3.",
    "webbrowser.",
    "pty.",
    "fcntl.",
    "resource.setrlimit",
    "resource.prlimit",
    "syslog.",
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


_MAX_VALUE_BYTES = 32 << 10
"""Longest report of one value."""
_MAX_ITEMS = 10_000
"""Items of an iterator that are reported."""
_PRELOADED = (
    "abc array base64 bisect calendar cmath collections collections.abc contextlib copy "
    "dataclasses datetime decimal enum fractions functools hashlib heapq io itertools json math "
    "numbers operator random re secrets statistics string struct textwrap time types typing "
    "unicodedata"
)
"""Modules that code can use where it may open no file."""


def main() -> None:
    if sys.argv[1] == "probe":
        if sys.argv[2] == "namespaces":
            _enter_namespaces()
        else:
            _confine()
        os._exit(0)
    report = int(sys.argv[1])
    task = json.loads(sys.stdin.buffer.read())
    _die_with_parent(task["parent"])
    if task["namespaces"]:
        _enter_namespaces()
    _set_limits(task["cpu"], task["memory"])
    sys.setrecursionlimit(2000)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for the rest of the process)
    if task["filter"]:
        _confine()
    if task["hook"]:
        sys.addaudithook(_audit_hook)
    _run(task["code"], task["steps"], report)
    os._exit(0)


def _die_with_parent(parent: int) -> None:
    """End when the process that wants the result ends."""
    if sys.platform.startswith("linux"):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(3)


def _confine() -> None:
    """Filter system calls; exits with code 3 if the system can't."""
    import importlib.util
    from pathlib import Path

    path = Path(__file__).with_name("sandbox_filter.py")
    spec = importlib.util.spec_from_file_location("sandbox_filter", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        if not module.landlock_version():
            for name in _PRELOADED.split():
                importlib.import_module(name)
        module.confine(module.readable_paths())
    except OSError:
        os._exit(3)


def _run(code: str, steps: list[tuple[str, str]], report: int) -> None:
    """Run the code, then the steps; report the value of each expression, a line for each.

    The code can write to `report` too: all that it can gain is to return other values.
    """
    namespace: dict[str, object] = {"__name__": "answer"}
    try:
        exec(compile(code, "answer", "exec"), namespace)
        _write(report, "ran", "")
        for kind, text in steps:
            step = compile(text, "test", kind)
            if kind == "exec":
                exec(step, namespace)
            else:
                _write(report, "value", json.dumps(_plain(eval(step, namespace))))
        _write(report, "done", "")
    except MemoryError:
        _write(report, "stopped", "out of memory")
    except BaseException as error:
        _write(report, "failed", f"{type(error).__name__}: {error}"[:300])


def _write(report: int, kind: str, text: str) -> None:
    line = f"{kind} {' '.join(text.split())}".encode("utf-8", "backslashreplace")
    if len(line) > _MAX_VALUE_BYTES:
        line = b"failed the value is too long"
    os.write(report, line + b"\n")


def _plain(value: object, depth: int = 0) -> object:
    """The value as JSON with the types that JSON lacks; raises TypeError for other objects."""
    if depth > 50:
        raise TypeError("the value is nested too deeply")
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": list(value)}
    if isinstance(value, range):
        return {"range": [value.start, value.stop, value.step]}
    if isinstance(value, dict):
        pairs = [[_plain(k, depth + 1), _plain(v, depth + 1)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    for container in (tuple, set, frozenset):
        if isinstance(value, container):
            return {container.__name__: [_plain(item, depth + 1) for item in value]}
    if hasattr(value, "__next__"):
        items = itertools.islice(value, _MAX_ITEMS)  # type: ignore[call-overload]
        return {"iterator": [_plain(item, depth + 1) for item in items]}
    raise TypeError(f"the code returned a {type(value).__name__}")


def _audit_hook(event: str, arguments: tuple) -> None:
    """Raise PermissionError for writing files and for the events in _FORBIDDEN."""
    if event == "open":
        path, mode, flags = (*arguments, None, None, None)[:3]
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if writes or (isinstance(flags, int) and flags & _WRITES):
            raise PermissionError(f"writing is not allowed in the sandbox: {path!r}")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is not allowed in the sandbox")


def _set_limits(cpu: int, memory: int) -> None:
    """Set resource limits; `cpu` in seconds, `memory` in bytes of address space."""
    for kind, limit in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 16),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing then raises an error


def _enter_namespaces() -> None:
    """Enter new namespaces; exits with code 3 if the system does not allow it.

    Returns only in a child, the first process of the new process namespace. The calling process
    waits for it and exits with its code.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    spaces = _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.unshare(spaces) != 0:
        os._exit(3)
    try:
        # Map the user to itself: as root of the namespace it could raise its limits.
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        os._exit(3)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
        os._exit(3)
    read_only = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(read_only))
    recursive = ctypes.c_uint(_AT_RECURSIVE)
    if (
        libc.syscall(_SYS_MOUNT_SETATTR, ctypes.c_int(_AT_FDCWD), b"/", recursive, read_only, size)
        != 0
    ):
        os._exit(3)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities(libc)


def _drop_capabilities(libc) -> None:
    """Drop the capabilities of a new user namespace, so that nothing can be remounted writable."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        os._exit(3)


if __name__ == "__main__":
    main()
