"""The two sides of a comparison: an opened GGUF file and the model folder it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace

from engine.errors import GladiusError
from engine.events import CheckDone
from engine.experts.gguf_header import open_gguf
from engine.export.progress import ReportProgress, no_progress
from engine.export.tokenizer import read_gguf_tokenizer
from engine.export.weights import Weights
from engine.gguf_types import GGUF_TYPES, GgufType


class Comparison:
    """A GGUF file and its model, both opened.

    Attributes:
        path, reader: the GGUF file.
        stored: the file's tensors by name.
        type: the file's type; None when it is unknown to this program.
        folder, weights, tokenizer: the model.
        report: receives the progress of a comparison.
    """

    def __init__(self, gguf: Path, folder: Path, report: ReportProgress = no_progress) -> None:
        """Raises GladiusError (or MissingError) when either side cannot be read."""
        self.path = gguf
        self.folder = folder
        self.report = report
        self.weights = Weights(folder)
        self.tokenizer = read_gguf_tokenizer(folder, self.weights.config["vocab_size"])
        try:
            self.reader = open_gguf(gguf)
        except Exception as error:  # the reader indexes, unpacks and maps: any error means damage
            reason = " ".join(str(error).split())
            raise GladiusError(
                f"{gguf} is not a readable GGUF file ({reason}); export it again"
            ) from error
        self.stored = {tensor.name: tensor for tensor in self.reader.tensors}
        file_type = self.metadata("general.file_type")
        self.type: GgufType | None = next(
            (entry for entry in GGUF_TYPES.values() if entry.file_type == file_type), None
        )

    def metadata(self, key: str) -> Any:
        """The value of a metadata key; None where the file does not have it."""
        field = self.reader.fields.get(key)
        return None if field is None else field.contents()


def shorten(value: Any) -> str:
    """A value for a message: long lists by their length, long text cut."""
    text = f"{len(value)} entries" if isinstance(value, list) and len(value) > 40 else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def skip_check(check: CheckDone, reason: str) -> CheckDone:
    """The check, not made for this reason."""
    return replace(check, verdict="skip", meaning=reason)


def fail_check(check: CheckDone, value: str) -> CheckDone:
    """The check, failed with this value."""
    return replace(check, verdict="fail", value=value)
