"""Structured output: what is asked for, what the compiler is told, what the engine answers."""

import asyncio
import gc
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fakes.checkpoints import tiny_folder
from fakes.running import Outcome, greedy, run
from fakes.serving import children
from hypothesis import given
from hypothesis import strategies as st

from quire_api import EngineConfig
from quire_engine import LLM, SamplingParams, StructuredOutputs, StructuredOutputsParams
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Grammar, GrammarKind, Request, RequestId, TokenParams
from quire_engine.core.step import Events, FinishReason
from quire_engine.errors import RequestRejected
from quire_engine.grammars.asked import grammar_of, structured_of
from quire_engine.grammars.binding import load, matcher_of
from quire_engine.grammars.compiler import Compiler
from quire_engine.grammars.schema import Unsupported, normalised, whole
from quire_engine.grammars.store import GrammarStore
from quire_engine.process.client import Ask, EngineClient, TokenEvent
from quire_engine.text.tokenizer import Tokenizer

SCHEMAS = int(os.environ.get("QUIRE_TEST_SCHEMAS", "60"))
VOCABULARY, END = 1024, 2
BLOCK_GIB = 16 * 6 * 2 * 2 * 32 * 4 / 2**30  # of quire-tiny in float32
BOMB = {"type": "object", "properties": {f"property {n}": {"type": "string"} for n in range(3000)}}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
}  # fmt: skip


def build(**options: object) -> BuiltEngine:
    depth = options.pop("depth", None)
    config = {"model": "builtin://quire-tiny", "dtype": "float32", "kv_cache_gib": 0.05, **options}
    return build_engine(EngineConfig(**config), depth=depth)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("builtin://quire-tiny", dtype="float32", kv_cache_gib=0.1, max_num_seqs=64)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    compiler = Compiler(Tokenizer(tiny_folder(), VOCABULARY).token_bytes, [END])
    yield compiler
    compiler.close()


def answer(llm: LLM, prompt: str = "Hello", **params: Any) -> Any:
    structured = StructuredOutputs(**{name: params.pop(name) for name in list(params) if name in ASKED})
    params = {"max_tokens": 200, "seed": 1, **params}
    return llm.generate(prompt, SamplingParams(structured_outputs=structured, **params), use_tqdm=False)[0].outputs[0]


ASKED = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


# ---------------------------------------------------------------------- what the model answers


class Schemas:
    """Random ones; whatever they describe is short."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def schema(self) -> dict[str, Any]:
        definitions = {"leaf": self._leaf(), "pair": self._object(1)}
        return {**self._object(3), "$defs": definitions, "title": "t", "description": "d"}

    def _any(self, depth: int) -> dict[str, Any]:
        kinds = [self._leaf, self._leaf, self._reference]
        if depth:
            kinds += [lambda: self._object(depth - 1), lambda: self._array(depth - 1), lambda: self._either(depth - 1)]
        return self._random.choice(kinds)()

    def _leaf(self) -> dict[str, Any]:
        low = self._random.randrange(-50, 50)
        return self._random.choice([
            {"type": "string", "maxLength": self._random.randrange(1, 12)},
            {"type": "string", "minLength": 2, "maxLength": 4},
            {"type": "string", "pattern": "^[a-z]{1,5}(-[0-9]{2})?$"},
            {"type": "string", "pattern": "^(x|yy)$|^z$"},
            {"type": "string", "format": self._random.choice(["date", "time", "date-time", "ipv4", "uuid"])},
            {"type": "integer", "minimum": low, "maximum": low + 100},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 9},
            {"minimum": low, "maximum": low + 5, "type": "integer"},
            {"type": "boolean"},
            {"type": ["null", "boolean"]},
            {"const": self._random.choice([1, "a", None, {"b": [1, {"c": "\"\\é"}]}])},
            {"enum": ["red", "green", 7, None, [1, 2]]},
            {"type": "string", "enum": ["red", "green", 7]},
            {"allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 3}]},
        ])  # fmt: skip

    def _reference(self) -> dict[str, Any]:
        return {"$ref": "#/$defs/leaf", "description": "of another place"}

    def _object(self, depth: int) -> dict[str, Any]:
        names = [f"{'abcdé'[i]}{self._random.randrange(9)}" for i in range(self._random.randrange(1, 5))]
        schema: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        schema["required"] = [name for name in names if self._random.random() < 0.7]
        if self._random.random() < 0.3:
            schema["required"].append("undeclared")
            schema["additionalProperties"] = self._leaf()
            schema["maxProperties"] = len(names) + 1
        elif self._random.random() < 0.5:
            schema["additionalProperties"] = False
        return schema

    def _array(self, depth: int) -> dict[str, Any]:
        schema = {"type": "array", "items": self._any(depth), "maxItems": 3}
        return {**schema, "minItems": self._random.randrange(3)} if self._random.random() < 0.5 else schema

    def _either(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth), {"type": "null"}], "default": None}


def test_any_answer_to_a_schema_is_valid(llm: LLM) -> None:
    """A model that knows nothing of schemas, at temperature 1: the grammar alone does it."""
    schemas = [Schemas(seed).schema() for seed in range(SCHEMAS)]
    params = [
        SamplingParams(max_tokens=1500, temperature=1.0, seed=seed, structured_outputs=StructuredOutputs(json=schema))
        for seed, schema in enumerate(schemas)
    ]

    outputs = llm.generate(["Answer:"] * SCHEMAS, params, use_tqdm=False)

    for schema, output in zip(schemas, outputs, strict=True):
        (seen,) = output.outputs
        assert seen.finish_reason == "stop", (schema, seen.text)
        jsonschema.Draft202012Validator(schema).validate(json.loads(seen.text))


def test_a_string_of_bounded_length_has_no_raw_control_characters(llm: LLM) -> None:
    """The compiler would let them in; JSON does not."""
    schema = {
        "type": "array",
        "items": {"type": "string", "minLength": 1, "maxLength": 8},
        "minItems": 20,
        "maxItems": 20,
    }

    for seed in range(8):
        texts = json.loads(answer(llm, json=schema, seed=seed, temperature=3.0, max_tokens=1500).text)
        assert len(texts) == 20


def test_a_regex_describes_the_whole_answer(llm: LLM) -> None:
    pattern = r"[A-Z]{2}-\d{3}(, [A-Z]{2}-\d{3}){2}"

    texts = {answer(llm, regex=pattern, seed=seed).text for seed in range(5)}

    assert all(re.fullmatch(pattern, text) for text in texts)
    assert len(texts) > 1


def test_a_choice_is_one_of_its_texts(llm: LLM) -> None:
    choices = ['with "quotes"', "back\\slash", "new\nline", "é漢🙂", "tab\tand \x7f"]

    for choice in choices:
        seen = answer(llm, choice=[choice])
        assert (seen.text, seen.finish_reason) == (choice, "stop")
    assert {answer(llm, choice=["yes", "no"], seed=seed, temperature=5.0).text for seed in range(20)} == {"yes", "no"}


def test_a_grammar_of_rules_may_nest(llm: LLM) -> None:
    rules = 'root ::= "(" (root | [a-z]{1,3}) ")"'

    seen = answer(llm, grammar=rules)

    depth = seen.text.count("(")
    assert re.fullmatch(rf"\({{{depth}}}[a-z]{{1,3}}\){{{depth}}}", seen.text)


def test_a_tag_in_free_text_has_its_own_grammar(llm: LLM) -> None:
    content = {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 150}}
    tag = {"type": "tag", "begin": "<age>", "content": content, "end": "</age>"}
    tags = {"type": "triggered_tags", "triggers": ["<a"], "tags": [tag]}
    older = {"structures": [{"begin": "<age>", "schema": content["json_schema"], "end": "</age>"}], "triggers": ["<a"]}

    free = answer(llm, structural_tag=json.dumps({"format": tags}), temperature=0.0, max_tokens=40)
    made = answer(llm, structural_tag=json.dumps({"format": {**tags, "at_least_one": True}}), temperature=0.0)

    assert free.text == plain_answer(llm, temperature=0.0, max_tokens=40).text
    assert re.match(r"<age>\d{1,3}</age>", made.text)
    assert grammar(structural_tag=json.dumps(older)) == grammar(structural_tag=json.dumps({"format": tags}))


def plain_answer(llm: LLM, **params: Any) -> Any:
    return llm.generate("Hello", SamplingParams(**params), use_tqdm=False)[0].outputs[0]


def test_any_object_is_an_object(llm: LLM) -> None:
    for asked in ({"json_object": True}, {"json": True}, {"json": {"type": "object"}}):
        seen = [answer(llm, **asked, seed=seed, max_tokens=400) for seed in range(4)]
        assert all(output.text.startswith("{") for output in seen)
        assert all(isinstance(json.loads(output.text), dict) for output in seen if output.finish_reason == "stop")


def test_the_answer_ends_when_it_can_only_end_whatever_else_was_asked_for(llm: LLM) -> None:
    for more in ({"ignore_eos": True}, {"min_tokens": 100}, {"allowed_token_ids": list(range(3, 1000))}, {"logit_bias": {END: -100}}):  # fmt: skip
        seen = answer(llm, regex="[ab]{3}", **more)
        assert re.fullmatch("[ab]{3}", seen.text), more
        assert (seen.finish_reason, seen.token_ids[-1]) == ("stop", END)


def test_an_end_is_put_off_as_long_as_the_grammar_has_more(llm: LLM) -> None:
    patient = answer(llm, regex="[a-z]+", ignore_eos=True, max_tokens=50)
    least = answer(llm, regex="[a-z]*", min_tokens=20, max_tokens=50)

    assert (patient.finish_reason, len(patient.token_ids)) == ("length", 50)
    assert len(least.token_ids) >= 20
    assert re.fullmatch("[a-z]+", patient.text + least.text)


def test_stop_strings_and_stop_tokens_end_it_earlier(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    (comma,) = tokenizer.encode(",", add_special_tokens=False)

    by_text = answer(llm, regex="[0-9]{2},[0-9]{200}", stop=",")
    by_token = answer(llm, regex="[0-9]{2},[0-9]{200}", stop_token_ids=[comma])

    assert re.fullmatch("[0-9]{2}", by_text.text)
    assert (by_text.finish_reason, by_text.stop_reason) == ("stop", ",")
    assert (by_token.finish_reason, by_token.stop_reason) == ("stop", comma)


def test_several_answers_come_of_one_grammar(llm: LLM) -> None:
    params = SamplingParams(n=6, seed=3, max_tokens=100, structured_outputs=StructuredOutputsParams(json=PERSON))

    outputs = llm.generate("A person:", params, use_tqdm=False)[0].outputs

    for output in outputs:
        jsonschema.validate(json.loads(output.text), PERSON)
    assert len({output.text for output in outputs}) > 1


# ---------------------------------------------------------------------- however it is computed


def grammar(**asked: Any) -> Grammar:
    return grammar_of(StructuredOutputs(**asked))


def mixed(count: int = 32) -> list[Request]:
    """Every other one has a grammar, of five; with all that there is in parameters."""
    grammars = [
        grammar(json=PERSON),
        grammar(regex=r"[a-z]{5,60}\d{3}"),
        grammar(choice=["yes", "no", "perhaps, or perhaps not, who knows"]),
        grammar(json={"type": "array", "items": PERSON, "minItems": 2}),
        grammar(grammar='root ::= "[" (root | [a-z ]{1,9}) ("," root)? "]"'),
    ]
    made = []
    for n in range(count):
        prompt = tuple((11 * i + 3 * (n // 2)) % 900 + 3 for i in range(2 + 5 * n % 61))
        params = TokenParams(
            max_tokens=70,
            min_tokens=6 if n % 5 == 0 else 0,
            temperature=0.0 if n % 4 < 2 else 0.8,
            top_k=0 if n % 3 else 50,
            top_p=0.95 if n % 6 < 3 else 1.0,
            min_p=0.01 if n % 7 == 0 else 0.0,
            seed=n,
            repetition_penalty=1.1 if n % 9 == 0 else 1.0,
            presence_penalty=0.5 if n % 11 == 0 else 0.0,
            bad_words=((40, 41),) if n % 10 == 0 else (),
            logprobs=2,
            stop_token_ids=frozenset({END}),
            grammar=grammars[n // 2 % 5] if n % 2 else None,
        )
        leader = RequestId(n - 2) if n % 8 == 5 else None  # not of the same prompt's length: only some share
        if leader is not None:
            prompt = made[n - 2].prompt
        made.append(Request(id=RequestId(n), prompt=prompt, params=params, leader=leader))
    return made


@pytest.fixture(scope="module")
def alone() -> dict[int, Outcome]:
    return run(build(enable_prefix_caching=False).engine, mixed(), together=False)


WAYS = [(1, False, "", 1), (7, True, "", 2), (4096, True, "", 2), (7, False, "recompute", 1), (4096, True, "swap", 2)]


@pytest.mark.parametrize(("chunk", "caching", "preempted", "depth"), WAYS)
def test_grammars_change_nothing_in_how_tokens_are_computed(
    chunk: int, caching: bool, preempted: str, depth: int, alone: dict[int, Outcome]
) -> None:
    """Alone and together, preempted or not, one step ahead or not; for those without a grammar to the bit."""
    built = build(
        depth=depth,
        max_num_seqs=32,
        max_num_batched_tokens=32 + chunk,
        kv_cache_gib=BLOCK_GIB * (22.5 if preempted else 400),
        long_prefill_token_threshold=4096 if preempted else None,
        swap_space_gib=BLOCK_GIB * 100.5 if preempted == "swap" else 0.0,
        enable_prefix_caching=caching,
        max_model_len=256,
    )

    seen = run(built.engine, mixed())

    for number, expected in alone.items():
        assert seen[number].tokens == expected.tokens, number
        assert seen[number].logprobs == expected.logprobs, number
        assert seen[number].finish is expected.finish
    assert bool(built.engine.load.preemptions) == bool(preempted)


def test_requests_without_a_grammar_get_what_they_got_before_there_were_any(alone: dict[int, Outcome]) -> None:
    plain = [request for request in mixed() if request.params.grammar is None]

    seen = run(build(max_num_seqs=32).engine, plain)

    assert {number: outcome.tokens for number, outcome in seen.items()} == {
        request.id: alone[request.id].tokens for request in plain
    }
    assert any(outcome.finish is FinishReason.STOP for number, outcome in alone.items() if number % 2)


# ---------------------------------------------------------------------- compiling


def test_a_bomb_is_refused_while_others_go_on_and_nothing_is_left_of_it() -> None:
    before = compilers()
    built = build()
    built.engine.add(greedy(0, (5, 6), 2000, stop_token_ids=frozenset()))
    built.engine.add(greedy(1, (5, 6), 10, stop_token_ids=frozenset({END}), grammar=grammar(json=BOMB)))
    events, steps = Events(), 0

    while not events.refused:
        events = built.engine.step()
        steps += len(events.ids)

    assert steps > 10
    assert "cannot be compiled within 0.9 s" in str(events.refused[RequestId(1)])
    assert events.refused[RequestId(1)].param == "structured_outputs"
    assert len(compilers() - before) <= 1  # the next one, which waits
    assert built.engine.load.running == 1


def test_what_takes_some_time_to_compile_is_compiled(compiler: Compiler) -> None:
    slow = {"type": "object", "properties": {f"k{n}": {"type": "boolean"} for n in range(1200)}}  # 0.3 s of a processor

    assert compiler.compile(grammar(json=slow)).memory_size_bytes() > 1 << 20


def compilers() -> set[int]:
    """Processes of ours that compile grammars."""
    gc.collect()  # an engine that is not needed any more ends its own
    return {pid for pid in children(os.getpid()) if "grammars.taster" in Path(f"/proc/{pid}/cmdline").read_text()}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"regex": "("}, "parenthesis is not closed"),
        ({"regex": r"a(?=b)"}, "Lookahead"),
        ({"regex": "a^b"}, "should be at the start"),
        ({"grammar": "root ::= rest"}, '"rest" is not defined'),
        ({"grammar": 'root ::= root "a"'}, "no text of this model's tokens"),
        ({"structural_tag": '{"format": {"type": "nothing"}}'}, "not recognized: nothing"),
        ({"json": {"type": "integer", "minimum": 3, "maximum": 2}}, "minimum greater than maximum"),
        ({"json": {"type": "number", "multipleOf": 3}}, "multipleOf is not supported"),
        ({"json": {"type": "string", "pattern": "a", "maxLength": 3}}, "pattern combined with"),
        ({"json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "oneOf"),
        ({"json": False}, "asks for nothing"),
        ({"json": {"type": "array", "uniqueItems": True}}, '#: "uniqueItems" cannot be guaranteed'),
        ({"json": "{"}, "it is no JSON"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_the_reason(llm: LLM, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestRejected, match=re.escape(says)) as refusal:
        answer(llm, **asked)

    assert refusal.value.param == "structured_outputs"
    assert answer(llm, regex="[ab]").text in "ab"


def test_a_grammar_is_compiled_once_and_kept_while_it_is_used() -> None:
    started = compilers()
    store = GrammarStore(Tokenizer(tiny_folder(), VOCABULARY).token_bytes, [END], kept_bytes=1)
    one, other = grammar(json=PERSON), grammar(regex="a")
    for each in (one, one, other):
        store.hold(each)

    wait_for(store, one, other)
    store.release(one)
    store.hold(one)
    wait_for(store, one)
    before = store.num_compiled
    for each in (one, one, other):
        store.release(each)
    store.hold(one)

    assert before == 2
    assert not store.ready(one)  # it was dropped, being larger than what is kept
    wait_for(store, one)
    assert store.num_compiled == 3
    store.close()
    assert compilers() <= started


def wait_for(store: GrammarStore, *grammars: Grammar) -> None:
    for each in grammars:
        while not store.ready(each):
            store.wait(1)


def test_a_request_that_leaves_while_its_grammar_compiles_is_gone() -> None:
    built = build()
    constrained = greedy(0, (5, 6), 10, stop_token_ids=frozenset({END}), grammar=grammar(regex="[ab]{2}"))
    built.engine.add(constrained)

    events = built.engine.abort(RequestId(0))

    assert events.finished[0].reason is FinishReason.ABORT
    assert not built.engine.has_work
    again = Request(id=RequestId(1), prompt=constrained.prompt, params=constrained.params)
    assert run(built.engine, [again])[1].finish is FinishReason.STOP


def test_an_engine_that_meets_no_grammar_loads_and_starts_nothing() -> None:
    code = (
        "import sys, threading\nfrom quire_engine import LLM\n"
        "llm = LLM('builtin://quire-tiny', kv_cache_gib=0.01)\nllm.generate('a', use_tqdm=False)\n"
        "sys.exit('tvm_ffi' in sys.modules or any(t.name == 'grammars' for t in threading.enumerate()))"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_compiling_needs_is_no_more_than_the_native_library() -> None:
    code = (
        "import sys\nfrom quire_engine.grammars import taster, binding\nsys.modules['torch'] = None\nbinding.load()\n"
        "sys.exit('transformers' in sys.modules or 'xgrammar' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_engine_process_answers_and_refuses_by_grammar() -> None:
    params = TokenParams(max_tokens=50, stop_token_ids=frozenset({END}), grammar=grammar(regex="[ab]{4}"))
    bad = TokenParams(max_tokens=50, stop_token_ids=frozenset({END}), grammar=grammar(regex="("))

    async def ask() -> tuple[list[int], str]:
        client = EngineClient(["--model=builtin://quire-tiny", "--kv-cache-gib=0.01"], lambda report: None)
        await client.start()
        await client.ready
        try:
            tokens: list[int] = []
            async with aclosing(client.generate([Ask(prompt=(5, 6), params=params)])) as batches:
                async for events in batches:
                    tokens += [e.token for e in events if isinstance(e, TokenEvent) and e.token is not None]
            with pytest.raises(RequestRejected, match="parenthesis") as refusal:
                [events async for events in client.generate([Ask(prompt=(5, 6), params=bad)])]
            return tokens, str(refusal.value.param)
        finally:
            await client.stop()

    tokens, param = asyncio.run(ask())

    assert re.fullmatch("[ab]{4}", Tokenizer(tiny_folder(), VOCABULARY).decode(tokens))
    assert param == "structured_outputs"


# ---------------------------------------------------------------------- schemas, before they are compiled

TEXTS = """
    null true false 0 1 3 4 5 6 7 -1 2.5 1e2 "" "a" "ab" "abc" "b" "xax" "2020-02-03" "zz-zz"
    [] [1] [1,1] [1,2] [1,2,3] ["a"] [1,"a"]
    {} {"a":1} {"a":"x"} {"b":1} {"a":1,"b":2} {"b":2,"a":1} {"a":1,"z":true} {"aa":1} {"z":3} {"k":"a"}
"""

# schema -> some texts that must be possible. Whatever is possible must be valid.
EXACT: list[tuple[Any, list[str]]] = [
    ({}, ["1", "{}", "[1]"]),
    (True, ["null"]),
    ({"type": "integer", "multipleOf": 3}, ["6"]),
    ({"minimum": 3}, ["4"]),
    ({"type": ["integer", "null"], "minimum": 3}, ["4", "null"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}], "minimum": 3}, ["4", "null"]),
    ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["4"]),
    ({"allOf": [{"type": ["number", "string"]}, {"type": ["integer", "null"]}]}, ["4"]),
    ({"$ref": "#/$defs/x", "minimum": 3, "$defs": {"x": {"type": "integer"}}}, ["4"]),
    ({"type": "integer", "enum": [1, "a", 1.0, True]}, ["1"]),
    ({"const": {"a": 1}}, ['{"a":1}']),
    ({"type": "string", "pattern": "a"}, ['"xax"', '"a"']),
    ({"type": "string", "pattern": "^a"}, ['"ab"']),
    ({"type": "string", "pattern": "^a|b$"}, ['"ab"', '"b"', '"abc"']),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ['"ab"']),
    ({"type": "string", "format": "date", "minLength": 1, "maxLength": 2083}, ['"2020-02-03"']),
    ({"type": "string", "format": "no such"}, ['"a"']),
    ({"type": "array", "items": [{"type": "integer"}], "additionalItems": {"type": "string"}}, ['[1,"a"]']),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": False}, ["[1]"]),
    ({"minItems": 2, "items": {"type": "integer"}}, ["[1,2]"]),
    ({"type": "object"}, ["{}", '{"a":1,"b":2}']),
    ({"type": "object", "required": ["a"]}, ['{"a":1}', '{"a":1,"z":true}']),
    ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["z"]}, ['{"a":1,"z":true}']),
    ({"type": "object", "required": ["a"], "additionalProperties": {"type": "integer"}}, ['{"a":1,"b":2}']),
    ({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, ['{"a":1}', '{"b":1}']),
    ({"properties": {"a": {"type": "integer"}}, "allOf": [{"properties": {"b": {"minimum": 2}}, "required": ["b"]}]}, ['{"a":1,"b":2}']),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}}, ['{"aa":1}']),
    ({"type": "object", "propertyNames": {"maxLength": 1}}, ['{"a":1}']),
    ({"type": "object", "minProperties": 1, "maxProperties": 1}, ['{"z":3}']),
    ({"unevaluatedProperties": False, "properties": {"a": {"type": "integer"}}}, ['{"a":1}']),
    ({"oneOf": [{"$ref": "#/$defs/a"}, {"type": "integer"}], "$defs": {"a": {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]}}}, ['{"k":"a"}', "3"]),
    ({"type": "object", "properties": {"a": {"anyOf": [{"$ref": "#"}, {"type": "integer"}]}}}, ['{"a":1}', "{}"]),
    ({"type": "string", "minimum": 3, "title": "vacuous", "default": 5}, ['"a"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "possible"), EXACT, ids=lambda value: json.dumps(value)[:60])
def test_all_that_a_schema_lets_through_is_valid(compiler: Compiler, schema: Any, possible: list[str]) -> None:
    compiled = compiler.compile(grammar(json=json.dumps(schema)))

    accepted = [text for text in TEXTS.split() if accepts(compiled, text)]

    assert set(possible) <= set(accepted)
    for text in accepted:
        jsonschema.Draft202012Validator(older(schema)).validate(json.loads(text))


def older(schema: Any) -> Any:
    """The list of items that the newest draft calls otherwise."""
    if isinstance(schema, dict) and isinstance(schema.get("items"), list):
        return {"type": "array", "prefixItems": schema["items"], "items": schema["additionalItems"]}
    return schema


def accepts(compiled: Any, text: str) -> bool:
    matcher = matcher_of(load(), compiled, [END])
    return bool(matcher.accept_string(text, False)) and bool(matcher.is_completed())


@pytest.mark.parametrize(
    "schema",
    [
        *({keyword: {}} for keyword in ("not", "if", "contains", "dependentSchemas", "unevaluatedItems", "$dynamicRef")),
        {"properties": {"a": {"uniqueItems": True}}},
        {"const": 1, "enum": [1]},
        {"enum": [1], "minimum": 3},
        {"enum": ["a"], "type": "integer"},
        {"minimum": 3, "maxLength": 3},
        {"$ref": "http://elsewhere/"},
        {"$ref": "#/$defs/nothing", "minimum": 1},
        {"$ref": "#", "minimum": 1},
        {"type": "frob"},
        {"type": "object", "required": "a"},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"allOf": [{"additionalProperties": False}, {"properties": {"a": {}}}]},
        {"allOf": [{"pattern": "a"}, {"pattern": "b"}]},
        {"anyOf": []},
        {"properties": []},
        {"pattern": 3},
        [1],
        3,
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_schema_that_cannot_be_kept_is_refused(schema: Any) -> None:
    with pytest.raises(Unsupported):
        normalised(schema)


def test_a_schema_may_be_nested_only_so_deep() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(400):
        schema = {"type": "array", "items": schema}

    with pytest.raises(RequestRejected, match="nested"):
        grammar(json=schema)
    with pytest.raises(RequestRejected, match="nested"):
        grammar(json='{"items":' * 100_00 + "{}" + "}" * 100_00)


PIECES = st.sampled_from(["a", "b", "|", "(a|b)", "[a|b]", "a*", r"\|", r"\\", r"\$"])


@given(
    st.booleans(),
    st.booleans(),
    st.lists(PIECES, min_size=1, max_size=6).map("".join),
    st.text(alphabet="ab|\\$", max_size=6),
)
def test_a_pattern_of_the_whole_matches_what_the_pattern_finds(begin: bool, end: bool, middle: str, text: str) -> None:
    pattern = "^" * begin + middle + "$" * end

    assert bool(re.fullmatch(whole(pattern, "#"), text)) == bool(re.search(pattern, text))


# ---------------------------------------------------------------------- what is asked for


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "expected"),
    [
        (None, None, None),
        ({"type": "text"}, None, None),
        ({"type": "json_object"}, None, {"json_object": True}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": PERSON, "strict": True}}, None, {"json": PERSON}),
        ({"type": "text"}, {"choice": ["a"], "regex": None}, {"choice": ["a"]}),
        (None, {"json_object": True, "json": None}, {"json_object": True}),
    ],
)  # fmt: skip
def test_both_shapes_of_a_request_are_understood(
    response_format: Any, structured_outputs: Any, expected: dict[str, Any] | None
) -> None:
    seen = structured_of(response_format, structured_outputs)

    assert seen == (None if expected is None else StructuredOutputs(**expected))
    if seen is not None:
        assert grammar_of(seen).param == ("structured_outputs" if structured_outputs else "response_format")


@pytest.mark.parametrize(
    ("response_format", "structured_outputs", "param"),
    [
        ({"type": "yaml"}, None, "response_format"),
        ({}, None, "response_format"),
        ("json", None, "response_format"),
        ({"type": "json_schema"}, None, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, None, "response_format"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": "no"}}, None, "response_format"),
        ({"type": "json_object"}, {"regex": "a"}, "response_format"),
        (None, {}, "structured_outputs"),
        (None, {"regex": "a", "choice": ["b"]}, "structured_outputs"),
        (None, {"regexp": "a"}, "structured_outputs"),
        (None, {"regex": 3}, "structured_outputs"),
        (None, {"regex": "\ud800"}, "structured_outputs"),
        (None, {"choice": "abc"}, "structured_outputs"),
        (None, {"choice": []}, "structured_outputs"),
        (None, {"choice": [""]}, "structured_outputs"),
        (None, {"choice": [None]}, "structured_outputs"),
        (None, {"json": 3}, "structured_outputs"),
        (None, {"structural_tag": "[]"}, "structured_outputs"),
        (None, {"grammar": "x" * (1 << 19)}, "structured_outputs"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_the_field(
    response_format: Any, structured_outputs: Any, param: str
) -> None:
    with pytest.raises(RequestRejected, match=param) as refusal:
        grammar_of(structured_of(response_format, structured_outputs) or StructuredOutputs(json=True))

    assert refusal.value.param == param


def test_a_grammar_needs_a_tokenizer() -> None:
    bare = LLM("builtin://quire-tiny", kv_cache_gib=0.01, skip_tokenizer_init=True)
    params = SamplingParams(structured_outputs=StructuredOutputs(regex="a"))

    with pytest.raises(RequestRejected, match="needs a tokenizer"):
        bare.generate({"prompt_token_ids": [5]}, params, use_tqdm=False)
    with pytest.raises(RequestRejected, match="must be a StructuredOutputs"):
        SamplingParams(structured_outputs={"regex": "a"})  # type: ignore[arg-type]


def test_grammars_are_the_same_whatever_field_they_came_from() -> None:
    one = Grammar(kind=GrammarKind.REGEX, text="a", param="response_format")

    assert {one: 1}[Grammar(kind=GrammarKind.REGEX, text="a")] == 1
