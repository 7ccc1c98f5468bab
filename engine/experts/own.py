"""Add the user's own experts to gladius.toml and remove them; everything else in the file is kept.

The job in `fetch` checks beforehand whether a candidate can be loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.errors import GladiusError, UsageError
from engine.experts.registry import (
    ExpertSpec,
    is_hub_id,
    load_experts,
    make_spec,
    shipped_names,
    with_source,
)
from engine.small_files import Damaged, read_text
from engine.structs import nearest, problems_text
from engine.workspace import Workspace, expert_dir, write_bytes


def candidate(
    workspace: Workspace,
    name: str,
    target: str,
    *,
    weight: float | None = None,
    capabilities: Sequence[str] = (),
    revision: str | None = None,
    title: str | None = None,
) -> tuple[ExpertSpec, dict[str, Any]]:
    """The expert that `models add` describes, and its table for gladius.toml.

    `target` is a path relative to the current folder if it exists or is written as one (./x, /x,
    ~/x, x.gguf), else a Hub id. Raises UsageError if it is neither, or the name is taken.
    """
    if name in load_experts(workspace):
        if name in shipped_names():
            raise UsageError(f"{name!r} is the name of a built-in expert; choose another name")
        raise UsageError(
            f"an expert named {name!r} exists already; choose another name, or remove it with: "
            f"gladius_train models remove {name}"
        )
    table: dict[str, Any] = {"repo": target}
    path = Path(target).expanduser()
    if target.startswith((".", "/", "~")) or target.endswith(".gguf") or path.exists():
        path = path.absolute()
        if not path.exists():
            raise UsageError(f"{path} doesn't exist; give a folder, a .gguf file or a Hub id")
        if path.is_file() and path.suffix != ".gguf":
            raise UsageError(f"{path} is neither a folder nor a .gguf file; give one of these")
        table["repo"] = _relative_to_root(workspace.root, path)
    elif not is_hub_id(target):
        raise UsageError(f"{target!r} is not a folder, a .gguf file or a Hub id (org/model)")
    else:
        table["source"] = "hub"  # else a folder of the same name would be used
    options = {"title": title, "revision": revision, "weight": weight}
    table |= {key: value for key, value in options.items() if value is not None}
    if capabilities:
        table["capabilities"] = list(dict.fromkeys(capabilities))
    spec, problems = make_spec(workspace, name, with_source(table, workspace.root))
    if problems or spec is None:
        raise UsageError(problems_text(problems, "models add"))
    return spec, table


def add_expert(workspace: Workspace, name: str, table: dict[str, Any]) -> None:
    """Write the expert's table to gladius.toml."""
    import tomlkit

    document = _read(workspace)
    entry = tomlkit.table()
    entry.update(table)
    entry.add(tomlkit.nl())
    if "experts" not in document:
        if len(document):
            document.add(tomlkit.nl())
        document["experts"] = tomlkit.table(is_super_table=True)
    document["experts"][name] = entry
    _write(workspace, document)


def remove_expert(workspace: Workspace, name: str) -> str:
    """Remove the expert's table from gladius.toml; returns a line that reports it.

    Raises UsageError for an unknown expert, or a built-in one that has no table.
    """
    document = _read(workspace)
    experts = document.get("experts", {})
    shipped = shipped_names()
    if name not in experts:
        if name in shipped:
            raise UsageError(
                f"{name} is a built-in expert and can't be removed; leave it out of a run with "
                f"--experts, delete its files with: rm -r {expert_dir(workspace, name)}"
            )
        raise UsageError(f"unknown expert {name!r}; {nearest(name, [*shipped, *experts])}")
    del experts[name]
    if not experts:
        del document["experts"]
    _write(workspace, document)
    if name in shipped:
        return f"{name} has its built-in settings again"
    folder = expert_dir(workspace, name)
    kept = f"; its files are kept in {folder}" if folder.is_dir() else ""
    return f"removed {name}{kept}"


def _relative_to_root(root: Path, path: Path) -> str:
    """The path relative to the root if it is below it, so that the root can be moved."""
    try:
        return "./" + path.resolve().relative_to(root).as_posix()
    except ValueError:
        return os.path.normpath(path)


def _read(workspace: Workspace) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = workspace.user_config
    if path.is_symlink():
        raise UsageError(f"{path} is a symbolic link; edit the file that it points to")
    try:
        return tomlkit.parse(read_text(path))
    except FileNotFoundError:
        return tomlkit.document()
    except Damaged as error:
        raise UsageError(f"{path}: {error.reason}") from error
    except (OSError, RecursionError, TOMLKitError) as error:
        raise UsageError(f"{path}: {error}") from error


def _write(workspace: Workspace, document: Any) -> None:
    import tomlkit

    try:
        workspace.root.mkdir(parents=True, exist_ok=True)
        text = tomlkit.dumps(document).rstrip()
        path = workspace.user_config
        mode = path.stat().st_mode & 0o777 if path.exists() else None
        write_bytes(path, f"{text}\n".encode() if text else b"")
        if mode is not None:
            path.chmod(mode)
    except OSError as error:
        raise GladiusError(
            f"{workspace.user_config} can't be written ({error.strerror}); choose another --root"
        ) from error
