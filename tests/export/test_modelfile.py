"""Ollama's Modelfile, and what the experts' licences require."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.chat_tools import with_tools
from engine.checkpoint.model_record import TaughtBy
from engine.distill.student import _CHATML, _ZEPHYR
from engine.export.licences import hub_licence, licence_notices, licence_of, model_name
from engine.export.modelfile import detect_chat_format, format_chat, go_template, write_modelfile
from engine.export.tokenizer import read_gguf_tokenizer
from tests.support.exported import byte_level_tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi {{ there }}"},
    {"role": "assistant", "content": "Hello.\n"},
    {"role": "user", "content": ""},
]
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)
NUMBERED = "{% for m in messages %}{{ loop.index }}{{ m['content'] }}{% endfor %}"


@pytest.mark.parametrize("template", [_CHATML, _ZEPHYR, "{{ bos_token }}" + _CHATML])
def test_a_template_that_wraps_messages_is_detected(template: str) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    chat_format = detect_chat_format(tokenizer)
    assert chat_format is not None
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert format_chat(chat_format, CHAT) == expected


@pytest.mark.parametrize("template", [LLAMA2, NUMBERED, "{{ messages[0]['content'] }}"])
def test_a_template_that_does_more_is_left_out_of_the_modelfile(
    template: str, tmp_path: Path
) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    assert detect_chat_format(tokenizer) is None
    tokenizer.save_pretrained(tmp_path)
    modelfile = write_modelfile(tmp_path / "x.gguf", tmp_path, read_gguf_tokenizer(tmp_path, 900))
    assert modelfile.template == "" and "wrap each message" in modelfile.reason
    assert "TEMPLATE" not in modelfile.path.read_text().replace("# No TEMPLATE", "")


def test_the_modelfile_has_file_template_and_stop_token(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path)
    modelfile = write_modelfile(tmp_path / "x.gguf", tmp_path, read_gguf_tokenizer(tmp_path, 900))
    text = modelfile.path.read_text()
    assert "FROM ./x.gguf\n" in text and 'PARAMETER stop "<|im_end|>"' in text
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text
    assert text.count('"""') == 2 and '{{ end }}{{ end }}<|im_start|>assistant\n"""' in text


def test_the_modelfile_has_tools_calls_results_and_reasoning(tmp_path: Path) -> None:
    byte_level_tokenizer().save_pretrained(tmp_path)
    modelfile = write_modelfile(tmp_path / "x.gguf", tmp_path, read_gguf_tokenizer(tmp_path, 900))
    template = modelfile.template
    tools = "{{ if .Tools }}<|im_start|>system\n{{ if .System }}{{ .System }}\n\n{{ end }}# Tools\n"
    assert template.startswith(tools)
    assert '{"type": "function", "function": {{ .Function }}}{{ end }}\n</tools>' in template
    call = '<tool_call>\n{"name": "{{ $call.Function.Name }}", "arguments": '
    assert call + "{{ $call.Function.Arguments }}}\n</tool_call>" in template
    result = "<|im_start|>user\n<tool_response>\n{{ .Content }}\n</tool_response><|im_end|>\n"
    assert '{{ else if eq .Role "tool" }}' + result in template
    assert "<think>\n{{ .Thinking }}\n</think>\n\n" in template
    opened = template.count("{{ if ") + template.count("{{ range ")
    assert template.count("{{ end }}") == opened
    # the list of tools holds the system turn, which is not written twice
    assert '{{ if eq .Role "system" }}{{ if not $.Tools }}' in template


def test_a_template_without_tools_has_none_in_the_modelfile() -> None:
    tokenizer = byte_level_tokenizer()
    for template, has_tools in ((_ZEPHYR, False), (with_tools(_ZEPHYR), True)):
        tokenizer.chat_template = template
        chat_format = detect_chat_format(tokenizer)
        assert chat_format is not None and chat_format.has_tools == has_tools
        assert ("ToolCalls" in go_template(chat_format)) == has_tools


def test_a_template_with_go_delimiters_is_left_out() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + '{{' + m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}"
    )
    chat_format = detect_chat_format(tokenizer)
    assert chat_format is not None and go_template(chat_format) == ""


def experts(*licences: str) -> list[TaughtBy]:
    return [TaughtBy(name=w, title=w, repo=f"a/{w}", license=w) for w in licences]


@pytest.mark.parametrize(
    ("licences", "word"),
    [
        (("apache-2.0", "mit"), "apache-2.0"),
        (("mit",), "mit"),
        (("apache-2.0", "llama3.2", "mit"), "llama3.2"),
        (("gemma", "apache-2.0"), "gemma"),
        (("gemma", "llama3.2"), "other"),
        (("", "mit"), "other"),
        (("cc-by-nc-4.0",), "other"),
        ((), "other"),
    ],
)
def test_the_cards_licence_is_that_of_the_expert_whose_terms_bind(licences, word: str) -> None:
    assert hub_licence(experts(*licences)) == word


def test_only_a_student_of_llama_gets_llama_in_its_name() -> None:
    from types import SimpleNamespace

    of_llama = SimpleNamespace(experts=experts("mit", "llama3.1"))
    assert model_name("gladius-1b", of_llama) == "Llama-gladius-1b"  # type: ignore[arg-type]
    of_qwen = SimpleNamespace(experts=experts("apache-2.0"))
    assert model_name("gladius-1b", of_qwen) == "gladius-1b"  # type: ignore[arg-type]
    assert model_name("gladius-1b", None) == "gladius-1b"
    newer = licence_of(experts("llama3.1")[0])
    assert newer is not None and "Llama 3.1 is licensed" in " ".join(newer.requirements)


def test_notices_name_binding_and_unknown_licences_only() -> None:
    lines = licence_notices(experts("apache-2.0", "mit", "gemma", "mine"))
    assert len(lines) == 2 and "Gemma Terms of Use" in lines[0] and "(mine)" in lines[1]
