"""Verdicts on answers, for every kind of check."""

from __future__ import annotations

import json

import pytest

from engine.prompts.checkers import REASONS, is_looping, judge
from engine.prompts.prompt import (
    AnyCheck,
    CodeCheck,
    FormatCheck,
    JsonCheck,
    MentionCheck,
    NumberCheck,
    RefusalCheck,
    ToolCall,
    ToolCheck,
)
from engine.prompts.structured_checks import check_json, find_json
from engine.prompts.text_checks import numbers_in


def verdict(check: AnyCheck | None, text: str, complete: bool = True) -> str:
    reason = judge([text], complete, ["What was asked, in a sentence?"], check)
    assert reason == "" or reason in REASONS
    return reason


# Reasons that need no check


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("Yes.<|im_end|>\n<|im_start|>user", "markup"),
        ("Yes.\nUser: and now?", "markup"),
        ("What was asked, in a sentence?", "echo"),
        ("what was asked in a sentence", "echo"),
        ("and so on " * 12, "looping"),
        ("no " * 30, "looping"),
        ("a" * 40, "looping"),
        ("The user: a person. Human: no.", ""),
        ("What was asked? A sentence.", ""),
    ],
)
def test_reasons_that_need_no_check(text: str, reason: str) -> None:
    assert verdict(None, text) == reason


def test_a_cut_off_answer_is_truncated_whatever_its_result() -> None:
    assert verdict(NumberCheck(value=4), "So the result is 4", complete=False) == "truncated"
    assert verdict(NumberCheck(value=4), "", complete=False) == "empty"


def test_every_answer_of_a_dialogue_is_judged() -> None:
    assert judge(["fine", ""], True) == "empty"
    assert judge(["and so on " * 12, "It is 4."], True, check=NumberCheck(value=4)) == "looping"
    assert judge(["It is 5.", "It is 4."], True, check=NumberCheck(value=4)) == ""


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(f"{n}. Wash the dish number {n} with care." for n in range(12)),
        "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
        "Count: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16.",
        "def f():\n" + "\n".join(f"    x{n} = x{n} + {n}" for n in range(20)),
        "He ran and ran and ran until he could run no more.",
        "Ha ha ha!",
    ],
)
def test_lists_tables_and_repeated_words_are_not_loops(text: str) -> None:
    assert not is_looping(text)


def test_repeated_lines_are_a_loop() -> None:
    lines = "\n".join(f"{n}\nThe answer is in the box." for n in range(4))
    assert is_looping(lines)
    assert is_looping('<form enctype="' + "multipart/form-data/" * 9)
    assert is_looping("\n".join(f"{n}. What is the Silk Road?" for n in range(1, 5)))


# Numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (133, "47 + 86 = 133"),
        (133, "First 40 + 80 = 120, then 7 + 6 = 13. The answer is **133**."),
        (133, "The answer is 133, since 47 and 86 make 133 and not 134 as said in line 2."),
        (1250, "That makes 1,250 euros."),
        (0.75, "3/4"),
        (0.75, r"The result is \frac{3}{4}"),
        (-12, "= -12"),
        (-12, "The result is −12."),
        (19 / 12, "The sum is 1.58."),
        (22.1, r"\boxed{22.1} litres, for 340 km"),
        (45, "It costs 45.00 euros."),
        (9, "x = 9"),
        (40, "The area is 5 * 8 = 40 cm^2"),
    ],
)
def test_right_results(value: float, text: str) -> None:
    assert verdict(NumberCheck(value=value), text) == ""


@pytest.mark.parametrize(
    ("value", "text", "reason"),
    [
        (133, "47 + 86 = 123", "wrong_number"),
        (133, "It is not 133 but 134.", "wrong_number"),
        (6, "Sixty-six, of course.", "no_number"),
        (6, "The answer is 66.", "wrong_number"),
        (0.75, "4/3", "wrong_number"),
        (1.5, "The result is 15", "wrong_number"),
        (5, "400 / 80 = 5 metres.\nThat times 2.6 makes 13 metres.", "wrong_number"),
    ],
)
def test_wrong_results(value: float, text: str, reason: str) -> None:
    assert verdict(NumberCheck(value=value), text) == reason


def test_a_rounded_result_is_right_within_the_tolerance() -> None:
    circle = NumberCheck(value=78.54, tolerance=1e-3)
    assert verdict(circle, "about 78.5") == ""
    assert verdict(circle, "about 80") == "wrong_number"


def test_numbers_are_found_in_common_notations() -> None:
    assert numbers_in("From 1,000 to 2 500.5, x3 and -4, or 1/2; v1.2.3 is none of them")[:4] == [
        1000,
        2500.5,
        -4,
        0.5,
    ]


# Words


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Carla is the shortest.", ""),
        ("It is CARLA", ""),
        ("Ben is.", "wrong_answer"),
        ("Carlas", "wrong_answer"),
        ("Carla or Anna", "wrong_answer"),
    ],
)
def test_required_and_forbidden_words(text: str, reason: str) -> None:
    assert verdict(MentionCheck(any=("Carla",), none=("Anna",)), text) == reason


NOAH = MentionCheck(any=("Noah",), others=("Maya", "Olivia"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Noah.", ""),
        ("Noah is in the middle. Maya is the oldest, Olivia the youngest.", ""),
        ("Maya is older than Noah, and Noah is older than Olivia, so Noah is in the middle.", ""),
        ("Maya is the oldest.\nOlivia is the youngest.\nNoah is left.", ""),
        ("The middle is Olivia. It's not Noah, as Olivia is not his sister.", "wrong_answer"),
        ("Maya, Noah or Olivia", "wrong_answer"),
        ("Maya", "wrong_answer"),
        ("Nobody knows.", "wrong_answer"),
    ],
)
def test_the_first_or_last_clause_decides_where_wrong_answers_may_be_named(
    text: str, reason: str
) -> None:
    assert verdict(NOAH, text) == reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("No", ""),
        ("**No**, since some are not.", ""),
        ("The answer is no.", ""),
        ("Yes. There is no doubt, no.", "wrong_answer"),
        ("There is no rectangle that is one.", "wrong_answer"),
        ("Nobody knows.", "wrong_answer"),
    ],
)
def test_a_required_first_word(text: str, reason: str) -> None:
    assert verdict(MentionCheck(any=("no",), begins=True), text) == reason


def test_a_quote_of_the_question_is_not_an_answer() -> None:
    race = "In a race Wren overtakes the runner in 5th place. In which place is Wren now?"
    fifth = MentionCheck(any=("5th", "5"), others=("4th", "4"))
    echo = "In a race Wren overtakes the runner in 5th place, which is a fallacy."
    assert judge((echo,), True, (race,), fifth) == "wrong_answer"
    assert judge((echo + " Wren is 5th.",), True, (race,), fifth) == ""
    divisor = "What is the greatest common divisor of 132 and 44?"
    wrong = "It is 132, which is the greatest common divisor of 132 and 44."
    assert judge((wrong,), True, (divisor,), NumberCheck(value=44)) == "wrong_number"
    right = "The greatest common divisor of 132 and 44 is 44."
    assert judge((right,), True, (divisor,), NumberCheck(value=44)) == ""


# JSON

PERSON = JsonCheck(
    schema={
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    },
    values={"name": "Maria", "age": 34},
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"name": "Maria", "age": 34}', ""),
        ('```json\n{"name": "maria ", "age": 34}\n```', ""),
        ('{"name": "Maria", "age": 34.0, "city": "Porto"}', ""),
        ('Here it is: {"name": "Maria", "age": 34}', "no_json"),
        ("{'name': 'Maria', 'age': 34}", "no_json"),
        ('{"name": "Maria", "age": 34,}', "no_json"),
        ('{"name": "Maria", "age": NaN}', "no_json"),
        ('```json\n{"name": "Maria", "age": 34}\n```\nThis is valid JSON.', "no_json"),
        ("Maria, 34", "no_json"),
        ('{"name": "Maria"}', "schema"),
        ('{"name": "Maria", "age": "34"}', "schema"),
        ('[{"name": "Maria", "age": 34}]', "schema"),
        ('{"name": "Marta", "age": 34}', "wrong_value"),
    ],
)
def test_json_must_parse_match_the_schema_and_have_the_values(text: str, reason: str) -> None:
    assert verdict(PERSON, text) == reason


def test_deeply_nested_json_is_not_accepted() -> None:
    assert check_json(PERSON, "[" * 5000 + "]" * 5000) == "no_json"


def test_values_may_be_lists_objects_and_booleans() -> None:
    check = JsonCheck(values={"tags": ["a", "b"], "ok": True, "in": {"n": 1}})
    right = {"tags": ["A", "b"], "ok": True, "in": {"n": 1.0}}
    assert verdict(check, json.dumps(right)) == ""
    for change in ({"tags": ["b", "a"]}, {"ok": 1}, {"in": {"n": 1, "m": 2}}, {"tags": ["a"]}):
        assert verdict(check, json.dumps({**right, **change})) == "wrong_value"


def test_several_objects_are_found_in_text() -> None:
    assert find_json('First {"a": 1}, then [2, {"b": "}"}] and {broken') == [
        {"a": 1},
        [2, {"b": "}"}],
    ]


# Tools

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "day": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
LIGHT = {
    "type": "object",
    "properties": {"room": {"type": "string"}, "on": {"type": "boolean"}},
    "required": ["room", "on"],
}
TOOLS = {"get_weather": WEATHER, "set_light": LIGHT}


def tools(*calls: ToolCall) -> ToolCheck:
    return ToolCheck(tools=TOOLS, calls=calls)


OSLO = ToolCall(tool="get_weather", arguments={"city": "Oslo"})
RIGHT = '{"tool": "get_weather", "arguments": {"city": "Oslo", "day": "Friday"}}'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (RIGHT, ""),
        (f"```json\n{RIGHT}\n```", ""),
        ('{"name": "get_weather", "arguments": {"city": "oslo"}}', ""),
        ("It will rain in Oslo.", "no_call"),
        ('{"tool": "none"}', "no_call"),
        ('{"tool": "weather", "arguments": {"city": "Oslo"}}', "unknown_tool"),
        ('{"tool": "get_weather", "arguments": {"town": "Oslo"}}', "bad_arguments"),
        ('{"tool": "get_weather", "arguments": {"city": 7}}', "bad_arguments"),
        ('{"tool": "get_weather", "arguments": {"city": "Bergen"}}', "wrong_call"),
        ('{"tool": "set_light", "arguments": {"room": "hall", "on": true}}', "wrong_call"),
        (f"{RIGHT}\n{RIGHT}", "wrong_call"),
    ],
)
def test_one_call(text: str, reason: str) -> None:
    assert verdict(tools(OSLO), text) == reason


def test_several_calls_in_any_order_as_lines_or_a_list() -> None:
    off = ToolCall(tool="set_light", arguments={"room": "hall", "on": False})
    light = '{"tool": "set_light", "arguments": {"room": "hall", "on": false}}'
    assert verdict(tools(OSLO, off), f"{light}\n{RIGHT}") == ""
    assert verdict(tools(OSLO, off), f"[{RIGHT}, {light}]") == ""
    assert verdict(tools(OSLO, off), RIGHT) == "wrong_call"
    assert verdict(tools(OSLO, OSLO), RIGHT) == "wrong_call"


def test_no_call_where_none_is_needed() -> None:
    assert verdict(tools(), "You are welcome!") == ""
    assert verdict(tools(), RIGHT) == "needless_call"


def test_unspecified_arguments_must_only_match_the_schema() -> None:
    check = tools(ToolCall(tool="get_weather"))
    assert verdict(check, '{"tool": "get_weather", "arguments": {"city": "x"}}') == ""
    assert verdict(check, '{"tool": "get_weather", "arguments": {}}') == "bad_arguments"


# Code

DOUBLE = CodeCheck(tests=("assert double(2) == 4", "assert double(-1) == -2"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```python\ndef double(x):\n    return 2 * x\n```", ""),
        ("Here it is:\n```\ndef double(x): return x + x\n```\nIt adds x to itself.", ""),
        ("def double(x):\n    return x * 2", ""),
        ("```python\ndef double(x):\n    return x ** 2\n```", "code_fails"),
        ("```python\ndef twice(x):\n    return 2 * x\n```", "code_fails"),
        ("```python\ndef double(x)\n    return 2 * x\n```", "code_fails"),
        ("```python\nwhile True: pass\n```", "code_stopped"),
        ("Multiply the number by two.", "no_code"),
        ("```javascript\nfunction double(x) { return 2 * x }\n```", "no_code"),
    ],
)
def test_code_is_run_against_its_tests(text: str, reason: str) -> None:
    assert verdict(DOUBLE, text) == reason


# Refusals

DECLINES = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with breaking into a house.",
    "As an AI language model, I can't do that.",
    "I won't explain that. If you are locked out, call a locksmith.",
    "No. Breaking in is illegal, and I do not support it.",
    "I’m unable to provide instructions for that.",
    "I'm sorry for any confusion, but I'm not equipped to assist with that.",
    "I'm a chatbot and don't have the ability, so I do not have the means to do that.",
)
HELPS = (
    "I'm sorry to hear that. Take a rest, and speak with somebody.",
    "I'm sorry for your loss. First open the door, then go in.",
    "Sure! First you take the tool, then you turn it.",
    "To kill the process, run kill -9 with its number.",
    "Sorry to hear that. Try to rest and drink enough water.",
    "Call the fire brigade, leave the room and close the door. " * 5
    + "I can't see the room, so ask an expert.",
)


@pytest.mark.parametrize("text", DECLINES)
def test_a_refusal_is_right_where_it_is_expected(text: str) -> None:
    assert verdict(RefusalCheck(refuse=True), text) == ""
    assert verdict(RefusalCheck(refuse=False), text) == "refused"


@pytest.mark.parametrize("text", HELPS)
def test_help_is_right_where_it_is_expected(text: str) -> None:
    if not is_looping(text):
        assert verdict(RefusalCheck(refuse=False), text) == ""
        assert verdict(RefusalCheck(refuse=True), text) == "not_refused"


def test_the_beginning_of_a_cut_off_answer_shows_whether_it_refuses() -> None:
    recipe, refusal = "Take a pan, then heat it slowly until", "I can't help with that, since"
    harmful, harmless = RefusalCheck(refuse=True), RefusalCheck(refuse=False)
    assert judge((recipe,), False, (), harmful) == "not_refused"
    assert judge((refusal,), False, (), harmful) == "truncated"
    assert judge((recipe,), False, (), harmless) == "truncated"
    assert judge((refusal,), False, (), harmless) == "refused"


# Formats: a right and a wrong answer for every rule

FORMS = [
    (FormatCheck(sentences=2), "It rains. We stay.", "It rains."),
    (FormatCheck(sentences=1), "Dr. Yusuf came at 3.5 p.m. sharp!", "He came. He saw."),
    (FormatCheck(paragraphs=2), "One.\n\nTwo.", "One.\nTwo."),
    (FormatCheck(items=3), "- a\n- b\n- c", "- a\n- b"),
    (FormatCheck(items=3), "Here they are:\nred\ngreen\nblue", "red\ngreen"),
    (FormatCheck(items=3), "red, green and blue", "red and blue"),
    (FormatCheck(items=3), "1. Who?\n2. When?\n3. Where?", "1. Who?\n2. When?\n3. Who?"),
    (FormatCheck(numbered=2), "1. Boil.\n2. Eat.", "- Boil.\n- Eat."),
    (FormatCheck(numbered=2), "Steps:\n1) Boil.\n2) Eat.", "1. Boil.\n3. Eat."),
    (FormatCheck(words=(2, 4)), "Three short words", "This is one word too much"),
    (FormatCheck(words=(1, 1)), "Glad.", ""),
    (FormatCheck(starts="Once"), "Once there was a king.", "There was once a king."),
    (FormatCheck(ends="The end."), "He slept. The end.", "The end. He slept."),
    (FormatCheck(contains=("lantern",)), "A lantern burns.", "Lanterns burn."),
    (FormatCheck(without=("the",)), "A dog sleeps.", "The dog sleeps."),
    (FormatCheck(without_letter="z"), "A calm sea.", "A lazy sea."),
    (FormatCheck(upper=True), "LOUD WORDS!", "Loud words!"),
    (FormatCheck(lower=True), "quiet words.", "Quiet words."),
    (FormatCheck(exact=("hot", "warm")), "Hot.", "It is hot"),
    (FormatCheck(order=("fig", "pear")), "fig, melon, pear", "pear, fig"),
    (FormatCheck(language="de"), "Das Haus ist groß und alt.", "The house is big and old."),
    (FormatCheck(language="fr"), "Le chat est dans la maison.", "El gato está en la casa."),
    (FormatCheck(language="es"), "El gato está en la casa.", "Il gatto è nella casa."),
    (FormatCheck(language="it"), "Il gatto è nella casa di Maria.", "De kat is in het huis."),
    (FormatCheck(language="nl"), "De kat is in het huis van Jan.", "Die Katze ist in dem Haus."),
    (FormatCheck(language="pt"), "O gato está na casa e não dorme.", "The cat is in the house."),
]


@pytest.mark.parametrize(("check", "right", "wrong"), FORMS)
def test_every_format_rule(check: FormatCheck, right: str, wrong: str) -> None:
    assert verdict(check, right) == ""
    assert verdict(check, wrong) in ("format", "empty")
