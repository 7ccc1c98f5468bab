"""Files that a run keeps in the experts' cache, compared with its seal: restored or made again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from engine.checkpoint.hashing import file_record
from engine.distill.jobs.sealing import Sealing
from engine.distill.teacher.target_store import TargetStore, manifest_of
from engine.small_files import Damaged, read_json
from engine.workspace import remove_entry, write_json


def restore_shards(sealing: Sealing, store: TargetStore) -> None:
    """Write the sealed manifest of the shards where the one on disk differs; the shards are hashed
    when they are opened."""
    known = sealing.sealed_value("shards", _name(sealing, store))
    if known is None:
        return
    path = store.folder / "manifest.json"
    try:
        present = read_json(path)
    except (OSError, Damaged):
        present = None
    if present != known:
        store.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, known)
        sealing.ctx.log(f"{path} was damaged and was restored from the seal", "warning")


def seal_shards(sealing: Sealing, store: TargetStore) -> None:
    """Compare complete shards with the seal, or add them to it."""
    what = f"the scored text in {store.folder}"
    sealing.compare("shards", _name(sealing, store), manifest_of(store), what)


def _name(sealing: Sealing, store: TargetStore) -> str:
    return store.folder.relative_to(sealing.workspace.experts_cache_dir).as_posix()


def is_as_sealed(sealing: Sealing, section: str, name: str, path: Path) -> bool:
    """Whether a small file is there and as sealed; a damaged one is moved aside."""
    if not path.is_file():
        return False
    known = sealing.sealed_value(section, name)
    if known is None or file_record(path) == known:
        return True
    set_aside(sealing, path)
    return False


def differs(sealing: Sealing, section: str, name: str, value: object) -> bool:
    """Whether the seal has another value than this one."""
    known = sealing.sealed_value(section, name)
    return known is not None and known != value


def set_aside(sealing: Sealing, path: Path) -> None:
    """Rename a damaged file, with a warning."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    if os.path.lexists(aside):
        remove_entry(aside)
    path.rename(aside)
    text = f"{path} is not as sealed: moved to {aside.name} and made again"
    sealing.ctx.log(text, "warning")
