"""Write the tables of keys in docs/app.md, from the bindings of the app: `python
tools/make_app_docs.py`. A test compares the file with what this would write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from textual.binding import Binding
from textual.keys import format_key

FILE = Path(__file__).resolve().parent.parent / "docs" / "app.md"
_MARKER = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_CLASSES = {
    "everywhere": ("gladius_tui.app.keys", "KeysApp"),
    "pane": ("gladius_tui.app.widgets.pane", "Pane"),
    "table": ("gladius_tui.app.widgets.table", "Table"),
    "lens": ("gladius_tui.app.dialogs.lens", "Lens"),
    **{
        name: (f"gladius_tui.app.screens.{name}", f"{name.title()}Screen")
        for name in ("models", "download", "train", "dashboard", "export", "validate")
    },
}
"""Module and class of each table's bindings, by the name in its marker."""


def bindings_of(name: str) -> Iterator[Binding]:
    """The bindings of a table that are the program's own: they have an id. Those of subclasses
    come first, and replace those of their bases."""
    module, cls = _CLASSES[name]
    seen: set[str] = set()
    for base in getattr(import_module(module), cls).__mro__:
        for binding in vars(base).get("BINDINGS", ()):
            if isinstance(binding, Binding) and binding.id and binding.tooltip:
                if binding.key not in seen:
                    yield binding
                seen.add(binding.key)


def key_table(name: str) -> str:
    """The bindings as a Markdown table: keys, what they do, id."""
    lines = ["| key | what it does | id |", "| --- | --- | --- |"]
    for binding in bindings_of(name):
        keys = " ".join(f"`{_shown(key)}`" for key in binding.key.split(","))
        lines.append(f"| {keys} | {binding.tooltip.replace('|', chr(92) + '|')} | `{binding.id}` |")
    return "\n".join(lines)


def _shown(key: str) -> str:
    *modifiers, last = key.split("+")
    return "+".join([*modifiers, format_key(last)])


def with_tables(text: str) -> str:
    """The document with all its tables up to date."""
    return _MARKER.sub(lambda found: f"{found[1]}{key_table(found[2])}\n{found[3]}", text)


if __name__ == "__main__":
    FILE.write_text(with_tables(FILE.read_text(encoding="utf-8")), encoding="utf-8")
