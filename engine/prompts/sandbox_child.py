"""Owns the inside of the sandbox: what the process of `sandbox` does before and while it runs the
code. It is run as a script, imports nothing of ours and nothing outside Python's own library.
"""

from __future__ import annotations

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

# What Python tells its audit hooks of before it does it (docs: "Audit events table").
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


def main() -> None:
    if sys.argv[1] == "probe":
        _raise_walls()
        os._exit(0)
    report = int(sys.argv[1])
    task = json.loads(sys.stdin.buffer.read())
    if task["namespaces"]:
        _raise_walls()
    _limit(task["cpu"], task["memory"])
    sys.setrecursionlimit(2000)
    sys.stdin = open(os.devnull)  # noqa: SIM115 (for the rest of the process)
    word = task["word"]

    def say(text: str) -> None:
        os.write(report, f"{word} {' '.join(text.split())[:300]}\n".encode())

    if task["hook"]:
        sys.addaudithook(_refuse)
    _run(task["code"], task["tests"], say)
    os._exit(0)


def _run(code: str, tests: list[str], say) -> None:
    space: dict[str, object] = {"__name__": "answer"}
    try:
        exec(compile(code, "answer", "exec"), space)
        for test in tests:
            exec(compile(test, "test", "exec"), space)
    except MemoryError:
        say("stopped out of memory")
    except BaseException as error:
        say(f"failed {type(error).__name__}: {error}")
    else:
        say("passed")


def _refuse(event: str, arguments: tuple) -> None:
    if event == "open":
        path, mode, flags = (*arguments, None, None, None)[:3]
        writes = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        if writes or (isinstance(flags, int) and flags & _WRITES):
            raise PermissionError(f"no writing here: {path!r}")
    elif event.startswith(_FORBIDDEN):
        raise PermissionError(f"{event} is not allowed here")


def _limit(cpu: int, memory: int) -> None:
    for what, most in (
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 16),
    ):
        resource.setrlimit(what, (most, most))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails with an error


def _raise_walls() -> None:
    """Namespaces of its own; exits with 3 where the system does not allow them.

    The process stays behind as the parent of the first process of the new process namespace, and
    returns in that one only.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    spaces = _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWNS | _CLONE_NEWIPC
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.unshare(spaces) != 0:
        os._exit(3)
    try:
        # The user stays himself: in his own namespace root could lift limits, nobody else can.
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
    """Give up what being first in a user namespace gave, so that nothing can be mounted back."""
    import ctypes

    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        os._exit(3)


if __name__ == "__main__":
    main()
