"""docs/app.md lists the keys that the app has."""

from __future__ import annotations

from tools.make_app_docs import FILE, with_tables


def test_the_tables_of_keys_are_those_of_the_bindings():
    text = FILE.read_text(encoding="utf-8")
    assert with_tables(text) == text, "run: python tools/make_app_docs.py"
    assert text.count("<!-- keys:") == text.count("<!-- end of keys -->") == 10
