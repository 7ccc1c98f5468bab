"""Conversations as text: what templates refuse, drop or rewrite, and tools in any template."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from engine.chat import ChatRefused, ChatRenderer, encode_chat, render_chat
from engine.chat_forms import PLAIN
from engine.chat_tools import (
    answer_parts,
    answer_text,
    reasoning_as_text,
    to_json,
    tools_as_text,
    with_tools,
)
from engine.distill.student import _CHATML, _ZEPHYR
from engine.text.examples import Message, ToolCall
from tests.support.conversations import TOOLS, Conversations
from tests.support.real_experts import TEMPLATES, expert_tokenizer
from tests.support.toys import byte_level, sentencepiece

CALL = ToolCall("get_weather", {"city": "Tromsø", "days": 2}, "call00001")
SYSTEM = Message("system", "Be brief.")
ASK = Message("user", "How is the weather?")
LOOK = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", '{"sky": "clear"}', tool_call_id="call00001")
SAY = Message("assistant", "It is clear.")
THANKS = Message("user", "Thanks.")


def template(name: str) -> str:
    return (TEMPLATES / f"{name}.jinja").read_text()


def renderer_of(text: str) -> ChatRenderer:
    tokenizer = byte_level()
    tokenizer.chat_template = text
    return ChatRenderer(tokenizer)


def native(tokenizer: PreTrainedTokenizerFast, messages: Any, tools: Any = None) -> str:
    """The template as transformers' users call it, with tools and calls as dicts."""
    chat = []
    for m in messages:
        turn: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.reasoning_content:
            turn["reasoning_content"] = m.reasoning_content
        if m.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in m.tool_calls
            ]
        chat.append(turn)
    return str(
        tokenizer.apply_chat_template(
            chat, tools=tools and list(tools), tokenize=False, add_generation_prompt=True
        )
    )


# Tools, calls, results and reasoning as text


def test_an_answer_is_reasoning_then_content_then_calls():
    message = Message("assistant", "Now.", "Hm.", (CALL, ToolCall("f", {})))
    assert answer_text(message) == (
        "<think>\nHm.\n</think>\n\nNow.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Tromsø", "days": 2}}\n</tool_call>'
        '\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    )
    assert answer_text(LOOK).startswith("<tool_call>\n") and answer_text(SAY) == "It is clear."
    written = [p.text for p in answer_parts(message) if p.kind == "text"]
    assert written == ["Hm.", "Now.", "get_weather", to_json(CALL.arguments), "f", "{}"]


@pytest.mark.parametrize("text", [_CHATML, _ZEPHYR, template("tinyllama")])
def test_a_template_with_tools_renders_as_the_text_form_does(text):
    plain, extended = renderer_of(text), renderer_of(with_tools(text))
    source = Conversations(5, 200)
    with_features = 0
    for _ in range(60):
        example = source.example()
        messages, tools = example.messages or (), example.tools
        as_text = reasoning_as_text(tools_as_text(messages, tools))
        expected = plain.render(PLAIN, as_text)
        assert native(extended.tokenizer, messages, tools) == expected
        assert plain.render(plain.form(messages, tools), messages, tools) == expected
        with_features += as_text != list(messages)
    assert 15 < with_features < 60
    assert with_tools(with_tools(text)) == with_tools(text)


@pytest.mark.parametrize("text", [_CHATML, _ZEPHYR, *map(template, ("tinyllama", "inst"))])
def test_a_plain_conversation_is_rendered_as_before(text):
    before, after = renderer_of(text).tokenizer, renderer_of(with_tools(text)).tokenizer
    for messages in ((ASK,), (SYSTEM, ASK, SAY, THANKS), (ASK, SAY, THANKS)):
        assert native(after, messages) == native(before, messages)


def test_a_student_reads_tools_as_qwen_does():
    """The same text as Qwen 3's own template, where there is no reasoning."""
    qwen, student = expert_tokenizer("qwen3"), byte_level()
    for messages in (
        (SYSTEM, ASK, LOOK, RESULT, SAY, THANKS),
        (ASK, LOOK, RESULT, RESULT),
        (SYSTEM, ASK, Message("assistant", "I look.", tool_calls=(CALL, CALL)), RESULT, RESULT),
    ):
        assert native(student, messages, TOOLS) == native(qwen, messages, TOOLS)


@pytest.mark.parametrize("kind", [byte_level, lambda: sentencepiece("prepend")])
def test_a_template_without_tools_gets_them_as_text(kind):
    tokenizer = kind()
    tokenizer.chat_template = template("tinyllama")
    text = render_chat(tokenizer, [SYSTEM, ASK, LOOK, RESULT], tools=TOOLS)
    for part in (SYSTEM.content, to_json(TOOLS[0]), answer_text(LOOK), RESULT.content):
        assert part in text
    assert "<|user|>\n<tool_response>\n" in text


def test_phi_gets_tools_as_text():
    text = render_chat(byte_level(), [SYSTEM, ASK, LOOK, RESULT], "phi", TOOLS)
    assert text.startswith("Instruct: Be brief.\n\n# Tools") and text.endswith("Output: ")
    assert f"Output: {answer_text(LOOK)}\nInstruct: <tool_response>\n" in text


def test_a_template_writes_tools_in_its_own_form_where_it_has_one():
    renderer = renderer_of(template("llama3.2"))
    text = renderer.render(renderer.form([ASK, LOOK, RESULT], TOOLS), [ASK, LOOK, RESULT], TOOLS)
    assert '{"name": "get_weather", "parameters": {"city": "Tromsø", "days": 2}}<|eot_id|>' in text
    assert renderer.has_tools and not renderer.writes_calls and not renderer.has_reasoning
    qwen = renderer_of(template("qwen2.5"))
    assert qwen.has_tools and qwen.writes_calls
    # it takes one call at a time, and drops what stands beside it: then the text form is used
    for message in (
        Message("assistant", "", tool_calls=(CALL, CALL)),
        Message("assistant", "I look.", tool_calls=(CALL,)),
    ):
        assert renderer.form([ASK, message, RESULT], TOOLS).text_tools
        chat = [ASK, message, RESULT]
        assert answer_text(message) in renderer.render(renderer.form(chat, TOOLS), chat, TOOLS)


def test_a_student_with_a_form_of_its_own_reads_and_saves_what_it_learns():
    """It learns the text form, so its template is saved with that form."""
    tokenizer = byte_level()
    chat = [SYSTEM, ASK, Message("assistant", "", "Hm.", (CALL,)), RESULT]
    for name in ("llama3.2", "qwen2.5", "tinyllama", "strict"):
        tokenizer.chat_template = template(name)
        student = ChatRenderer(tokenizer, as_learnt=True)
        form = student.form(chat, TOOLS)
        assert form.text_tools and form.text_reasoning
        text = student.render(form, chat, TOOLS)
        assert answer_text(chat[2]) in text
        if not form.fold_system:
            tokenizer.chat_template = with_tools(tokenizer.chat_template)
            assert native(tokenizer, chat, TOOLS) == text
    qwen = ChatRenderer(expert_tokenizer("qwen3"), as_learnt=True)
    assert qwen.writes_as_learnt and qwen.form(chat, TOOLS) == PLAIN


# Roles


def test_a_refused_system_turn_is_folded_and_users_in_a_row_are_joined():
    renderer = renderer_of(template("strict"))
    chat = [SYSTEM, ASK, THANKS, SAY, THANKS]
    text = renderer.render(renderer.form(chat), chat)
    assert "user\nBe brief.\n\nHow is the weather?\n\nThanks.<|im_end|>" in text


def test_a_refusal_has_the_words_of_the_template():
    renderer = renderer_of(template("strict"))
    for _ in range(2):  # the second time from memory
        with pytest.raises(ChatRefused, match="roles must alternate") as refused:
            renderer.form([ASK, SAY, SAY, THANKS])
        assert refused.value.reason == "refuses it"
    drops = "{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(ChatRefused, match=r"drops.*turn 1 \(user\) is missing"):
        renderer_of(drops).form([ASK, SAY])


@pytest.mark.parametrize(
    "text",
    [
        "{{ messages[0].content + 1 }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ messages[",
        "{{ messages[0].content.nothing.at_all }}",
        "{{ raise_exception('no') }}",
    ],
)
def test_whatever_a_template_raises_is_a_refusal(text):
    with pytest.raises(ChatRefused):
        renderer_of(text).form([ASK, SAY])


def test_an_opening_answer_stays_or_is_left_out():
    chat = [SAY, ASK, SAY]
    assert renderer_of(_CHATML).form(chat) == PLAIN
    renderer = renderer_of(template("strict"))
    form = renderer.form(chat)
    assert form.drop_opening
    assert renderer.render(form, chat[:2]).startswith("<|im_start|>user\nHow")


# Where an answer begins


def test_the_text_before_an_answer_is_what_the_template_writes_there():
    qwen = ChatRenderer(expert_tokenizer("qwen3"))
    prompt = qwen.render(PLAIN, [ASK])
    plain, closing = qwen.opening(PLAIN, [ASK], None, prompt, thinks=False)
    assert (plain, closing) == (prompt + "<think>\n\n</think>\n\n", "")
    assert qwen.opening(PLAIN, [ASK], None, prompt, thinks=True)[0] == prompt
    inst = renderer_of(template("inst"))
    prompt = inst.render(PLAIN, [ASK])
    assert inst.opening(PLAIN, [ASK], None, prompt, thinks=False) == (prompt + " ", "")
    llama = renderer_of(template("llama2"))
    prompt = llama.render(PLAIN, [ASK])
    assert llama.opening(PLAIN, [ASK], None, prompt, thinks=False) == (prompt + " ", " ")


def test_a_generation_prompt_leaves_the_space_to_the_answer():
    tokenizer = byte_level()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}ASSISTANT: "
    assert str(tokenizer.decode(encode_chat(tokenizer, [ASK]))).endswith("ASSISTANT:")
    assert str(tokenizer.decode(encode_chat(tokenizer, [ASK], "phi"))).endswith("Output:")
