"""The entry point: parse global options anywhere on the command line and report errors."""

from __future__ import annotations

import io
import sys

import click

import gladius_tui.commands  # noqa: F401  (registers every command)
from engine.errors import ExitCode, GladiusError, UsageError
from engine.foreign_text import LINES, UNENCODABLE, shown
from engine.workspace import Workspace
from gladius_tui.shell import app, print_stderr

_FLAGS = frozenset({"--no-ui", "--json", "--quiet", "-q", "--version", "--debug"})


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code. An error is one line on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for what click prints itself, such as help
            stream.reconfigure(errors=UNENCODABLE)
    global_options, command_words = _split_options(sys.argv[1:] if arguments is None else arguments)
    arguments = [*global_options, *command_words]
    debug = "--debug" in arguments
    try:
        _check_encoding(command_words)
        result = app(
            args=arguments,
            obj=tuple(command_words),
            prog_name="gladius_train",
            standalone_mode=False,
        )
        return result or 0
    except click.exceptions.NoArgsIsHelpError as error:
        print_stderr(error.format_message())  # a command group without a command: its help
        return ExitCode.USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "gladius_train"
        message = " ".join(error.format_message().split()).rstrip(".")
        print_stderr(f"error: {message}; see: {path} --help")
        return ExitCode.USAGE
    except GladiusError as error:
        if debug:
            _print_traceback()
        print_stderr(f"error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        print_stderr("interrupted")
        return ExitCode.SIGINT
    except Exception as error:
        if debug:
            _print_traceback()
        _log_traceback(arguments)
        summary = " ".join(f"{type(error).__name__}: {error}".split())
        print_stderr(f"error: {summary}; this is a bug: see the log, or run again with --debug")
        return ExitCode.FAILED


def _check_encoding(words: list[str]) -> None:
    """Refuse arguments that aren't text: names are stored as UTF-8 in configs and histories."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(
                f"the argument {shown(word)} is not UTF-8; rename what it names"
            ) from None


def _split_options(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Split into the global options, wherever they are, and the command with its own options."""
    global_options: list[str] = []
    command_words: list[str] = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--":
            command_words += [word, *queue]
            break
        if word in _FLAGS:
            global_options.append(word)
        elif word.startswith("--root="):
            global_options += word.split("=", 1)
        elif word == "--root":
            global_options += [word, *queue[:1]]
            del queue[:1]
        else:
            command_words.append(word)
    return global_options, command_words


def _print_traceback() -> None:
    import traceback

    print_stderr(traceback.format_exc())


def _log_traceback(arguments: list[str]) -> None:
    """Append the current exception to today's log, if the root has a folder for it."""
    import traceback

    index = arguments.index("--root") + 1 if "--root" in arguments else 0
    try:
        log = Workspace.find(arguments[index] if index else None).log_file()
        with open(log, "a", encoding="utf-8") as file:
            text = f"gladius_train {' '.join(arguments)}\n{traceback.format_exc()}"
            file.write(shown(text, keep=LINES))
    except (OSError, GladiusError):
        pass  # no root yet, or no disk space: the line on standard error must do


if __name__ == "__main__":
    sys.exit(main())
