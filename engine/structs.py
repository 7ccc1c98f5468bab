"""Convert plain data (TOML, command options) to msgspec structs and report every problem at once.

msgspec stops at the first error. Here each field is converted separately, and a problem names the
field (dotted), its value and the values that are allowed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec
from msgspec import inspect as mi

T = TypeVar("T", bound=msgspec.Struct)


class Problem(msgspec.Struct, frozen=True):
    """An invalid field."""

    name: str
    """Dotted name of the field."""
    text: str
    """The problem, and the values that are allowed."""

    def __str__(self) -> str:
        return f"{self.name}: {self.text}" if self.name else self.text


def problems_text(problems: list[Problem], source: str) -> str:
    """The problems as one message: a single line, or their number and one line for each."""
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    return "\n".join([f"{source}: {len(problems)} problems", *(f"  {p}" for p in problems)])


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest known word, else `known: a, b`."""
    import difflib  # needed only for error messages

    names = list(known)
    match = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {match[0]!r}?" if match else f"known: {', '.join(names)}"


def convert(struct: type[T], data: Any, prefix: str = "") -> tuple[T | None, list[Problem]]:
    """A struct from plain data, nested structs included, and every problem found.

    An invalid field keeps its default, so that checks across fields can still run on the others.
    The struct is None if a required field is missing or invalid.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    fields, types = _fields(struct)
    if not isinstance(data, dict):
        problems.append(Problem(prefix, f"{data!r} is not a table"))
        data = {}
    for key, value in data.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        field = fields.get(key)
        if field is None:
            problems.append(Problem(name, f"unknown field; {nearest(str(key), fields)}"))
        elif isinstance(field.type, mi.StructType):
            values[key], found = convert(field.type.cls, value, name)
            problems += found
        else:
            try:
                values[key] = _convert_leaf(types[key], field.type, value)
            except (msgspec.ValidationError, ValueError):
                problems.append(Problem(name, f"{_show(value)} is not {describe(field.type)}"))
    unset = [key for key, field in fields.items() if field.required and key not in values]
    for key in unset:
        if key not in data:
            name = f"{prefix}.{key}" if prefix else key
            problems.append(Problem(name, f"missing; expected {describe(fields[key].type)}"))
    return (None if unset else struct(**values)), problems


@functools.cache
def _fields(struct: type[msgspec.Struct]) -> tuple[dict[str, mi.Field], dict[str, Any]]:
    """The struct's fields as msgspec describes them, and their annotations, by name."""
    info = mi.type_info(struct)
    assert isinstance(info, mi.StructType)
    fields = {field.encode_name: field for field in info.fields}
    return fields, {field.encode_name: field.type for field in msgspec.structs.fields(struct)}


def _convert_leaf(annotation: Any, info: mi.Type, value: Any) -> Any:
    kinds = _kinds(info)
    # TOML has no null: the text "none" means None if the field may be None.
    if value == "none" and any(isinstance(kind, mi.NoneType) for kind in kinds):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not finite")
        whole = any(isinstance(kind, mi.IntType) for kind in kinds)
        if whole and value.is_integer() and not any(isinstance(k, mi.FloatType) for k in kinds):
            value = int(value)  # users write token counts as 2e9
    return msgspec.convert(value, annotation)


def _kinds(info: mi.Type) -> list[mi.Type]:
    """The members of a union, without their metadata; a single type for any other."""
    if isinstance(info, mi.Metadata):
        return _kinds(info.type)
    if isinstance(info, mi.UnionType):
        return [kind for part in info.types for kind in _kinds(part)]
    return [info]


def describe(info: mi.Type) -> str:
    """The values that a field may have, in words: `a whole number at least 1 or none`."""
    return " or ".join(_describe_kind(kind) for kind in _kinds(info))


def _describe_kind(kind: mi.Type) -> str:
    match kind:
        case mi.BoolType():
            return "true or false"
        case mi.IntType() | mi.FloatType():
            text = "a whole number" if isinstance(kind, mi.IntType) else "a number"
            bounds = (
                ("over", kind.gt),
                ("at least", kind.ge),
                ("under", kind.lt),
                ("at most", kind.le),
            )
            limits = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
            return f"{text} {' and '.join(limits)}" if limits else text
        case mi.LiteralType():
            return f"one of {', '.join(str(value) for value in kind.values)}"
        case mi.StrType():
            return "text"
        case mi.NoneType():
            return "none"
        case mi.ListType() | mi.VarTupleType():
            least = f" with at least {kind.min_length} entry" if kind.min_length else ""
            return f"a list{least}, each {describe(kind.item_type)}"
        case mi.DictType():
            return f"a table of names, each with {describe(kind.value_type)}"
        case _:
            return "a table"


def _show(value: Any) -> str:
    text = "true" if value is True else "false" if value is False else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_mutable(info: mi.Type) -> bool:
    """Whether the field's Meta has `extra={"mutable": True}` (in any member of a union)."""
    if isinstance(info, mi.Metadata):
        return bool((info.extra or {}).get("mutable")) or is_mutable(info.type)
    if isinstance(info, mi.UnionType):
        return any(is_mutable(part) for part in info.types)
    return False


def leaves(value: msgspec.Struct, prefix: str = "") -> dict[str, tuple[Any, bool]]:
    """Every leaf field of a struct by dotted name: (its value, whether it is mutable)."""
    found: dict[str, tuple[Any, bool]] = {}
    for field in _fields(type(value))[0].values():
        name = f"{prefix}{field.encode_name}"
        leaf = getattr(value, field.name)
        if isinstance(leaf, msgspec.Struct):
            found |= leaves(leaf, f"{name}.")
        else:
            found[name] = (leaf, is_mutable(field.type))
    return found
