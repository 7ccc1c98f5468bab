"""The date that chat templates write: the day on which the run began, also after a resume.

Some templates (Llama 3.2) put the current date into every prompt. One process does one job, so the
date is a setting of the process.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from engine.workspace import write_json

_FORMAT = "%Y-%m-%dT%H:%M:%S"


class _Stored(msgspec.Struct, frozen=True):
    began: str
    """Local time, as 2026-11-27T23:05:00."""


class _Setting:
    """The date of this process; None: now."""

    date: datetime.datetime | None = None


def use_date_of_run(file: Path) -> datetime.datetime:
    """From now on templates write the date in `file`, which is made with the present time if it is
    missing or unreadable."""
    try:
        stored = msgspec.json.decode(file.read_bytes(), type=_Stored)
        _Setting.date = datetime.datetime.strptime(stored.began, _FORMAT)
    except (OSError, ValueError, msgspec.MsgspecError):
        _Setting.date = datetime.datetime.now().replace(microsecond=0)
        write_json(file, _Stored(began=_Setting.date.strftime(_FORMAT)))
    return _Setting.date


def use_present_date() -> None:
    """From now on templates write the present date."""
    _Setting.date = None


def strftime_now(format: str) -> str:
    """The function that templates call, with the date of the run."""
    return (_Setting.date or datetime.datetime.now()).strftime(format)
