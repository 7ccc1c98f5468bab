"""Install shell completion: write the script to where the user's shell looks for it."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from engine.errors import UsageError
from engine.workspace import write_bytes

_FILES = {
    "bash": ".local/share/bash-completion/completions/gladius_train",
    "zsh": ".zfunc/_gladius_train",
    "fish": ".config/fish/completions/gladius_train.fish",
}


def install_completion(app: click.Command) -> list[str]:
    """Write the script for the user's shell ($SHELL) and return the lines to print."""
    shell = Path(os.environ.get("SHELL", "")).name
    if shell not in _FILES:
        raise UsageError(
            f"no completion for the shell {shell!r} (from $SHELL); supported: {', '.join(_FILES)}"
        )
    completion = get_completion_class(shell)
    assert completion is not None
    script = completion(app, {}, "gladius_train", "_GLADIUS_TRAIN_COMPLETE").source()
    path = Path.home() / _FILES[shell]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, script.encode())
    lines = [f"wrote {path}; start a new shell to use it"]
    if shell == "zsh":
        lines.append("add to ~/.zshrc: fpath+=~/.zfunc; autoload -Uz compinit; compinit")
    return lines
