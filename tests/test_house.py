"""Rules of the code base: module docstrings, plain words, and limits on size."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import REPO

MAX_METHODS = 15
MAX_CLASS_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_POSITIONAL = 8
MAX_TRAIN_STEP_LINES = 50

CODE = ("engine", "gladius_tui", "tests", "tools", "benchmarks")
LIMITED = ("engine", "gladius_tui")
"""Where the limits on size hold."""

OLD_WORDS = ("owns", "heard", "told", "anew", "whereof")
# Words within an identifier count too: `_` is not a letter.
_OLD_WORD = re.compile(rf"(?<![A-Za-z])({'|'.join(OLD_WORDS)})(?![A-Za-z])", re.IGNORECASE)
ALLOWED = {
    ("engine/prompts/variants/writing.py", "heard"),  # part of a prompt that has a digest
    ("CHANGELOG.md", "heard"),  # the former name of a key
}
"""Old words that must stay: (path, word)."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def modules(*folders: str) -> Iterator[tuple[str, str]]:
    """The path (relative to the repository) and source of every module below the folders."""
    for folder in folders:
        for path in sorted((REPO / folder).rglob("*.py")):
            yield str(path.relative_to(REPO)), path.read_text(encoding="utf-8")


def definitions(*kinds: type[ast.AST]) -> Iterator[tuple[str, Definition]]:
    """Each definition of these kinds in the limited folders, with its name as path:line name."""
    for path, source in modules(*LIMITED):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, kinds) and isinstance(node, Definition):
                yield f"{path}:{node.lineno} {node.name}", node


def line_count(node: Definition) -> int:
    """Lines from `def` or `class` to the end, docstring included, decorators not."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_every_module_says_what_it_does():
    missing, personified = [], []
    for path, source in modules(*CODE):
        if path.endswith("__init__.py") and not source.strip():
            continue
        docstring = ast.get_docstring(ast.parse(source))
        if not docstring:
            missing.append(path)
        elif docstring.startswith("Owns"):
            personified.append(path)
    assert missing == [], "modules without a docstring"
    assert personified == [], "module docstrings that do not say what the module does"


def text_files() -> Iterator[Path]:
    """Code, documents and commented data files."""
    for folder in CODE:
        yield from sorted((REPO / folder).rglob("*.py"))
        yield from sorted((REPO / folder).rglob("*.md"))
    yield from sorted((REPO / "gladius_tui").rglob("*.tcss"))
    yield from sorted((REPO / "assets").rglob("*.toml"))
    yield from sorted((REPO / "docs").rglob("*.md"))
    yield from sorted(REPO.glob("*.md"))
    yield from (REPO / "Makefile", REPO / "pyproject.toml")


def test_words_of_the_old_dialect_are_gone():
    found, used = [], set()
    for path in text_files():
        if path == Path(__file__):
            continue
        name = str(path.relative_to(REPO))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for match in _OLD_WORD.finditer(line):
                if (name, match[1].lower()) in ALLOWED:
                    used.add((name, match[1].lower()))
                else:
                    found.append(f"{name}:{number}: {match[1]}")
    assert found == []
    assert used == ALLOWED, "the allow-list names words that are no longer used"


def test_classes_are_small():
    many_methods, long = [], []
    for name, node in definitions(ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        if len(methods) > MAX_METHODS:
            many_methods.append(f"{name}: {len(methods)} methods")
        if line_count(node) > MAX_CLASS_LINES:
            long.append(f"{name}: {line_count(node)} lines")
    assert many_methods == []
    assert long == []


def test_functions_are_short():
    long = [
        f"{name}: {line_count(node)} lines"
        for name, node in definitions(ast.FunctionDef, ast.AsyncFunctionDef)
        if line_count(node) > MAX_FUNCTION_LINES
    ]
    assert long == []


def test_calls_name_their_arguments():
    many, splatted = [], []
    for path, source in modules(*LIMITED):
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            if len(node.args) > MAX_POSITIONAL:
                many.append(f"{path}:{node.lineno}: {len(node.args)} positional arguments")
            if any(
                isinstance(a, ast.Starred) and isinstance(a.value, ast.Tuple) for a in node.args
            ):
                splatted.append(f"{path}:{node.lineno}: a splatted tuple")
    assert many == []
    assert splatted == []


def test_the_training_step_fits_on_a_screen():
    source = (REPO / "engine/distill/train/trainer.py").read_text(encoding="utf-8")
    steps = [
        node
        for cls in ast.parse(source).body
        if isinstance(cls, ast.ClassDef) and cls.name == "Trainer"
        for node in cls.body
        if isinstance(node, ast.FunctionDef) and node.name == "train_step"
    ]
    assert len(steps) == 1, "Trainer.train_step is missing"
    assert line_count(steps[0]) <= MAX_TRAIN_STEP_LINES
