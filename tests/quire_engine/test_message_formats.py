"""Which format a checkpoint writes: what its template and its special tokens tell."""

import re
from pathlib import Path

import pytest

from quire_engine.locate import locate_model
from quire_engine.messages.deltas import Call, Message, message_of
from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS, detect
from quire_engine.messages.parser import MessageParser
from quire_engine.text.chat import ChatTemplate
from quire_engine.text.tokenizer import Tokenizer

TINY = Tokenizer(locate_model("builtin://quire-tiny"), 1024)

# What is distinctive in the templates of these families, and the formats that they write.
TEMPLATES = {
    "Hermes 2 Pro": (
        'within <tool_call></tool_call> XML tags: <tool_call>\n{"name": <function-name>, "arguments": <args-dict>}',
        "hermes",
        None,
    ),
    "Qwen3": ("{\\\"name\\\": <function-name>, \\\"arguments\\\"} <tool_call> {{ '<think>\\n\\n</think>\\n\\n' }}", "hermes", "qwen3"),
    "Qwen3-Coder": ("<tool_call>\\n<function=' + tool_call.name + '>\\n<parameter=' + args_name", "qwen3_xml", None),
    "Llama 3.1": ('{"name": function name, "parameters": dictionary of argument name and its value}', "llama3_json", None),
    "Llama 4": ("Use exact format: [func_name1(param1=value1, param2=value2), func_name2(...)]", "pythonic", None),
    "Mistral Small": ('{{- "[TOOL_CALLS] [" }}', "mistral", None),
    "Magistral": ("[THINK]Here goes your thinking[/THINK] [TOOL_CALLS]", "mistral", "mistral"),
    "DeepSeek R1": (
        "'<｜Assistant｜>' content.split('</think>')[-1] '<｜tool▁calls▁begin｜>' + '\\n' + '```json'",
        "deepseek_v3",
        "deepseek_r1",
    ),
    "DeepSeek V3.1": ("'<｜Assistant｜></think>' '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'", "deepseek_v31", "deepseek_r1"),
    "gpt-oss": ("<|start|>assistant<|channel|>final<|message|>", "gpt_oss", "gpt_oss"),
    "Granite 3.2": ("Write your thoughts after 'Here is my thought process:' and", None, "granite"),
    "GLM 4.5": ("<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key> arguments </think>", None, "qwen3"),
    "a plain one": ("{{ message.role }}: {{ message.content }}", None, None),
}  # fmt: skip


@pytest.mark.parametrize("family", TEMPLATES)
def test_the_formats_of_a_checkpoint_are_told_by_its_template(family: str) -> None:
    template, tools, reasoning = TEMPLATES[family]

    found = detect(template, ())

    assert tuple(row and row.name for row in found) == (tools, reasoning)


def test_special_tokens_tell_what_the_template_does_not() -> None:
    tools, reasoning = detect("{{ messages }}", ["[INST]", "[TOOL_CALLS]", "[THINK]"])

    assert (tools, reasoning) == (TOOL_FORMATS["mistral"], REASONING_FORMATS["mistral"])


def test_without_a_template_there_is_no_format() -> None:
    assert detect(None, ["[TOOL_CALLS]"]) == (None, None)


ROWS = dict.fromkeys([*TOOL_FORMATS.values(), *REASONING_FORMATS.values()])  # aliases once


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_token_that_a_format_is_read_by_is_named_as_a_marker(row: object) -> None:
    fields = ("openers", "blocks", "name_ends", "closers", "opens", "closes")
    texts = [text for field in fields for text in getattr(row, field, ())]
    texts += [
        text
        for writing in getattr(row, "writings", ())
        for text in (writing.begin, writing.before_name, writing.after_name)
    ]

    tokens = {
        token
        for text in texts
        for token in re.findall(r"<[|｜][^<>]*[|｜]>|</?(?:think|tool_call)>|\[/?[A-Z_]+\]", text)
    }

    assert tokens <= set(row.markers)  # type: ignore[attr-defined]


def test_names_are_those_of_other_servers() -> None:
    for name in (
        "hermes",
        "llama3_json",
        "pythonic",
        "mistral",
        "qwen3_coder",
        "qwen3_xml",
        "deepseek_v3",
        "deepseek_v31",
        "openai",
    ):
        assert name in TOOL_FORMATS
    for name in ("deepseek_r1", "qwen3", "openai_gptoss", "mistral", "granite"):
        assert name in REASONING_FORMATS


def test_what_quire_tiny_is_shown_is_read_back_from_what_it_would_write() -> None:
    template = Path(locate_model("builtin://quire-tiny"), "chat_template.jinja").read_text()
    tools, reasoning = detect(template, ())
    assert (tools, reasoning) == (TOOL_FORMATS["hermes"], None)
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.\n", "tool_calls": [call, call]},
    ]

    shown = ChatTemplate(TINY).render(messages, None, add_generation_prompt=False)

    parser = MessageParser(tools, reasoning)
    text = shown.split("assistant\n")[-1].removesuffix("<|im_end|>\n")
    message = message_of([*parser.feed(text), *parser.finish()])
    assert message == Message("Let me see.", None, [Call("weather", '{"city": "Rome"}')] * 2)
