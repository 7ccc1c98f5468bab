"""The import graph of the program: no cycle between files, and app and commands stay apart.

Imports inside functions and under TYPE_CHECKING count too. The contracts in pyproject.toml
(lint-imports) check the layers between rooms.
"""

from __future__ import annotations

import grimp
import pytest

PACKAGES = ("engine", "gladius_tui")


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def strongly_connected(imports: dict[str, set[str]]) -> list[list[str]]:
    """The groups of two or more modules that import each other (Tarjan's algorithm, iterative)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []
    for root in sorted(imports):
        work = [(root, iter(sorted(imports[root])))] if root not in index else []
        if work:
            index[root] = low[root] = len(index)
            stack.append(root)
        while work:
            module, rest = work[-1]
            for imported in rest:
                if imported not in index:
                    index[imported] = low[imported] = len(index)
                    stack.append(imported)
                    work.append((imported, iter(sorted(imports[imported]))))
                    break
                if imported in stack:
                    low[module] = min(low[module], index[imported])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[module])
                if low[module] == index[module]:
                    start = stack.index(module)
                    if len(stack) - start > 1:
                        groups.append(sorted(stack[start:]))
                    del stack[start:]
    return groups


def test_groups_of_modules_that_import_each_other_are_found():
    imports = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"a", "f"}, "f": {"e"}}
    assert strongly_connected(imports) == [["b", "c"], ["e", "f"]]


def test_no_files_import_each_other(graph):
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert strongly_connected(imports) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("gladius_tui.app", "gladius_tui.commands"),
        ("gladius_tui.commands", "gladius_tui.app"),
        ("gladius_tui.app", "gladius_tui.shell"),
        ("engine", "gladius_tui"),
    ],
)
def test_a_package_does_not_import_another(graph, importer, imported):
    forbidden = {imported, *graph.find_descendants(imported)}
    for module in (importer, *graph.find_descendants(importer)):
        assert not graph.find_modules_directly_imported_by(module) & forbidden, module


def test_the_app_does_not_import_commands_through_another_module(graph):
    assert not graph.chain_exists("gladius_tui.app", "gladius_tui.commands", as_packages=True)
