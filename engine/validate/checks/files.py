"""Check that the model's files are complete and unchanged since they were saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from engine.checkpoint.hashing import FileRecord, hash_file
from engine.checkpoint.model_record import RECORD
from engine.events import CheckDone
from engine.experts.gguf_source import GGUFExpert
from engine.validate.check import Check, one_line, one_per_line, structural_row
from engine.validate.context import CheckContext
from engine.validate.model_files import BadModelFolder, combined_weights_digest, weight_files

_NAME, _TITLE = "files", "file integrity"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def check_files(context: CheckContext) -> CheckDone:
    """All files exist and have the SHA-256 with which they were saved; sets weights_digest.

    For a GGUF file: its header can be read, and the file is as long as its tensors need.
    """
    if context.gguf is not None:
        return _check_gguf_file(context, context.gguf)
    needed, findings = _needed_files(context.folder)
    saved = context.record.files if context.record is not None else {}
    if context.record is None and (context.folder / RECORD).exists():
        findings.append(f"{RECORD} cannot be read")
    digests: dict[str, str] = {}
    total_bytes = 0
    for name in dict.fromkeys([*(path.name for path in needed), *saved]):
        path = context.folder / Path(name).name
        if not path.is_file():
            if name in saved and path not in needed:
                findings.append(f"{name} is missing")
            continue
        total_bytes += path.stat().st_size
        digests[name] = _digest(context, path)
        findings += _compare(path, saved.get(name), digests[name])
    context.weights_digest = combined_weights_digest(context.folder, digests)
    # The weights of a checkpoint were verified against its manifest when it was opened.
    unverified = context.source.finished and not saved and not findings
    value = f"{len(digests)} files, {total_bytes / 2**20:.1f} MiB"
    if findings:
        value = findings[0] + (f", and {len(findings) - 1} more" if findings[1:] else "")
    elif unverified:
        value += ", not verified"
    return structural_row(
        _NAME,
        _TITLE,
        passed=not findings and not unverified,
        value=value,
        meaning=f"Without {RECORD} a changed file is not noticed."
        if unverified
        else "Every file exists and is byte for byte what was saved.",
        bound=_bound(verified=bool(saved), finished=context.source.finished),
        detail=one_per_line(findings) if len(findings) > 1 else "",
        warn_only=unverified,
    )


def _needed_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that every model has, and what is wrong with them."""
    findings: list[str] = []
    weights: Iterable[Path] = ()
    try:
        weights = weight_files(folder)
    except BadModelFolder as error:
        findings.append(str(error))
    needed = [folder / "config.json", *(folder / name for name in _TOKENIZER), *weights]
    findings += [f"{path.name} is missing" for path in needed if not path.is_file()]
    return needed, findings


def _digest(context: CheckContext, path: Path) -> str:
    return hash_file(path, lambda: context.heartbeat(f"reading {path.name}"))


def _compare(path: Path, saved: FileRecord | None, digest: str) -> list[str]:
    """Differences from the record of the file; none for a file without a record."""
    size = path.stat().st_size
    if saved is not None and size != saved.bytes:
        return [f"{path.name} has {size:,} bytes instead of {saved.bytes:,}"]
    if saved is not None and digest != saved.sha256:
        return [f"{path.name} has changed since it was saved (its SHA-256 differs)"]
    return []


def _bound(*, verified: bool, finished: bool) -> str:
    if not finished:
        return "SHA-256 as in the checkpoint's manifest"
    return f"SHA-256 as in {RECORD}" if verified else "config, tokenizer and weights exist"


def _check_gguf_file(context: CheckContext, path: Path) -> CheckDone:
    context.weights_digest = _digest(context, path)
    try:
        GGUFExpert(path).config()
        value = f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB"
    except Exception as error:  # a damaged file can make the reader raise anything
        context.readable = False
        value = one_line(error)
    return structural_row(
        _NAME,
        _TITLE,
        passed=context.readable,
        value=value,
        meaning="The header can be read, and the file is as long as its tensors need.",
        bound="header, metadata, length",
    )


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_files, needs="nothing")
