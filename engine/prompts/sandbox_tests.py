"""Tests of code, split in two: what the code must compute, and what is expected of it.

The code runs in the sandbox and returns values; the expected values never enter it, so that the
code can't know them, and the comparison is made here, where it can't change anything.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

_NAMES: dict[str, Any] = {
    function.__name__: function
    for function in (
        abs, all, any, bool, dict, enumerate, float, frozenset, int, isinstance, len, list, map,
        max, min, reversed, round, set, sorted, str, sum, tuple, zip,
    )
}  # fmt: skip
"""What a comparison may use. Nothing here reaches files, modules or attributes."""
_NODES = (
    ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.Name, ast.Load,
    ast.Store, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop,
    ast.BinOp, ast.Add, ast.Sub, ast.Div, ast.Call, ast.Subscript, ast.Slice, ast.IfExp,
    ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp, ast.comprehension,
)  # fmt: skip
_COMPREHENSIONS = (ast.ListComp, ast.GeneratorExp, ast.SetComp, ast.DictComp)


class UnsafeTest(ValueError):
    """A test that can't be split."""


class Failed(Exception):
    """A test that the code does not meet."""


@dataclass(frozen=True)
class SplitTest:
    """A test: what the sandbox does, and the comparisons of the values that it returns."""

    steps: tuple[tuple[Literal["exec", "eval"], str], ...]
    """Statements, and expressions whose values are returned."""
    comparisons: tuple[ast.Expression, ...]
    """Expressions over `_value_0`, `_value_1` ..."""
    text: str

    @property
    def values(self) -> int:
        """Number of values that the sandbox returns."""
        return sum(kind == "eval" for kind, _ in self.steps)

    def check(self, values: Sequence[object]) -> None:
        """Compare the values that the code returned; raises Failed."""
        names = _NAMES | {f"_value_{n}": value for n, value in enumerate(values)}
        for comparison in self.comparisons:
            try:
                code = compile(comparison, "test", "eval")
                right = eval(code, {"__builtins__": {}, **names})
            except Exception as error:
                raise Failed(f"{type(error).__name__}: {error}") from error
            if not right:
                raise Failed(f"AssertionError: {self.text}")


def split_test(text: str) -> SplitTest:
    """Split a test: assertions, and statements that prepare them.

    Raises UnsafeTest for a statement that compares, and for what a comparison may not use.
    """
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnsafeTest(f"{type(error).__name__}: {error}") from error
    steps: list[tuple[Literal["exec", "eval"], str]] = []
    comparisons: list[ast.Expression] = []
    count = 0
    for statement in body:
        if not isinstance(statement, ast.Assert):
            _refuse_comparisons(statement)
            steps.append(("exec", ast.unparse(statement)))
            continue
        splitter = _Splitter(count)
        expression = ast.fix_missing_locations(ast.Expression(splitter.visit(statement.test)))
        _check_comparison(expression)
        steps.extend(("eval", call) for call in splitter.calls)
        comparisons.append(expression)
        count += len(splitter.calls)
    return SplitTest(tuple(steps), tuple(comparisons), text)


def _refuse_comparisons(node: ast.AST) -> None:
    if any(isinstance(part, ast.Compare | ast.Assert) for part in ast.walk(node)):
        raise UnsafeTest("the code would be shown what is expected")


def _check_comparison(expression: ast.Expression) -> None:
    bound = {
        node.id
        for node in ast.walk(expression)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if taken := bound & _NAMES.keys():
        raise UnsafeTest(f"{', '.join(taken)}: a name of Python")
    for node in ast.walk(expression):
        if not isinstance(node, _NODES):
            raise UnsafeTest(f"a comparison can't use {type(node).__name__}")
        if isinstance(node, ast.Call) and not isinstance(node.func, ast.Name):
            raise UnsafeTest("a comparison can only call functions by their names")


class _Splitter(ast.NodeTransformer):
    """Replaces the largest expressions that depend on the code by names of their values."""

    def __init__(self, count: int) -> None:
        self.calls: list[str] = []
        self._count = count
        self._bound: list[set[str]] = [set()]

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, _COMPREHENSIONS):
            return self._comprehension(node)
        if isinstance(node, ast.expr) and self._is_of_code(node):
            _refuse_comparisons(node)
            self.calls.append(ast.unparse(node))
            return ast.Name(f"_value_{self._count + len(self.calls) - 1}", ast.Load())
        return self.generic_visit(node)

    def _comprehension(self, node: ast.AST) -> ast.AST:
        targets = {
            part.id
            for part in ast.walk(node)
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
        }
        self._bound.append(self._bound[-1] | targets)
        made = self.generic_visit(node)
        self._bound.pop()
        return made

    def _is_of_code(self, node: ast.expr) -> bool:
        """Whether it is a name of the code, or a call, attribute or item of one."""
        root: ast.expr = node
        while isinstance(root, ast.Call | ast.Attribute | ast.Subscript):
            root = root.func if isinstance(root, ast.Call) else root.value
        if not isinstance(root, ast.Name) or root.id in _NAMES or root.id in self._bound[-1]:
            return False
        used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        if used & self._bound[-1]:
            raise UnsafeTest("a call in a comprehension that depends on its variable")
        return True


_TYPES: dict[str, Any] = {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}


def decode_value(text: str) -> object:
    """A value that the sandbox reported; raises Failed for what is not plain data."""
    try:
        return _plain(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise Failed(f"it returned no plain value ({type(error).__name__})") from error


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dict":
        return {_plain(key): _plain(item) for key, item in content}
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes(content)
    if kind == "range":
        return range(*content)
    return _TYPES[kind]([_plain(item) for item in content])
