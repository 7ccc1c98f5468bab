"""The date that chat templates write: the day on which the run began, also after a resume.

Some templates (Llama 3.2) put the current date into every prompt. One process does one job, so the
date is a setting of the process. The seal of the run keeps it.
"""

from __future__ import annotations

import copy
import datetime
import json
from typing import Any, TypeVar

_DIRECTIVES = [f"%{char}" for char in "aAbBcdeFHIjmMpSTuUVwWxXyYD"] + ["%-d", "%-m", "%-H", "%-I"]
_BEGIN = "{%- set gladius_date = "
_MACRO = (
    " -%}{%- macro strftime_now(format) -%}{%- set date = namespace(text=format) -%}"
    "{%- for code, value in gladius_date.items() -%}"
    "{%- set date.text = date.text.replace(code, value) -%}{%- endfor -%}"
    "{{- date.text -}}{%- endmacro -%}"
)

_Tokenizer = TypeVar("_Tokenizer", bound=Any)


class _Setting:
    """The date of this process; None: now."""

    date: datetime.datetime | None = None


def use_date_of_run(began: float) -> datetime.datetime:
    """From now on templates write this date (UTC).

    began: Unix time at which the run began.
    """
    _Setting.date = datetime.datetime.fromtimestamp(began, datetime.UTC)
    return _Setting.date


def use_present_date() -> None:
    """From now on templates write the present date."""
    _Setting.date = None


def dated(template: str) -> str:
    """The template with the date of the run in place of `strftime_now`, where it calls that.

    transformers gives templates the present time and passes no function of ours to them: the
    directives of strftime are written in front of the template, with their values.
    """
    if "strftime_now" not in template or template.startswith(_BEGIN):
        return template
    date = _Setting.date or datetime.datetime.now()
    values = {code: date.strftime(code) for code in _DIRECTIVES}
    return f"{_BEGIN}{json.dumps(values)}{_MACRO}{template}"


def undated(template: Any) -> Any:
    """A tokenizer's template, or its templates by name, as before `dated`."""
    if isinstance(template, dict):
        return {name: undated(text) for name, text in template.items()}
    if not isinstance(template, str) or not template.startswith(_BEGIN):
        return template
    return template.partition(_MACRO)[2]


def with_date(tokenizer: _Tokenizer) -> _Tokenizer:
    """The tokenizer, or a copy of it with dated templates where one asks for the date."""
    found = tokenizer.chat_template
    if "strftime_now" not in str(found):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    if isinstance(found, dict):
        tokenizer.chat_template = {name: dated(text) for name, text in found.items()}
    else:
        tokenizer.chat_template = dated(found)
    return tokenizer
