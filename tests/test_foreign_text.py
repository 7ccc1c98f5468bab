"""Text of others reaches terminals, logs and files only after `shown`."""

from __future__ import annotations

import ast
import io
import json

import pytest

from engine.events import decode_event, encode
from engine.foreign_text import shown, shown_values, without_controls
from engine.run.log import TextLog
from engine.workspace import Workspace
from gladius_tui.headless import Printer
from gladius_tui.terminal import print_lines
from tests.support.hostile_events import HOSTILE, hostile_events, is_clean
from tests.support.paths import REPO

EVENTS = list(hostile_events())


def test_what_a_terminal_obeys_becomes_an_escape_that_json_reads():
    assert shown("a\x1b[31mb") == "a\\u001b[31mb"
    assert shown("\u202e\U000e0001") == "\\u202e\\udb40\\udc01"
    assert shown("ÄÖ 日本\u3000語 🙂") == "ÄÖ 日本\u3000語 🙂"
    assert shown("abcdef", 4) == "abc…"
    for text in (HOSTILE.replace("\udcff", ""), "\U000e0001\x7f"):
        assert json.loads(f'"{shown(text)}"') == text
    assert without_controls("a\x1b[1m\u202eb") == "a[1mb"


def test_values_of_structs_are_escaped_at_any_depth_and_clean_ones_are_not_copied():
    clean = list(hostile_events("fine"))
    assert all(shown_values(event) is event for event in clean[1:])
    for event in EVENTS:
        assert is_clean(encode(shown_values(event)).decode().replace("\\u000d", ""))
        assert "\\u001b" in repr(shown_values(event)) or "\x1b" not in repr(event)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_no_event_reaches_the_terminal_unescaped(event, as_json):
    for encoding in ("utf-8", "ascii", "latin-1"):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding)
        printer = Printer(stream, as_json=as_json)
        printer(EVENTS[0])
        printer(event)
        stream.flush()
        text = raw.getvalue().decode(encoding)
        assert is_clean(text), text
        if as_json:
            lines = text.splitlines()
            assert [type(decode_event(line)) for line in lines[:1]] == [type(EVENTS[0])]


def test_colours_are_ours_alone():
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    printer = Printer(stream)
    for event in EVENTS:
        printer(event)
    text = stream.getvalue()
    assert "\x1b[2m" in text and "\x1b[31m" not in text.replace("\x1b[31mended", "")
    for code in ("0", "1", "2", "31", "32", "33", "36"):
        text = text.replace(f"\x1b[{code}m", "")
    assert is_clean(text)


def test_the_log_has_one_clean_line_for_each_event(tmp_path):
    ws = Workspace.find(tmp_path)
    ws.create()
    log = TextLog(ws, "train")
    for event in EVENTS:
        log.event(event)
    text = ws.log_file().read_text()
    assert text.count("\\u001b") > 10 and is_clean(text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp437"])
def test_a_stream_of_any_encoding_gets_every_line(encoding):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding)
    assert print_lines(["status ✓ ÄÖ", "\x1b[2J"], stream)
    text = raw.getvalue().decode(encoding)
    assert text.count("\n") == 2 and "status" in text and "\x1b" not in text


def test_events_with_names_that_are_not_utf_8_are_stored_and_sent():
    for event in EVENTS:
        assert type(decode_event(encode(event))) is type(event)


def test_no_widget_reads_foreign_text_as_markup():
    """Widgets that parse markup by default are made with markup=False; titles that are not written
    in the program are Content, which is not parsed."""
    wrong = []
    for path in (REPO / "gladius_tui" / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(REPO)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                plain = any(keyword.arg == "markup" for keyword in node.keywords)
                if name in ("Static", "Label", "OptionList", "notify") and not plain:
                    wrong.append(f"{where}: {name}() without markup=False")
                if name in ("from_markup", "render_str"):
                    wrong.append(f"{where}: {name}()")
            if isinstance(node, ast.Assign):
                target = node.targets[0]
                attribute = getattr(target, "attr", "")
                if attribute in ("border_title", "tooltip") and not _is_ours(node.value):
                    wrong.append(f"{where}: {attribute} is not Content(...)")
    assert not wrong, "\n".join(wrong)


def _is_ours(value: ast.expr) -> bool:
    """A constant, Content(...), or a name that holds one of both."""
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", "") == "Content"
    return isinstance(value, ast.Constant) or ast.unparse(value) in ("title", "spec.title")
