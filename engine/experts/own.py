"""Owns the user's own experts in gladius.toml: adding and removing them. What else stands there,
comments too, is left as it is. Whether a candidate can be an expert is found by `fetch`'s check.
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
from engine.structs import nearest, problems_text
from engine.workspace import Workspace, write_bytes


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
    """The expert that `models add` means, and the table that says it in gladius.toml.

    `target` is a path as seen from the current folder where something lies there or it is written
    as one (./x, /x, ~/x, x.gguf), else a Hub id. UsageError for what can be neither, and for a
    name that is taken.
    """
    if name in load_experts(workspace):
        if name in shipped_names():
            raise UsageError(f"an expert called {name!r} ships already; choose another name")
        raise UsageError(
            f"an expert called {name!r} is there already; choose another name, or remove it with: "
            f"gladius_train models remove {name}"
        )
    table: dict[str, Any] = {"repo": target}
    path = Path(target).expanduser()
    if target.startswith((".", "/", "~")) or target.endswith(".gguf") or path.exists():
        path = path.absolute()
        if not path.exists():
            raise UsageError(f"{path} doesn't exist; give a folder, a .gguf file or a Hub id")
        if path.is_file() and path.suffix != ".gguf":
            raise UsageError(f"{path} is no folder and no .gguf file; give one of these")
        table["repo"] = _seen_from(workspace.root, path)
    elif not is_hub_id(target):
        raise UsageError(f"{target!r} is no folder, no .gguf file and no Hub id (org/model)")
    else:
        table["source"] = "hub"  # a folder of the same name would be taken for it
    given = {"title": title, "revision": revision, "weight": weight}
    table |= {key: value for key, value in given.items() if value is not None}
    if capabilities:
        table["capabilities"] = list(dict.fromkeys(capabilities))
    spec, problems = make_spec(workspace, name, with_source(table, workspace.root))
    if problems or spec is None:
        raise UsageError(problems_text(problems, "models add"))
    return spec, table


def add_expert(workspace: Workspace, name: str, table: dict[str, Any]) -> None:
    """Write the expert's table into gladius.toml."""
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
    """Take the expert's table out of gladius.toml; returns a line on what is left of it.

    UsageError for an expert that only ships, or is none.
    """
    document = _read(workspace)
    experts = document.get("experts", {})
    shipped = shipped_names()
    if name not in experts:
        if name in shipped:
            raise UsageError(
                f"{name} ships with the program and stays; leave it out of a run with --experts, "
                f"its files go with: rm -r {workspace.expert_dir(name)}"
            )
        raise UsageError(f"no expert is called {name!r}; {nearest(name, [*shipped, *experts])}")
    del experts[name]
    if not experts:
        del document["experts"]
    _write(workspace, document)
    if name in shipped:
        return f"{name} is as it ships again"
    folder = workspace.expert_dir(name)
    kept = f"; its files stay in {folder}" if folder.is_dir() else ""
    return f"removed {name}{kept}"


def _seen_from(root: Path, path: Path) -> str:
    """The path relative to the root where it lies below it, so that the root can be moved."""
    try:
        return "./" + path.resolve().relative_to(root).as_posix()
    except ValueError:
        return os.path.normpath(path)


def _read(workspace: Workspace) -> Any:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    path = workspace.user_config
    if path.is_symlink():
        raise UsageError(f"{path} is a link; edit what it leads to by hand")
    try:
        return tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return tomlkit.document()
    except (OSError, UnicodeDecodeError, TOMLKitError) as error:
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
