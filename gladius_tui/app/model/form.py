"""The content of the Train form, and the command that it stands for."""

from __future__ import annotations

import shlex
from typing import Literal

import msgspec


class Form(msgspec.Struct, frozen=True, kw_only=True):
    """What was typed into the form."""

    preset: str = "nano"
    file: str = ""
    experts: tuple[str, ...] | None = None
    """None: the preset's."""
    hours: str = ""
    data: str = ""
    """Paths, quoted as in a shell."""
    device: str = "auto"
    overrides: str = ""
    """section.field=value, quoted as in a shell."""

    def argv(self) -> list[str]:
        """The words after `gladius_train` that start this run. Raises ValueError for an unclosed
        quote."""
        words = ["train", "--preset", self.preset]
        if self.file.strip():
            words += ["--config", self.file.strip()]
        if self.experts is not None:
            words += ["--experts", ",".join(self.experts)]
        if self.hours.strip():
            words += ["--hours", self.hours.strip()]
        for path in self.data_paths():
            words += ["--data", path]
        for override in self.all_overrides():
            words += ["--set", override]
        return words

    def words_of(self, name: Literal["data", "overrides"]) -> list[str]:
        """The words of a field. Raises ValueError for an unclosed quote."""
        return _split("set" if name == "overrides" else name, getattr(self, name))

    def data_paths(self) -> list[str]:
        """The paths of the data field. Raises ValueError for an unclosed quote."""
        return self.words_of("data")

    def all_overrides(self) -> list[str]:
        """The overrides, with the device among them. Raises ValueError for an unclosed quote."""
        device = [] if self.device == "auto" else [f"device.device={self.device}"]
        return [*self.words_of("overrides"), *device]

    def max_hours(self) -> float | None:
        """The hours; None for no limit. Raises ValueError for what is not a number."""
        if not self.hours.strip():
            return None
        try:
            return float(self.hours)
        except ValueError:
            text = f"hours: {self.hours.strip()!r} is not a number; enter one such as 1.5"
            raise ValueError(text) from None


def _split(name: str, text: str) -> list[str]:
    """The words of a field, split as in a shell."""
    try:
        return shlex.split(text)
    except ValueError:
        raise ValueError(f"{name}: unclosed quote; close it") from None
