"""Owns what the app remembers of its user: the theme, and keys of their own choice.

They stand in `settings.toml` in the user's config folder (XDG_CONFIG_HOME/gladius on Linux):

    theme = "textual-light"
    [keys]
    "dashboard.pause" = "space"
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from engine.workspace import write_bytes


@dataclass(frozen=True)
class Settings:
    """What was read; `trouble` says in a line why not all of it could be."""

    theme: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    """By binding id: keys separated by commas. The ids stand in the help of each screen."""
    trouble: str = ""


def settings_file() -> Path:
    """Where they lie; nothing is created."""
    from platformdirs import user_config_path

    return user_config_path("gladius") / "settings.toml"


def load_settings() -> Settings:
    """The user's settings; never fails."""
    path = settings_file()
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (OSError, ValueError) as error:
        return Settings(trouble=f"{path}: {error}")
    theme, keys = table.get("theme", ""), table.get("keys", {})
    if not isinstance(theme, str):
        return Settings(trouble=f'{path}: theme must be a name, such as "textual-light"')
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        return Settings(theme=theme, trouble=f'{path}: keys must be texts, such as "a,b"')
    return Settings(theme=theme, keys=keys)


def remember_theme(name: str) -> None:
    """Write the theme into the settings; all else in the file stays as it is. OSError when not."""
    import tomlkit

    path = settings_file()
    try:
        document = tomlkit.parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        document = tomlkit.document()
    except ValueError:
        return  # the user is at work on it: not ours to write over
    if document.get("theme") == name:
        return
    document["theme"] = name
    os.makedirs(path.parent, exist_ok=True)
    write_bytes(path, tomlkit.dumps(document).encode())
