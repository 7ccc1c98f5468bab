"""What `clean` deletes: files that this program made, by the names that only it gives them.

Below `tmp/`, which is the program's, those are names of its own grammar. In `models/`, where users
keep files too, only what is recorded in `tmp/made.jsonl` is deleted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from engine.errors import GladiusError, UsageError
from engine.workspace import Workspace, append_line, tree_bytes

_PARTIAL = re.compile(
    r"\.probe-\d+"  # of Workspace.create and doctor
    r"|\.tmp-(?:step-\d+|best-\S*|\d+-\S+)"  # checkpoints, shards
    r"|\.\S+\.\d+-\d+\.tmp"  # of write_bytes
    r"|\S+\.tmp\d+"  # projection tables
    r"|\.(?:train|export|validate|data|audit|download)-tmp"  # checkpoints as model folders
)
_LOG = re.compile(
    r"training_\d{8}(?:\.\d+)?\.log|runner\.out|launch_[a-z-]+_\d{8}-\d{6}_[0-9a-f]{4}\.out"
)
_ALL = re.compile(r".*", re.DOTALL)
_HISTORY = re.compile(r"history\.sqlite(?:$|[-.].*)")

# By name: folders (Workspace properties), and what is deleted there.
_CLEANABLE: dict[str, tuple[tuple[str, ...], re.Pattern[str]]] = {
    "downloads": (("downloads_dir",), _ALL),
    "partials": (
        ("experts_dir", "experts_cache_dir", "checkpoints_dir", "models", "tmp"),
        _PARTIAL,
    ),
    "logs": (("logs_dir",), _LOG),
    "cache": (("cache_dir",), _ALL),
    "answers": (("experts_cache_dir",), _ALL),
    "history": (("logs_dir",), _HISTORY),
    "checkpoints": (("checkpoints_dir",), _ALL),
    "experts": (("experts_dir",), _ALL),
    "models": (("models",), _ALL),
}
CLEANABLE = tuple(_CLEANABLE)
CLEANED_BY_DEFAULT = ("downloads", "partials", "logs")
_UNFINISHED_MODEL = ".tmp-gladius_primary"
_SHALLOW = ("models", "tmp")
"""Folders of partials that are not searched below: there others keep files, or it is done."""


class _Made(msgspec.Struct, frozen=True):
    """A line of `made.jsonl`: a path below `models/` that this program has made or will make."""

    path: str
    """Relative to the root."""


def record_made(ws: Workspace, *paths: Path) -> None:
    """Record paths below `models/`, before they are made; others are not recorded. A disk that is
    full costs the record: `clean` then leaves the file."""
    known = set(recorded(ws))
    for path in paths:
        if path.is_relative_to(ws.models) and path != ws.models and path not in known:
            line = msgspec.json.encode(_Made(path.relative_to(ws.root).as_posix()))
            try:
                append_line(_record_file(ws), line)
            except OSError:
                return


def recorded(ws: Workspace) -> list[Path]:
    """The recorded paths; a line that can't be read counts for nothing."""
    try:
        lines = _record_file(ws).read_bytes().splitlines()
    except OSError:
        return []
    found: dict[Path, None] = {}
    for line in lines:
        try:
            made = msgspec.json.decode(line, type=_Made)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            continue
        path = Path(os.path.normpath(ws.root / made.path))
        if path.is_relative_to(ws.models) and path != ws.models:
            found[path] = None
    return list(found)


def _record_file(ws: Workspace) -> Path:
    return ws.tmp / "made.jsonl"


def clean_targets(
    ws: Workspace, names: Sequence[str] = CLEANED_BY_DEFAULT
) -> list[tuple[Path, int]]:
    """What cleaning `names` (of CLEANABLE) would delete: paths and their bytes.

    Nothing behind a link is deleted: folders that are links are skipped (see `linked_folders`).
    Raises UsageError when tmp/ itself is a link.
    """
    if ws.tmp.is_symlink():
        raise UsageError(
            f"{ws.tmp} is a link, and its target is not cleaned; clean it with: "
            f"--root {ws.tmp.resolve().parent}, or by hand"
        )
    skipped = set(linked_folders(ws, names))
    found: dict[Path, int] = {}
    for name in names:
        folders, pattern = _CLEANABLE[name]
        for attribute in folders:
            folder = getattr(ws, attribute)
            if folder in skipped:
                continue
            if attribute == "models":
                entries = _made_models(ws, partials=name == "partials")
            else:
                deep = name == "partials" and attribute not in _SHALLOW
                entries = _matching(folder, pattern, deep=deep)
            for entry in entries:
                if name == "experts" and not _is_downloaded(ws, entry):
                    continue
                if entry not in found and not any(parent in found for parent in entry.parents):
                    found[entry] = tree_bytes(entry)
    return list(found.items())


def _is_downloaded(ws: Workspace, folder: Path) -> bool:
    """Whether a folder below tmp/models/ is an expert's: it has the record of its download, or the
    name of an expert, whose download was cut."""
    from engine.experts.registry import MANIFEST, load_experts

    if folder.is_symlink() or (folder / MANIFEST).is_file():
        return True
    try:
        return folder.name in load_experts(ws)
    except GladiusError:
        return False


def linked_folders(ws: Workspace, names: Sequence[str] = CLEANED_BY_DEFAULT) -> list[Path]:
    """The folders of `names` that are links."""
    folders = (getattr(ws, folder) for name in names for folder in _CLEANABLE[name][0])
    return [folder for folder in dict.fromkeys(folders) if folder.is_symlink()]


def _made_models(ws: Workspace, *, partials: bool) -> Iterator[Path]:
    """What this program has made below `models/`, behind no link: temporary files, or the rest.

    Other files in the same folders stay.
    """
    paths = recorded(ws)
    if partials:
        paths.append(ws.models / _UNFINISHED_MODEL)
    else:
        paths += _files_of_model(ws.model_dir)
    for path in sorted(dict.fromkeys(paths)):
        is_partial = path.name.startswith(".")
        behind_link = any(p.is_symlink() for p in path.parents if p.is_relative_to(ws.models))
        if is_partial == partials and os.path.lexists(path) and not behind_link:
            if path.is_dir() and not path.is_symlink() and not partials:
                continue  # of a finished folder only the files that are recorded
            yield path


def _files_of_model(folder: Path) -> list[Path]:
    """The files that the record of a finished model names, the record itself, and its report."""
    record = folder / "gladius.json"
    try:
        files = msgspec.json.decode(record.read_bytes(), type=dict).get("files", {})
    except (OSError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return []
    names = [name for name in files if isinstance(name, str) and name == os.path.basename(name)]
    return [record, folder / "validation.json", *(folder / name for name in names)]


def _matching(folder: Path, pattern: re.Pattern[str], *, deep: bool) -> list[Path]:
    """Entries whose names match, in order; `deep`: also in subfolders. Links are not followed."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if name != ".gitkeep" and pattern.fullmatch(name):
                found.append(Path(parent, name))
        folders[:] = [f for f in folders if deep and Path(parent, f) not in found]
    return sorted(found)
