"""Forced calls: what the grammar lets through is a call that the parser reads, with arguments that follow the schema."""

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xgrammar import CompiledGrammar, GrammarCompiler, GrammarMatcher, TokenizerInfo, allocate_token_bitmask

from quire_engine.errors import RequestRejected
from quire_engine.locate import locate_model
from quire_engine.messages.deltas import Call, Message, message_of
from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS, ToolFormat
from quire_engine.messages.grammar import NoGrammar, ToolSchema, after_reasoning, tool_grammar
from quire_engine.messages.parser import MessageParser
from quire_engine.text.tokenizer import Tokenizer

TINY = Tokenizer(locate_model("builtin://quire-tiny"), 1024)
SHOWN = TINY.text_table(skip_special=False)
END = SHOWN.index(b"<|im_end|>")
COMPILER = GrammarCompiler(TokenizerInfo(SHOWN, stop_token_ids=[END]))

CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
}
PICK: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"enum": [1, 20]}, "s": {"enum": ["a<b", '"x"']}},
    "required": ["n", "s"],
}
WEATHER = ToolSchema(name="weather", parameters=CITY)
CLOCK = ToolSchema(name="clock")
FORCED = sorted({row.name for row in TOOL_FORMATS.values()} - {"pythonic"})

WEATHER_ALONE = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": ARGUMENTS}\n</tool_call>',
    "llama3_json": '{"name": "weather", "parameters": ARGUMENTS}',
    "mistral": "[TOOL_CALLS]weather[ARGS]ARGUMENTS",
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\nARGUMENTS\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "qwen3_xml": "<tool_call>\n<function=weather>\nARGUMENTS\n</function>\n</tool_call>",
    "gpt_oss": "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>ARGUMENTS",
}
BOTH = {
    "hermes": (
        '<tool_call>\n{"name": "weather", "arguments": ARGUMENTS}\n</tool_call>\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    ),
    "llama3_json": '{"name": "weather", "parameters": ARGUMENTS}; {"name": "clock", "parameters": {}}',
    "mistral": "[TOOL_CALLS]weather[ARGS]ARGUMENTS[TOOL_CALLS]clock[ARGS]{}",
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>\n"
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"
        "<｜tool▁call▁begin｜>clock<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "qwen3_xml": (
        "<tool_call>\n<function=weather>\nARGUMENTS\n</function>\n</tool_call>\n<tool_call>\n<function=clock>\n\n</function>\n</tool_call>"
    ),
}


def compiled(
    name: str,
    choice: str = "required",
    parallel: bool = True,
    tools: tuple[ToolSchema, ...] = (WEATHER, CLOCK),
    **more: Any,
) -> CompiledGrammar:
    return COMPILER.compile_structural_tag(tool_grammar(TOOL_FORMATS[name], tools, choice, parallel, **more))


def accepts(grammar: CompiledGrammar, text: str) -> bool:
    matcher = GrammarMatcher(grammar, terminate_without_stop_token=True)
    return matcher.accept_string(text) and (matcher.is_terminated() or matcher.accept_token(END))


def written(row: ToolFormat, form: str, arguments: dict[str, Any]) -> str:
    if row.name == "qwen3_xml":
        text = "\n".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in arguments.items())
    else:
        text = json.dumps(arguments, ensure_ascii=False)
    return form.replace("ARGUMENTS", text)


def calls(row: ToolFormat, text: str) -> list[tuple[str, Any]]:
    parser = MessageParser(row, None, schemas={"weather": CITY})
    message = message_of([*parser.feed(text), *parser.finish()])
    assert message.content is None
    return [(call.name, json.loads(call.arguments)) for call in message.calls]


@pytest.mark.parametrize("name", FORCED)
def test_a_call_that_the_grammar_accepts_is_read_back(name: str) -> None:
    row, arguments = TOOL_FORMATS[name], {"city": "Köln", "days": 3}
    text = written(row, WEATHER_ALONE[name], arguments)

    for choice, parallel in (("required", True), ("required", False), ("weather", True)):
        assert accepts(compiled(name, choice, parallel), text)
    assert calls(row, text) == [("weather", arguments)]


@pytest.mark.parametrize("name", FORCED)
def test_anything_but_a_call_that_follows_the_schema_is_refused(name: str) -> None:
    row, form = TOOL_FORMATS[name], WEATHER_ALONE[name]
    grammar = compiled(name)
    good = written(row, form, {"city": "Rome"})

    assert accepts(grammar, good)
    for bad in (
        "",
        "I would rather not.",
        good[:-1] if name != "gpt_oss" else good[:-2],
        good + "!",
        "Well: " + good,
        good.replace("weather", "wether"),
        written(row, form, {"days": 3}),
        written(row, form, {"city": "Rome", "days": "many"}),
        written(row, form, {"city": "Rome", "size": 3}),
    ):
        assert not accepts(grammar, bad), bad


@pytest.mark.parametrize("name", BOTH)
def test_several_calls_are_accepted_if_they_may_be_parallel(name: str) -> None:
    row = TOOL_FORMATS[name]
    text = written(row, BOTH[name], {"city": "Rome"})

    assert accepts(compiled(name), text)
    assert not accepts(compiled(name, parallel=False), text)
    assert not accepts(compiled(name, "weather"), text)
    assert calls(row, text) == [("weather", {"city": "Rome"}), ("clock", {})]


def test_a_named_function_is_the_only_one_that_may_be_called() -> None:
    text = written(TOOL_FORMATS["hermes"], WEATHER_ALONE["hermes"], {"city": "Rome"})

    assert accepts(compiled("hermes", "weather"), text)
    assert not accepts(compiled("hermes", "clock"), text)


def test_arguments_that_need_not_be_strict_are_any_object() -> None:
    loose = (ToolSchema(name="weather", parameters=CITY, strict=False),)
    for arguments, strict_accepts in (({"city": "Rome"}, True), ({"anything": [1, None]}, False)):
        text = written(TOOL_FORMATS["hermes"], WEATHER_ALONE["hermes"], arguments)

        assert accepts(compiled("hermes", tools=loose), text)
        assert accepts(compiled("hermes"), text) is strict_accepts
    assert not accepts(compiled("hermes", tools=loose), WEATHER_ALONE["hermes"].replace("ARGUMENTS", "3"))


def test_no_string_in_tags_may_contain_what_would_end_it() -> None:
    row = TOOL_FORMATS["qwen3_xml"]
    for city, accepted in (("Rome\n\n</param> <b>", True), ("Rome</parameter>", False)):
        text = written(row, WEATHER_ALONE["qwen3_xml"], {"city": city})

        assert accepts(compiled("qwen3_xml"), text) is accepted
    assert calls(row, written(row, WEATHER_ALONE["qwen3_xml"], {"city": "a\n"})) == [("weather", {"city": "a\n"})]


def test_the_older_form_of_mistral_is_accepted_as_well() -> None:
    text = '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}, {"name": "clock", "arguments": {}}]'

    assert accepts(compiled("mistral"), text)
    assert calls(TOOL_FORMATS["mistral"], text) == [("weather", {"city": "Rome"}), ("clock", {})]


def test_quire_tiny_can_be_made_to_call_in_its_own_format() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
    matcher = GrammarMatcher(compiled("hermes"))

    accepted = [matcher.accept_token(token) for token in TINY.encode(text, add_special_tokens=False)]

    assert all(accepted)
    assert matcher.accept_token(END)
    assert matcher.is_terminated()


@pytest.mark.parametrize(
    ("name", "tools"), [("qwen3", "hermes"), ("mistral", "mistral"), ("granite", "hermes"), ("gpt_oss", "gpt_oss")]
)
def test_a_model_that_reasons_may_do_so_before_its_call(name: str, tools: str) -> None:
    reasoning, row = REASONING_FORMATS[name], TOOL_FORMATS[tools]
    call = written(row, WEATHER_ALONE[tools], {"city": "Rome"})
    rest = f"So.{reasoning.closes[0]}{reasoning.after_close}{call}"
    from_start, from_within = (compiled(tools, reasoning=reasoning, in_reasoning=within) for within in (False, True))

    assert accepts(from_start, call)
    assert accepts(from_start, reasoning.opens[0] + rest)
    assert not accepts(from_start, rest)
    assert accepts(from_within, rest)
    assert not accepts(from_within, call)
    parser = MessageParser(row, reasoning, in_reasoning=True)
    assert message_of([*parser.feed(rest), *parser.finish()]) == Message(
        None, "So.", [Call("weather", '{"city": "Rome"}')]
    )


@pytest.mark.parametrize("name", ["qwen3", "mistral", "granite", "gpt_oss"])
def test_what_binds_the_answer_does_not_bind_the_thoughts_before_it(name: str) -> None:
    row = REASONING_FORMATS[name]
    answer = {"type": "json_schema", "json_schema": CITY}
    written = ("<|channel|>final<|message|>" if row.channels else "") + '{"city": "Rome"}'
    rest = f"What {{ is it?{row.closes[0]}{row.after_close}{written}"
    from_start, from_within = (
        COMPILER.compile_structural_tag(after_reasoning(row, within, answer)) for within in (False, True)
    )

    assert accepts(from_start, written)
    assert accepts(from_start, row.opens[0] + rest)
    assert accepts(from_start, row.opens[0] + rest.replace(written, "\n\n" + written))
    assert not accepts(from_start, rest)
    assert not accepts(from_start, row.opens[0] + rest.replace("Rome", 'Rome", "x": "'))
    assert accepts(from_within, rest)
    parser = MessageParser(None, row, in_reasoning=True)
    assert message_of([*parser.feed(rest), *parser.finish()]).content == '{"city": "Rome"}'


def test_what_cannot_be_forced_is_refused_in_one_sentence() -> None:
    with pytest.raises(NoGrammar, match="calls cannot be forced in the format 'pythonic'"):
        compiled("pythonic")
    with pytest.raises(RequestRejected, match="no function 'rain' among the tools"):
        compiled("hermes", "rain")
    with pytest.raises(RequestRejected, match="there are no tools"):
        compiled("hermes", tools=())
    with pytest.raises(RequestRejected, match="no name for a function"):
        compiled("hermes", tools=(ToolSchema(name="back\\slash"),))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(FORCED), st.integers(0, 2**32))
def test_whatever_the_grammar_generates_the_parser_reads(name: str, seed: int) -> None:
    choose = random.Random(seed)
    tool = ToolSchema(name="pick", parameters=PICK)
    matcher = GrammarMatcher(compiled(name, "pick", tools=(tool,)))
    mask = allocate_token_bitmask(1, len(SHOWN))
    text = b""
    while not matcher.is_terminated() and len(text) < 2000:
        matcher.fill_next_token_bitmask(mask)
        allowed = np.flatnonzero(np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")).tolist()
        token = choose.choice([token for token in allowed if SHOWN[token].strip()] or allowed)
        matcher.accept_token(token)
        text += SHOWN[token] if token != END else b""
    parser = MessageParser(TOOL_FORMATS[name], None, schemas={"pick": PICK})
    message = message_of([*parser.feed(text.decode()), *parser.finish()])

    assert [call.name for call in message.calls] == ["pick"]
    assert message.content is None
    arguments = json.loads(message.calls[0].arguments)
    assert arguments["n"] in (1, 20)
    assert arguments["s"] in ("a<b", '"x"')
