"""README and docs agree with the program."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import REPO
from tools.hardware_table import DOCUMENT, written

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def test_the_hardware_tables_are_up_to_date():
    """`python tools/hardware_table.py --write` updates them."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert written(text) == text


def _variables(source: str) -> set[str]:
    """Names of the variables that a module reads: literals, and constants named *_VARIABLE."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(
                func=ast.Attribute(attr="get", value=value), args=[ast.Constant(name), *_]
            ):
                if ast.unparse(value).endswith("environ"):
                    found.add(name)
            case ast.Subscript(value=value, slice=ast.Constant(name)):
                if ast.unparse(value).endswith("environ"):
                    found.add(name)
            case ast.Assign(targets=[ast.Name(id=constant)], value=ast.Constant(name)):
                if constant.endswith("_VARIABLE"):
                    found.add(name)
    return found


def test_every_environment_variable_that_the_program_reads_is_documented():
    table = (REPO / "docs" / "environment.md").read_text(encoding="utf-8")
    read = set()
    for folder in ("engine", "gladius_tui"):
        for path in (REPO / folder).rglob("*.py"):
            read |= _variables(path.read_text(encoding="utf-8"))
    assert len(read) > 8
    assert {name for name in read if f"`{name}" not in table} == set()
    own = set(re.findall(r"`(GLADIUS_[A-Z_]+)`", table))
    assert own - read == set(), "the table names variables that nothing reads"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path):
    import click

    import gladius_tui.commands  # noqa: F401
    from gladius_tui.cli import _FLAGS
    from gladius_tui.shell import app

    text = page.read_text(encoding="utf-8")
    for line in re.findall(r"(?:\./|%h/gladius/)gladius_train ([^\n`#>&|]*)", text):
        words = [word.strip("()") for word in line.split()]
        names = [word for word in words if re.fullmatch(r"[a-z]+", word)]
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        if not names:
            continue
        command = app.commands.get(names[0])
        assert command is not None, line
        known = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
        groups = getattr(command, "commands", {})
        for inner in groups.values():
            known |= {name for p in inner.params if isinstance(p, click.Option) for name in p.opts}
        assert options <= known | _FLAGS | {"--help", "--root", "--install-completion"}, line
