"""A chat template that asks for the date gets the day on which the run began."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from engine import template_date
from engine.chat import render_chat
from engine.distill.teacher.loading import load_tokenizer
from engine.text.examples import Message
from tests.support.tiny_expert import SPEC, make_expert, make_tokenizer

DATED = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}<|im_end|>"
FEBRUARY = datetime.datetime(2020, 2, 9, 7, 8, 9, tzinfo=datetime.UTC).timestamp()


@pytest.fixture(autouse=True)
def present_date():
    yield
    template_date.use_present_date()


def rendered() -> str:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = DATED
    dated = template_date.with_date(tokenizer)
    assert tokenizer.chat_template == DATED == template_date.undated(str(dated.chat_template))
    assert template_date.with_date(dated).chat_template == dated.chat_template
    return render_chat(dated, [Message("user", "Hello")])


def test_the_present_date_is_written_where_no_run_set_one():
    assert rendered().startswith(datetime.datetime.now().strftime("%d %b %Y"))


def test_the_date_of_the_run_is_written_where_it_is_set():
    template_date.use_date_of_run(FEBRUARY)
    assert rendered() == "09 Feb 2020: Hello<|im_end|>"


def test_every_directive_and_a_template_by_name_get_the_date():
    date = template_date.use_date_of_run(FEBRUARY)
    tokenizer = make_tokenizer()
    form = "%a %A %b %B %d %-d %e %F %H:%M:%S %I %p %j %m %-m %y %Y"
    tokenizer.chat_template = {  # type: ignore[assignment]
        "default": "{% set f = '" + form + "' %}{{ strftime_now(f) }}|{{ strftime_now('%Y') }}"
    }
    dated = template_date.with_date(tokenizer)
    assert render_chat(dated, [Message("user", "x")]) == f"{date.strftime(form)}|2020"


def test_a_template_without_a_date_is_the_same_object():
    tokenizer = make_tokenizer()
    assert template_date.with_date(tokenizer) is tokenizer


def test_an_expert_is_loaded_with_the_date_of_the_run(tmp_path: Path):
    make_expert(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(DATED)
    template_date.use_date_of_run(FEBRUARY)
    assert render_chat(load_tokenizer(tmp_path, SPEC), [Message("user", "x")])[:11] == "09 Feb 2020"
