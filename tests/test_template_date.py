"""A chat template that asks for the date gets the day on which the run began."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from engine import template_date
from engine.chat import render_chat
from engine.checkpoint.layout import RUN_DATE, is_of_run
from engine.distill.teacher.loading import load_tokenizer
from engine.text.examples import Message
from tests.support.tiny_expert import SPEC, make_expert, make_tokenizer

DATED = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}<|im_end|>"


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


def test_the_first_start_stores_the_date_and_a_resume_reads_it(tmp_path: Path):
    file = tmp_path / RUN_DATE
    began = template_date.use_date_of_run(file)
    assert abs((began - datetime.datetime.now()).total_seconds()) < 60
    file.write_text(json.dumps({"began": "2020-02-29T23:59:59"}))  # as if it began then
    before = file.read_bytes()
    template_date.use_date_of_run(file)
    assert rendered() == "29 Feb 2020: Hello<|im_end|>"
    assert file.read_bytes() == before
    assert is_of_run(RUN_DATE), "a new run sets it aside with the other files of the old one"


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"{}", b'{"began": "yesterday"}', b"[" * 10**5]
)
def test_a_damaged_date_is_replaced_by_the_present_one(tmp_path: Path, damage):
    file = tmp_path / RUN_DATE
    file.write_bytes(damage)
    template_date.use_date_of_run(file)
    assert rendered().startswith(datetime.datetime.now().strftime("%d %b %Y"))


def test_every_directive_and_a_template_by_name_get_the_date(tmp_path: Path):
    (tmp_path / RUN_DATE).write_text(json.dumps({"began": "2020-02-09T07:08:09"}))
    date = template_date.use_date_of_run(tmp_path / RUN_DATE)
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
    (tmp_path / RUN_DATE).write_text(json.dumps({"began": "2020-02-09T07:08:09"}))
    template_date.use_date_of_run(tmp_path / RUN_DATE)
    assert render_chat(load_tokenizer(tmp_path, SPEC), [Message("user", "x")])[:11] == "09 Feb 2020"
