"""Owns adding an expert to the root's gladius.toml, all else in it left as it stands."""

from __future__ import annotations

from engine.errors import UsageError
from engine.workspace import Workspace, write_bytes


def add_expert(ws: Workspace, name: str, repo: str) -> None:
    """Write `[experts.NAME] repo = ...`; UsageError when that is wrong; then the file
    is as it was.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    from engine.experts.registry import load_experts

    path = ws.user_config
    before = path.read_bytes() if path.exists() else None
    try:
        document = tomlkit.parse(before.decode() if before else "")
    except (TOMLKitError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}; mend it first") from error
    if name in load_experts(ws):
        raise UsageError(f"an expert {name!r} is there already; choose another name")
    experts = document.setdefault("experts", tomlkit.table(is_super_table=True))
    table = tomlkit.table()
    table["repo"] = repo
    experts[name] = table
    write_bytes(path, tomlkit.dumps(document).encode())
    try:
        load_experts(ws)
    except UsageError:
        if before is None:
            path.unlink(missing_ok=True)
        else:
            write_bytes(path, before)
        raise
