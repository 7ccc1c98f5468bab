"""Owns the entry point: where options may stand, and how errors leave the program."""

from __future__ import annotations

import sys

import click

import gladius_tui.commands  # noqa: F401  (registers every command)
from engine.errors import ExitCode, GladiusError
from engine.workspace import Workspace
from gladius_tui.shell import app, narrate

_FLAGS = frozenset({"--no-ui", "--json", "--quiet", "-q", "--version", "--debug"})


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def _log_traceback(arguments: list[str]) -> None:
    """Append the current exception to today's log, where there is a folder for it."""
    import traceback

    place = arguments.index("--root") + 1 if "--root" in arguments else 0
    try:
        log = Workspace.find(arguments[place] if place else None).log_file()
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"gladius_train {' '.join(arguments)}\n{traceback.format_exc()}")
    except (OSError, GladiusError):
        pass  # there is no root yet, or no room: the line on standard error must do


def _globals_first(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The global options, wherever they stood, and all else: the command with its own."""
    first: list[str] = []
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            rest += [word, *queue]
            break
        if word in _FLAGS:
            first.append(word)
        elif word.startswith("--root="):
            first += word.split("=", 1)
        elif word == "--root":
            first += [word, *queue[:1]]
            del queue[:1]
        else:
            rest.append(word)
    return first, rest


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line on standard error."""
    first, rest = _globals_first(sys.argv[1:] if arguments is None else arguments)
    arguments = [*first, *rest]
    debug = "--debug" in arguments
    try:
        name = "gladius_train"
        return app(args=arguments, obj=tuple(rest), prog_name=name, standalone_mode=False) or 0
    except click.exceptions.NoArgsIsHelpError as error:
        narrate(error.format_message())  # a group of commands without one: its help, whole
        return ExitCode.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "gladius_train"
        message = " ".join(error.format_message().split()).rstrip(".")
        narrate(f"error: {message}; see: {path} --help")
        return ExitCode.USAGE
    except GladiusError as error:
        if debug:
            _print_traceback()
        narrate(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        narrate("interrupted")
        return ExitCode.SIGINT
    except Exception as error:
        if debug:
            _print_traceback()
        _log_traceback(arguments)
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        narrate(f"error: {summary}; a fault of the program: see the log, or run it with --debug")
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
