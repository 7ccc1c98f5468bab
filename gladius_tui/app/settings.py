"""The user's settings: the theme, and remapped keys.

They are stored in `settings.toml` in the user's config folder (XDG_CONFIG_HOME/gladius on Linux):

    theme = "textual-light"
    [keys]
    "dashboard.pause" = "space"
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from engine.small_files import Damaged, read_text, read_toml
from engine.workspace import write_bytes


@dataclass(frozen=True)
class Settings:
    """The settings that could be read; `error` says in one line why others could not."""

    theme: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    """Keys separated by commas, by binding id. docs/app.md lists the ids."""
    error: str = ""


def settings_file() -> Path:
    """Path of the settings file; nothing is created."""
    from platformdirs import user_config_path

    return user_config_path("gladius") / "settings.toml"


def load_settings() -> Settings:
    """Read the user's settings; never raises."""
    path = settings_file()
    try:
        table = read_toml(path)
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        return Settings(error=f"{path}: {error.strerror or error}")
    except Damaged as error:
        return Settings(error=f"{path}: {error.reason}")
    theme, keys = table.get("theme", ""), table.get("keys", {})
    if not isinstance(theme, str):
        return Settings(error=f'{path}: theme must be a name such as "textual-light"')
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        return Settings(theme=theme, error=f'{path}: keys must be strings such as "a,b"')
    return Settings(theme=theme, keys=keys)


def save_theme(name: str) -> None:
    """Write the theme to the settings file and keep everything else in it. Raises OSError."""
    import tomlkit

    path = settings_file()
    try:
        document = tomlkit.parse(read_text(path))
    except FileNotFoundError:
        document = tomlkit.document()
    except (ValueError, RecursionError, Damaged):
        return  # the file is not valid TOML, perhaps being edited: don't overwrite it
    if document.get("theme") == name:
        return
    document["theme"] = name
    os.makedirs(path.parent, exist_ok=True)
    write_bytes(path, tomlkit.dumps(document).encode())
