"""Errors that a user can cause, and their exit codes.

Every message is one line: what is wrong, and what to do about it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of commands (the README lists them for users)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    LOCKED = 75
    SIGINT = 130
    SIGTERM = 143


class GladiusError(Exception):
    """A failure with a one-line message for the user; `exit_code` is that of the command."""

    exit_code: ExitCode = ExitCode.FAILED


class UsageError(GladiusError):
    """The user's input is wrong: an option, a config value, a data file."""

    exit_code = ExitCode.USAGE


class MissingError(GladiusError):
    """Something required is missing: an expert, a checkpoint, a trained student."""

    exit_code = ExitCode.MISSING


class LockedError(GladiusError):
    """Another run holds the lock of this root."""

    exit_code = ExitCode.LOCKED
