"""Messages read while a model writes them: every format, however its text is cut."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.errors import ConfigFailure
from quire_engine.messages.deltas import (
    Arguments,
    Call,
    CallStarted,
    Content,
    Delta,
    Message,
    Reasoning,
    merged,
    message_of,
)
from quire_engine.messages.formats import REASONING_FORMATS, TOOL_FORMATS
from quire_engine.messages.parser import MessageParser
from quire_engine.messages.values import ANY, Parameter, json_of_python, json_of_text, parameter_of

SCHEMAS: dict[str, Any] = {
    "f": {
        "type": "object",
        "properties": {
            "a": {"type": "integer"},
            "b": {"type": "string"},
            "c": {"anyOf": [{"type": "array"}, {"type": "null"}]},
            "d": {"$ref": "#/$defs/point"},
            "e": {"enum": [True, "maybe"]},
            "any": {},
        },
        "$defs": {"point": {"type": "object"}},
    }
}
TOOLS = sorted({row.name for row in TOOL_FORMATS.values()})
PAIRS = [
    *((name, None) for name in TOOLS),
    *((None, name) for name in REASONING_FORMATS),
    ("hermes", "qwen3"),
    ("qwen3_xml", "qwen3"),
    ("llama3_json", "deepseek_r1"),
    ("pythonic", "deepseek_r1"),
    ("deepseek_v3", "deepseek_r1"),
    ("mistral", "mistral"),
    ("hermes", "granite"),
    ("gpt_oss", "gpt_oss"),
]


def parser_of(tools: str | None, reasoning: str | None = None, *, in_reasoning: bool = False) -> MessageParser:
    return MessageParser(
        TOOL_FORMATS[tools] if tools else None,
        REASONING_FORMATS[reasoning] if reasoning else None,
        schemas=SCHEMAS,
        in_reasoning=in_reasoning,
    )


def deltas_of(parts: list[str], *formats: str | None, in_reasoning: bool = False) -> list[Delta]:
    parser = parser_of(*formats, in_reasoning=in_reasoning)
    return [delta for part in parts for delta in parser.feed(part)] + parser.finish()


def read(text: str, *formats: str | None, in_reasoning: bool = False) -> Message:
    """The message, which must be the same character by character."""
    whole = deltas_of([text], *formats, in_reasoning=in_reasoning)
    assert merged(whole) == merged(deltas_of(list(text), *formats, in_reasoning=in_reasoning))
    return message_of(whole)


ONE = '{"a": 1}'
TWO = '{ "b" : "x}\\"]<" }'  # as nobody would write it, to see that nothing is rewritten
TWO_CALLS = {
    "hermes": f'<tool_call>\n{{"name": "f", "arguments": {ONE}}}\n</tool_call>\n<tool_call>{{"arguments": {TWO}, "name": "g"}}</tool_call>',
    "llama3_json": f'<|python_tag|>{{"name": "f", "parameters": {ONE}}}; {{"name": "g", "parameters": {TWO}}}',
    "mistral": f"[TOOL_CALLS]f[ARGS]{ONE}[TOOL_CALLS]g[CALL_ID]x1[ARGS]{TWO}",
    "deepseek_v3": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        f"{ONE}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n"
        f"{TWO}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "deepseek_v31": (
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{ONE}<｜tool▁call▁end｜>"
        f"<｜tool▁call▁begin｜>g<｜tool▁sep｜>{TWO}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    ),
    "gpt_oss": (
        f"<|channel|>commentary to=functions.f <|constrain|>json<|message|>{ONE}<|call|>"
        f"<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{TWO}<|call|>"
    ),
}
WITH_TEXT = {
    **TWO_CALLS,
    "mistral list": f'[TOOL_CALLS] [{{"name": "f", "arguments": {ONE}}}, {{"name": "g", "arguments": {TWO}}}]',
}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_arguments_are_exactly_what_the_model_wrote_and_calls_are_numbered(name: str) -> None:
    text = WITH_TEXT[name]

    assert read(text, name.split()[0]) == Message(None, None, [Call("f", ONE), Call("g", TWO)])
    assert [d.index for d in deltas_of([text], name.split()[0]) if isinstance(d, CallStarted)] == [0, 1]


@pytest.mark.parametrize("name", sorted(set(TWO_CALLS) - {"gpt_oss"}))
def test_whitespace_between_content_and_calls_is_dropped_and_no_other(name: str) -> None:
    message = read(f" Let me\n\nsee. \n{TWO_CALLS[name]}\n\nDone. ", name)

    assert message.content == " Let me\n\nsee.Done. "
    assert len(message.calls) == 2


@pytest.mark.parametrize("name", TWO_CALLS)
def test_arguments_stream_as_they_come(name: str) -> None:
    text = TWO_CALLS[name]
    parser = parser_of(name)
    before = text.index(ONE)

    started = parser.feed(text[:before])
    one_by_one = [parser.feed(char) for char in ONE]

    assert started == [CallStarted(0, "f")]
    assert one_by_one == [[Arguments(0, char)] for char in ONE]


def test_a_list_of_objects_alone_is_a_message_of_calls_for_llama() -> None:
    assert read(f'\n{{"name": "f", "parameters": {ONE}}}', "llama3_json").calls == [Call("f", ONE)]
    assert read(f'[{{"name": "f", "parameters": {ONE}}}]', "llama3_json").calls == []


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ann", "age": 3}',
        '{"name": "Ann"}',
        "{}",
        '{"name": "Ann", "parameters"}',
        '{"name": 3, "parameters": {}}',
    ],
)
def test_an_answer_in_json_is_no_call_for_llama(text: str) -> None:
    assert read(text, "llama3_json") == Message(text, None, [])


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("[f(a=1, b='x')]", {"a": 1, "b": "x"}),
        ("[f()]", {}),
        (
            "[ f( a = -1.5 , b = [1, {'k': None}, (True, false)] , ) ]",
            {"a": -1.5, "b": [1, {"k": None}, [True, False]]},
        ),
        (
            r"""[f(b="é\n\x41\u00e9\'\"\101\q\
")]""",
            {"b": "é\nAé'\"A\\q"},
        ),
        ('[f(b="""a "quoted" b""")]', {"b": 'a "quoted" b'}),
        ("[f(b='one' \"two\")]", {"b": "onetwo"}),
        ("[f(b='')]", {"b": ""}),
        ("[f(a=1e999, b=some(thing, 'x)'))]", {"a": "1e999", "b": "some(thing, 'x)')"}),
        ("[f(b='a, b)]')]", {"b": "a, b)]"}),
        (r"[f(b='\ud83d\ude42')]", {"b": "🙂"}),
        ("<|python_start|>[f(a=1)]<|python_end|>", {"a": 1}),
    ],
)
def test_values_of_python_become_json(text: str, arguments: dict[str, Any]) -> None:
    message = read(text, "pythonic")

    assert [(call.name, json.loads(call.arguments)) for call in message.calls] == [("f", arguments)]
    assert message.content is None


@pytest.mark.parametrize("text", ["[1, 2]", "[see](http://x)", "[f(x)]", "f(a=1)", "[", "[f(", "[f", "[]", "[f()"])
def test_what_only_looks_like_python_is_content(text: str) -> None:
    message = read(text, "pythonic")

    assert message.calls == ([Call("f", "{}")] if text == "[f()" else [])
    assert message.content == (None if text == "[f()" else text)


def test_several_calls_of_python() -> None:
    message = read("[f(a=1), x.g()] Done", "pythonic")

    assert message == Message("Done", None, [Call("f", '{"a": 1}'), Call("x.g", "{}")])


def parameter(key: str, value: str) -> str:
    return f"<parameter={key}>\n{value}\n</parameter>\n"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("a", "12", 12),
        ("a", "12.5", "12.5"),
        ("a", "many", "many"),
        ("b", "12", "12"),
        ("b", '\n"x" </param> \n', '\n"x" </param> \n'),
        ("b", "", ""),
        ("c", "[1, 2]", [1, 2]),
        ("c", "['x', None]", ["x", None]),
        ("c", "null", None),
        ("c", "[1, NaN]", "[1, NaN]"),
        ("d", '{"x": 1}', {"x": 1}),
        ("e", "true", True),
        ("e", " maybe ", "maybe"),
        ("e", "maybe not", "maybe not"),
        ("any", "1", 1),
        ("any", "one", "one"),
        ("unknown", "1", "1"),
    ],
)
def test_values_in_tags_have_the_types_of_the_schema(key: str, text: str, value: Any) -> None:
    call = f"<tool_call>\n<function=f>\n{parameter(key, text)}</function>\n</tool_call>"

    message = read(call, "qwen3_xml")

    assert [json.loads(c.arguments) for c in message.calls] == [{key: value}]
    assert message.content is None


def test_several_calls_in_tags_with_or_without_the_outer_one() -> None:
    one = f"<function=f>{parameter('a', '1')}{parameter('b', 'x')}</function>"

    message = read(
        f"Hi <tool_call>{one}</tool_call>\n{one}\n<tool_call><function=g></function></tool_call>", "qwen3_xml"
    )

    both = '{"a": 1, "b": "x"}'
    assert message == Message("Hi", None, [Call("f", both), Call("f", both), Call("g", "{}")])


def test_a_string_in_tags_or_in_python_streams_before_it_is_complete() -> None:
    tags, python = parser_of("qwen3_xml"), parser_of("pythonic")

    in_tags = message_of(tags.feed("<function=f>\n<parameter=b>\nlong\nte"))
    in_python = message_of(python.feed("[f(b='long\\nte"))

    assert in_tags.calls == in_python.calls == [Call("f", '{"b": "long\\nte')]


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3", "mistral", "granite"])
def test_reasoning_is_what_its_tags_enclose(name: str) -> None:
    row = REASONING_FORMATS[name]
    for opening in row.opens:
        text = f"\n{opening}\nSo it\n\nis.\n{row.closes[-1]}\n\n42 {opening}"

        assert read(text, None, name) == Message(f"42 {opening}", "So it\n\nis.", [])


@pytest.mark.parametrize("name", ["deepseek_r1", "qwen3", "mistral", "granite"])
def test_the_opening_tag_may_be_in_the_prompt_and_in_the_text_as_well(name: str) -> None:
    row = REASONING_FORMATS[name]
    assert row.is_open(f"Say.\n{row.opens[0]}\n")
    assert not row.is_open(f"{row.opens[0]}\n\n{row.closes[0]}\n\n")

    for opening in ("", row.opens[0]):
        message = read(f"{opening}So.{row.closes[0]}42", None, name, in_reasoning=True)

        assert message == Message("42", "So.", [])


def test_reasoning_may_be_empty_missing_or_cut_off() -> None:
    assert read("<think>\n\n</think>\n\n42", None, "qwen3") == Message("42", None, [])
    assert read("42", "hermes", "qwen3") == Message("42", None, [])
    assert read("<think>So", "hermes", "qwen3") == Message(None, "So", [])
    assert read("<thin", "hermes", "qwen3") == Message("<thin", None, [])


def test_what_looks_like_a_call_within_reasoning_is_reasoning() -> None:
    text = f"<think>{TWO_CALLS['hermes']}</think>{TWO_CALLS['hermes']}"

    message = read(text, "hermes", "qwen3")

    assert message.reasoning == TWO_CALLS["hermes"]
    assert len(message.calls) == 2


HARMONY = (
    "<|channel|>analysis<|message|>First.<|end|><|start|>assistant<|channel|>analysis<|message|>Second.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>I look. <|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    "<|start|>assistant<|channel|>final<|message|>Here: a < b<|return|>"
)


def test_channels_say_what_is_reasoning_content_or_a_call() -> None:
    message = read(HARMONY, "gpt_oss", "gpt_oss")

    assert message == Message("I look.\nHere: a < b", "First.\nSecond.", [Call("f", "{}")])


def test_without_a_format_for_them_calls_and_reasoning_of_channels_are_content() -> None:
    assert read(HARMONY, None, "gpt_oss") == Message("I look.\n{}\nHere: a < b", "First.\nSecond.", [])
    assert read(HARMONY, "gpt_oss").reasoning is None
    assert read("Rest<|end|>", None, "gpt_oss", in_reasoning=True) == Message(None, "Rest", [])


@pytest.mark.parametrize("text", ["plain", "<|channel|>x", "a <|start|>user said", " to=nobody", "<|chan", "1 < 2"])
def test_text_without_a_header_is_content(text: str) -> None:
    assert read(text, "gpt_oss", "gpt_oss").content == text


def test_channels_go_with_no_other_format() -> None:
    with pytest.raises(ConfigFailure, match="gpt_oss is the format of the whole message"):
        parser_of("hermes", "gpt_oss")


NOT_CALLS = {
    "hermes": [
        "<tool_call>",
        "<tool_call>x</tool_call>",
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": ""}',
        "a <tool_call",
    ],
    "mistral": ["[TOOL_CALLS]", "[TOOL_CALLS] is a marker", "[TOOL", "[TOOL_CALLS][1]", "[TOOL_CALLS]f[CALL_ID]"],
    "deepseek_v3": [
        "<｜tool▁calls▁begin｜>x",
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>f and",
        "<｜tool▁calls▁begin｜>",
    ],
    "qwen3_xml": ["<tool_call>\nx", "<function=", "<function=f", "<function=a b>", "<tool_call> <function"],
    "llama3_json": ["<|python_tag|>print(1)", "<|python_tag|>", "a {"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in NOT_CALLS.items() for text in texts])
def test_what_turns_out_to_be_no_call_comes_out_as_it_was(name: str, text: str) -> None:
    assert read(text, name) == Message(text, None, [])


def test_a_call_after_what_was_none_is_found() -> None:
    message = read(f"<tool_call>no {TWO_CALLS['hermes']}", "hermes")

    assert message.content == "<tool_call>no"
    assert [call.name for call in message.calls] == ["f", "g"]


@pytest.mark.parametrize("name", TWO_CALLS)
def test_a_call_that_is_cut_off_comes_out_as_far_as_it_was_written(name: str) -> None:
    text = TWO_CALLS[name]
    for end in range(text.index(ONE), len(text) + 1):
        message = read(text[:end], name)

        assert message.calls[0].name == "f"
        assert ONE.startswith(message.calls[0].arguments)
        assert len(message.calls) < 2 or TWO.startswith(message.calls[1].arguments)
    assert message.calls == [Call("f", ONE), Call("g", TWO)]


def test_the_rest_of_a_call_that_is_cut_off_is_no_content() -> None:
    for text in ('<tool_call>{"name": "f", "argum', '<tool_call>{"name": "f", "arguments": {}}\n</tool_c'):
        assert read(text, "hermes").content is None
    for text in ("<tool_call>\n<function=f>\n<parameter=b>\nx\n</para", "<tool_call>\n<function=f>\n<param"):
        assert read(text, "qwen3_xml").content is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<tool_call>{"name": "f"}</tool_call>', Message(None, None, [Call("f", "{}")])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>!', Message("!", None, [Call("f", ONE)])),
        ('<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>!', Message("!", None, [Call("f", '{"a": 1')])),
        ('<tool_call>{"name": "f", "arguments": {\'a\': 1}}</tool_call>!', Message("!", None, [Call("f", "{'a': 1}")])),
        ('<tool_call>{"name": "f", "arguments": {},}</tool_call>', Message(None, None, [Call("f", "{}")])),
        (
            '<tool_call>{"id": [1, "}"], "name": "f", "arguments": null}</tool_call>',
            Message(None, None, [Call("f", "null")]),
        ),
    ],
)
def test_broken_calls_lose_nothing(text: str, message: Message) -> None:
    assert read(text, "hermes") == message


@pytest.mark.parametrize(("tools", "reasoning"), PAIRS)
def test_text_is_held_back_only_while_it_may_become_a_marker(tools: str | None, reasoning: str | None) -> None:
    parser = parser_of(tools, reasoning)

    first = message_of([*parser.feed("Hello"), *parser.feed(" "), *parser.feed("world")])
    second = message_of([*parser.feed(" <"), *parser.feed("b")])

    assert first.content == "Hello world"
    assert second.content == " <b"


PIECES = [
    "word", " ", "\n", "{", "}", "[", "]", "(", ")", "=", ",", ":", ";", '"', "'", "\\", "<", "f", "a", "1", "é🙂", "null",
    '"name"', '"arguments"', '"parameters"', '"f"', "<parameter=a>", "<parameter=b>", "</parameter>", "</function>", "\\ud800",
    "[f(a=", "f(b='", '{"name": "f", "arguments": ', "function<｜tool▁sep｜>", "f[ARGS]", " to=functions.f", "analysis", "final", "```json",
    *sorted({m for row in TOOL_FORMATS.values() for m in (*row.openers, *row.blocks, *row.closers, *row.markers)}),
    *sorted({m for row in REASONING_FORMATS.values() for m in (*row.opens, *row.closes)}),
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=25).map("".join)
whole_messages = st.sampled_from(
    [
        *(((name.split()[0], None), f"Hi {text} there") for name, text in WITH_TEXT.items()),
        (("gpt_oss", "gpt_oss"), HARMONY),
        (("pythonic", None), "[f(a=1, b='x\\n', c=[1]), g()] x"),
        (
            ("qwen3_xml", "qwen3"),
            f"<think>x</think> <function=f>{parameter('b', 'x')}{parameter('c', '[1]')}</function> x",
        ),
        (("hermes", "granite"), f"Here's my thought process: x Here is my response: x {TWO_CALLS['hermes']}"),
    ]
)


def cut(text: str, sizes: list[int]) -> list[str]:
    parts = []
    for size in sizes:
        parts.append(text[:size])
        text = text[size:]
    return [*parts, text]


@given(
    st.tuples(st.sampled_from(PAIRS), texts) | whole_messages, st.lists(st.integers(0, 9), max_size=60), st.booleans()
)
def test_any_cut_of_a_text_gives_the_same_message(
    case: tuple[tuple[str | None, str | None], str], sizes: list[int], in_reasoning: bool
) -> None:
    pair, text = case
    whole = deltas_of([text], *pair, in_reasoning=in_reasoning)

    assert merged(deltas_of(cut(text, sizes), *pair, in_reasoning=in_reasoning)) == merged(whole)
    assert merged(deltas_of(list(text), *pair, in_reasoning=in_reasoning)) == merged(whole)


@given(st.sampled_from(PAIRS), st.lists(st.sampled_from(PIECES), max_size=15))
def test_no_word_is_lost(pair: tuple[str | None, str | None], pieces: list[str]) -> None:
    words = [f"Word{n}." for n in range(len(pieces))]
    text = "".join(f"{piece} {word}" for piece, word in zip(pieces, words, strict=True))

    message = message_of(deltas_of([text], *pair))

    shown = f"{message.content}{message.reasoning}{[call.name for call in message.calls]}{[call.arguments for call in message.calls]}"
    assert [word for word in words if word not in shown] == []


@given(
    st.sampled_from([p for p in PAIRS if p[0] != "gpt_oss" and p[1] != "gpt_oss"]), st.text("ab \n.,é漢🙂", max_size=40)
)
def test_plain_text_is_content_as_it_is(pair: tuple[str | None, str | None], text: str) -> None:
    assert message_of(deltas_of(cut(text, [1, 2, 3]), *pair)).content == (text or None)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
keys = st.from_regex(r"[a-z_]{1,5}", fullmatch=True)


@given(st.dictionaries(keys, values, min_size=1, max_size=3), st.sampled_from(sorted(TWO_CALLS)), st.booleans())
def test_any_json_passes_unchanged(arguments: dict[str, Any], name: str, spaced: bool) -> None:
    written = json.dumps(arguments, ensure_ascii=spaced, indent=2 if spaced else None)

    message = message_of(deltas_of([TWO_CALLS[name].replace(ONE, written)], name))

    assert message.calls == [Call("f", written), Call("g", TWO)]


@given(st.dictionaries(keys, values, max_size=3))
def test_any_value_survives_python(arguments: dict[str, Any]) -> None:
    text = f"[f({', '.join(f'{key}={value!r}' for key, value in arguments.items())})]"

    calls = read(text, "pythonic").calls

    assert [json.loads(call.arguments) for call in calls] == [json.loads(json.dumps(arguments))]


@given(
    st.dictionaries(keys.map(lambda key: f"s_{key}"), st.text().filter(lambda s: "</parameter>" not in s), max_size=3)
)
def test_any_string_survives_tags(arguments: dict[str, str]) -> None:
    text = (
        f"<tool_call>\n<function=f>\n{''.join(parameter(k, v) for k, v in arguments.items())}</function>\n</tool_call>"
    )

    assert [json.loads(call.arguments) for call in read(text, "qwen3_xml").calls] == [arguments]


@given(texts, st.sets(st.sampled_from(sorted(ANY))))
def test_any_text_becomes_valid_json_of_its_type_or_a_string(text: str, types: set[str]) -> None:
    value = json.loads(json_of_text(text, Parameter(frozenset(types))))

    json.loads(json_of_python(text))
    if not types & {"null", "boolean", "integer", "number", "object", "array"}:
        assert value == text


@given(texts.map(lambda text: text.replace("<", "")))
def test_a_complete_call_in_tags_is_valid_json(text: str) -> None:
    call = f"<function=f><parameter=any>{text}</parameter><parameter=b>{text}</parameter></function>"

    message = message_of(deltas_of([call], "qwen3_xml"))

    assert json.loads(message.calls[0].arguments).keys() == {"any", "b"}


def test_the_deltas_of_a_message_add_up() -> None:
    deltas: list[Delta] = [
        Reasoning("a"),
        Reasoning("b"),
        Content("c"),
        CallStarted(0, "f"),
        Arguments(0, "{"),
        Arguments(0, "}"),
    ]

    assert merged(deltas) == [Reasoning("ab"), Content("c"), CallStarted(0, "f"), Arguments(0, "{}")]
    assert message_of(deltas) == Message("c", "ab", [Call("f", "{}")])


def test_a_schema_that_refers_to_itself_a_thousand_times_is_read_all_the_same() -> None:
    schema = {"properties": {"x": {"anyOf": [{"$ref": "#/properties/x"}] * 1000 + [{"type": "integer"}]}}}

    assert parameter_of(schema, "x").types >= {"integer"}


@pytest.mark.parametrize(
    ("content", "within"), [("<think>\nLet me see", True), ("<think>So.</think>It is", False), ("It", False)]
)
def test_a_message_that_is_gone_on_with_may_end_within_reasoning(content: str, within: bool) -> None:
    assert REASONING_FORMATS["qwen3"].is_within(content) is within
