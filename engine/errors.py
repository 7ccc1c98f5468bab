"""Owns the errors that a user can cause, and the exit codes that answer them.

Every message is one line that says what is wrong and what to do about it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status means (the README lists them for users)."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    MISSING = 3
    LOCKED = 75
    SIGINT = 130
    SIGTERM = 143


class GladiusError(Exception):
    """A failure with one clear line for the user; `exit_code` is what the command ends with."""

    exit_code: ExitCode = ExitCode.FAILED


class UsageError(GladiusError):
    """The user's input is wrong: an option, a config value, a data file."""

    exit_code = ExitCode.USAGE


class MissingError(GladiusError):
    """Something required is not there: an expert, a checkpoint, a trained student."""

    exit_code = ExitCode.MISSING


class LockedError(GladiusError):
    """Another run holds the lock of this root."""

    exit_code = ExitCode.LOCKED
