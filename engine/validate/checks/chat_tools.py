"""Check that the chat template renders tools, calls, results and reasoning as they were learnt."""

from __future__ import annotations

from engine.chat import ChatRenderer
from engine.chat_forms import PLAIN
from engine.chat_tools import answer_text, has_tools, to_json
from engine.events import CheckDone
from engine.text.examples import Message, ToolCall
from engine.validate.check import Check, one_per_line, structural_row
from engine.validate.context import CheckContext

_NAME, _TITLE = "chat_tools", "tools in the chat template"
_MEANING = "A conversation with tools, calls, results and reasoning keeps every part."
_BOUND = "every part, in the form that was learnt"
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
_CALLS = (
    ToolCall("get_weather", {"city": "Tromsø", "days": 2}, "call00001"),
    ToolCall("get_weather", {"city": 'the "Old" Town\n'}, "call00002"),
)
_CHAT = (
    Message("system", "Be brief."),
    Message("user", "How is the weather?"),
    Message("assistant", "I will look.", "Two cities are meant.", _CALLS),
    Message("tool", '{"sky": "clear"}', tool_call_id="call00001"),
    Message("tool", '{"sky": "grey"}', tool_call_id="call00002"),
    Message("assistant", "Clear, and grey."),
    Message("user", "Thanks."),
)


def check_chat_tools(context: CheckContext) -> CheckDone:
    """Render a conversation with tools in the finished model's template and find every part."""
    tokenizer = context.model.tokenizer
    template = tokenizer.chat_template
    if context.record is None:
        return CHECK.skipped("The model was not made by this program.")
    if not isinstance(template, str) or not has_tools(template):
        return CHECK.skipped("The chat template has no form for tools.")
    findings = _findings(ChatRenderer(tokenizer))
    return structural_row(
        _NAME,
        _TITLE,
        passed=not findings,
        value=findings[0] if findings else "every part found",
        meaning=_MEANING,
        bound=_BOUND,
        detail=one_per_line(findings) if findings[1:] else "",
    )


def _findings(renderer: ChatRenderer) -> list[str]:
    text = renderer.render(PLAIN, _CHAT, [_TOOL])
    parts = [
        ("the system turn", _CHAT[0].content),
        ("the tool", to_json(_TOOL)),
        ("the question", _CHAT[1].content),
        ("the reasoning and the calls", answer_text(_CHAT[2])),
        *(("a result", message.content) for message in _CHAT[3:5]),
        ("the answer", _CHAT[5].content),
        ("the last turn", _CHAT[6].content),
    ]
    findings, position = [], 0
    for title, part in parts:
        found = text.find(part, position)
        if found < 0:
            findings.append(f"{title} is missing from the rendered text: {part[:40]!r}")
        else:
            position = found + len(part)
    prompt = renderer.render(PLAIN, _CHAT[:2], [_TOOL])
    if not findings and not text.startswith(prompt + answer_text(_CHAT[2])):
        findings.append("a call does not begin where its prompt ends")
    return findings


CHECK = Check(group="structural", name=_NAME, title=_TITLE, run=check_chat_tools)
