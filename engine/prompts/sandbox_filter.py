"""Confine this process by what Linux offers every user: a filter of system calls, and Landlock.

It imports only Python's standard library: `sandbox_child` loads it inside the sandbox.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Iterable

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_RET_ALLOW = 0x7FFF0000
_RET_ERRNO = 0x00050000
_RET_KILL_PROCESS = 0x80000000

# Instructions of classic BPF, and where struct seccomp_data has its fields.
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
_X32 = 0x40000000

# AUDIT_ARCH_* and the column of _CALLS by machine.
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Numbers on x86_64 and aarch64 (None: no such call) of what Python needs to compute, to import
# modules and to end. Nothing here starts processes, sends signals, connects, or changes files.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65),
    "writev": (20, 66), "access": (21, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101),
    "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17),
    "readlink": (89, None), "gettimeofday": (96, 169), "getrusage": (98, 165),
    "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176),
    "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "gettid": (186, 178), "time": (201, None), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "getrandom": (318, 278), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439),
}  # fmt: skip
_OPEN, _OPENAT, _IOCTL, _FCNTL = (2, None), (257, 56), (16, 29), (72, 25)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0x400000
"""Flags of open(2) that change files; the last one is O_TMPFILE's own bit."""
_TCGETS = 0x5401
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. F_SETOWN would send signals."""

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""Number of access rights to files by Landlock's version; 16 from version 5 on."""


def landlock_version() -> int:
    """The version of Landlock's interface in this kernel; 0 without it."""
    return max(0, _libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION))


def confine(readable: Iterable[str]) -> None:
    """Allow only harmless system calls from now on; with Landlock, reading below `readable`.

    Without Landlock no file can be opened at all. Can't be undone. Raises OSError where the kernel
    has no filters, or the machine's system calls are not known here.
    """
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs")
    version = landlock_version()
    if version:
        _restrict_files(libc, version, readable)
    program = filter_program(platform.machine(), may_open=version > 0)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, and a pointer to them.
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def filter_program(machine: str, *, may_open: bool) -> bytes:
    """The filter for a machine as BPF code; raises OSError for a machine that is not known.

    What is not in the table fails with EPERM. `may_open`: whether files may be opened to read.
    """
    if machine not in _MACHINES or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known")
    arch, column = _MACHINES[machine]
    denied = _RET_ERRNO | errno.EPERM
    code = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, arch, 1, 0),
        _instruction(_RETURN, _RET_KILL_PROCESS),
        _instruction(_LOAD, _NUMBER),
        _instruction(_JUMP_AT_LEAST, _X32, 0, 1),
        _instruction(_RETURN, denied),
    ]
    for numbers in _CALLS.values():
        if (number := numbers[column]) is not None:
            code += [_instruction(_JUMP_EQUAL, number, 0, 1), _instruction(_RETURN, _RET_ALLOW)]
    if may_open:
        for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
            if (number := numbers[column]) is not None:
                code += _only(number, argument, [_instruction(_JUMP_ANY_BIT, _WRITE_FLAGS, 1, 0)])
    same = [_instruction(_JUMP_EQUAL, _TCGETS, 0, 1)]
    code += _only(_number(_IOCTL, column), 1, same)
    count = len(_FCNTL_COMMANDS)
    commands = [
        _instruction(_JUMP_EQUAL, command, count - n - 1, 1 if n == count - 1 else 0)
        for n, command in enumerate(_FCNTL_COMMANDS)
    ]
    code += _only(_number(_FCNTL, column), 1, commands)
    return b"".join([*code, _instruction(_RETURN, denied)])


def _only(number: int, argument: int, tests: list[bytes]) -> list[bytes]:
    """Allow the call when the tests of its argument fall through, else deny it."""
    body = [
        _instruction(_LOAD, _ARGUMENTS + 8 * argument),  # the lower half: little-endian machines
        *tests,
        _instruction(_RETURN, _RET_ALLOW),
        _instruction(_RETURN, _RET_ERRNO | errno.EPERM),
    ]
    return [_instruction(_JUMP_EQUAL, number, 0, len(body)), *body]


def _number(numbers: tuple[int | None, int | None], column: int) -> int:
    number = numbers[column]
    assert number is not None
    return number


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _restrict_files(libc: ctypes.CDLL, version: int, readable: Iterable[str]) -> None:
    """Deny every access to files except reading below `readable`; connections and signals too
    where Landlock knows them."""
    files = (1 << _FILE_RIGHTS.get(version, 16)) - 1
    network = 0b11 if version >= 4 else 0
    scopes = 0b11 if version >= 6 else 0
    attributes = struct.pack("QQQ", files, network, scopes)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(
        _LANDLOCK_CREATE, ctypes.c_char_p(attributes), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    for path in readable:
        try:
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rights = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)
        rule = struct.pack("=Qi", rights, folder)
        libc.syscall(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, ctypes.c_char_p(rule), ctypes.c_uint(0))
        os.close(folder)
    if libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0)) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)


def readable_paths() -> list[str]:
    """What Python reads to import the standard library: nothing of the user."""
    system = ["/usr/lib", "/lib", "/lib64", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"]
    system += ["/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/urandom"]
    return [*dict.fromkeys(path for path in sys.path if os.path.isabs(path)), *system]


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
