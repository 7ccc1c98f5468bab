"""Paths of an export: the final path, temporary files next to it, and disk space."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import psutil

from engine.errors import GladiusError, MissingError, UsageError
from engine.export.gguf import estimated_file_bytes
from engine.export.tensors import lossless_type
from engine.export.tokenizer import GgufTokenizer
from engine.export.weights import Weights
from engine.gguf_types import GgufType
from engine.programs import can_quantize, quantizer_missing

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BITS_F16 = 16


def output_path(output: str | None, default_folder: Path, file_name: str) -> Path:
    """The final path of the GGUF file.

    output: a file or a folder; None is `default_folder`.

    Raises UsageError for a file name that does not end in .gguf.
    """
    if output is None:
        return default_folder / file_name
    path = Path(output).expanduser()
    path = path if path.is_absolute() else Path.cwd() / path
    if path.is_dir() or output.endswith("/"):
        return path / file_name
    if path.suffix != ".gguf":
        raise UsageError(f"--output {output}: give a file name that ends in .gguf")
    return path


def temporary_path(path: Path, purpose: str) -> Path:
    """A hidden file next to the final one, named after this process."""
    return path.with_name(f".{path.name.lstrip('.')}.{purpose}-{os.getpid()}.tmp")


def prepare_folder(path: Path) -> None:
    """Create the folder of `path` and delete temporary files of exports that were killed.

    Raises GladiusError when the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            if not _in_use(leftover):
                leftover.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _in_use(temporary: Path) -> bool:
    """Whether another process that is still running writes this temporary file."""
    pid = temporary.name.removesuffix(".tmp").rpartition("-")[2]
    return pid.isdecimal() and int(pid) != os.getpid() and psutil.pid_exists(int(pid))


def require_disk_space(
    path: Path, weights: Weights, tokenizer: GgufTokenizer, file_type: GgufType
) -> None:
    """Raise GladiusError when the disk has no space for the file, before minutes of work.

    A type that llama.cpp quantizes needs space for a lossless file as well. Raises MissingError for
    such a type where llama.cpp is not installed.
    """
    if not file_type.own and not can_quantize():
        raise MissingError(quantizer_missing(file_type.name))
    first_type = file_type.name if file_type.own else lossless_type(weights.dtype)
    needed = estimated_file_bytes(weights, tokenizer, first_type)
    if not file_type.own:
        needed += round(needed * file_type.bits / _BITS_F16)
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise GladiusError(
            f"the file needs {needed / 2**20:,.0f} MiB, but {path.parent} has only "
            f"{free / 2**20:,.0f} MiB free; free some space, or choose another --output"
        )


def write_error(path: Path, error: OSError) -> GladiusError:
    """The error message for an OSError while the file was written."""
    if error.errno in _DISK_FULL:
        return GladiusError(
            f"the disk of {path.parent} is full; free some space, or choose another --output "
            "(a previous file is unchanged)"
        )
    return _cannot_write(path, error)


def _cannot_write(path: Path, error: OSError) -> GladiusError:
    return GladiusError(
        f"cannot write to {path.parent}: {error.strerror or error}; choose another --output"
    )


def fsync_file(path: Path) -> None:
    """Flush a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
