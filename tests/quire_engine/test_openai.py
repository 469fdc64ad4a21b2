"""The surface through the official openai client: what it parses is what OpenAI's semantics say."""

import asyncio
import base64
import copy
import http.client
import json
import re
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes.serving import Running, children, serving, ticks
from pydantic import BaseModel

from quire_engine.locate import locate_model

pytestmark = pytest.mark.xdist_group("openai")

MODEL = "quire-tiny"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
GREETING = "Hello! I am quire-tiny, the small model that ships with Quire. How can I help you?"
STORY = "<|im_start|>user\nTell me a"
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": text,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": "string"}},
                "required": [key],
                "additionalProperties": False,
            },
        },
    }
    for name, text, key in [
        ("get_weather", "Get the current weather of a city", "city"),
        ("send_mail", "Send a mail to somebody", "to"),
    ]
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    options = ["--dtype=float32", "--kv-cache-gib=0.05", "--max-num-seqs=16"]
    with serving(tmp_path_factory.mktemp("openai"), "serve", "builtin://quire-tiny", *options) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


# ---------------------------------------------------------------------- several answers


def test_n_answers_are_those_of_successive_seeds(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "prompt": STORY, "max_tokens": 12, "temperature": 1.2}
    ask["extra_body"] = {"ignore_eos": True}

    together = client.completions.create(**ask, n=3, seed=7)
    alone = [client.completions.create(**ask, seed=7 + i).choices[0].text for i in range(3)]

    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == alone
    assert together.usage is not None
    assert (together.usage.completion_tokens, together.usage.prompt_tokens) == (36, 6)


def test_a_stream_of_n_answers_has_all_of_each(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": HELLO, "n": 3, "seed": 1, "temperature": 0.7, "max_tokens": 20}

    whole = client.chat.completions.create(**ask)
    texts, reasons, roles = ["", "", ""], [None] * 3, [None] * 3
    for chunk in client.chat.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
            roles[choice.index] = choice.delta.role or roles[choice.index]

    assert texts == [choice.message.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert roles == ["assistant"] * 3


def test_several_prompts_have_choices_in_their_order(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "max_tokens": 8, "temperature": 0}

    both = client.completions.create(**ask, prompt=["Once upon a time", "Hello"], n=2)
    ids = client.completions.create(**ask, prompt=[[5, 6, 7], [8, 9]])
    alone = [client.completions.create(**ask, prompt=text).choices[0].text for text in ("Once upon a time", "Hello")]

    assert [choice.text for choice in both.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert ids.usage is not None
    assert (len(ids.choices), ids.usage.prompt_tokens) == (2, 5)


# ---------------------------------------------------------------------- log probabilities and echo


def test_chat_logprobs_are_those_of_the_tokens_and_their_rivals(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": HELLO, "temperature": 0, "logprobs": True, "top_logprobs": 3}

    choice = client.chat.completions.create(**ask).choices[0]
    chunks = list(client.chat.completions.create(**ask, stream=True))

    assert choice.logprobs is not None
    content = choice.logprobs.content or []
    assert b"".join(bytes(entry.bytes or []) for entry in content[:-1]).decode() == GREETING  # the last one is the end
    for entry in content:
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob)  # greedy: it is the best
    streamed = [e for c in chunks if c.choices and c.choices[0].logprobs for e in c.choices[0].logprobs.content or []]
    assert streamed == content


def test_an_echo_has_the_prompt_and_scores_it(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "prompt": "Once upon a time there was", "temperature": 0, "logprobs": 1}

    plain = client.completions.create(**ask, max_tokens=6)
    echo = client.completions.create(**ask, max_tokens=6, echo=True)
    prompt_alone = client.completions.create(**ask, max_tokens=0, echo=True)
    chunks = list(client.completions.create(**ask, max_tokens=6, echo=True, stream=True))

    scores, made = echo.choices[0].logprobs, plain.choices[0].logprobs
    assert scores is not None
    assert made is not None
    assert scores.tokens
    assert scores.token_logprobs
    assert scores.text_offset
    assert made.tokens
    assert echo.choices[0].text == ask["prompt"] + plain.choices[0].text
    assert "".join(scores.tokens) == echo.choices[0].text
    assert scores.token_logprobs[0] is None
    assert all(logprob is not None and logprob <= 0 for logprob in scores.token_logprobs[1:])
    assert scores.tokens[-6:] == made.tokens
    assert scores.token_logprobs[-6:] == pytest.approx(made.token_logprobs, abs=1e-4)
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert echo.choices[0].text[offset:].startswith(token)
    assert prompt_alone.choices[0].text == ask["prompt"]
    assert prompt_alone.choices[0].logprobs is not None
    assert prompt_alone.choices[0].logprobs.tokens == scores.tokens[:-6]
    assert "".join(chunk.choices[0].text for chunk in chunks) == echo.choices[0].text
    assert [t for c in chunks if c.choices[0].logprobs for t in c.choices[0].logprobs.tokens or []] == scores.tokens
    offsets = [o for c in chunks if c.choices[0].logprobs for o in c.choices[0].logprobs.text_offset or []]
    assert offsets == scores.text_offset


def test_prompt_logprobs_and_token_ids_are_vllms(server: Running) -> None:
    status, done = server.post(
        "/v1/completions", prompt=[5, 6, 7], max_tokens=2, temperature=0, prompt_logprobs=1, return_token_ids=True
    )

    assert status == 200
    choice = done["choices"][0]
    assert choice["prompt_token_ids"] == [5, 6, 7]
    assert len(choice["token_ids"]) == 2
    assert choice["prompt_logprobs"][0] is None
    for token, row in zip([6, 7], choice["prompt_logprobs"][1:], strict=True):
        assert set(row[str(token)]) == {"logprob", "rank", "decoded_token"}
        assert min(entry["rank"] for entry in row.values()) == 1


def test_the_first_chunk_of_a_stream_has_the_prompts_ids(server: Running) -> None:
    def chunks(path: str, **body: Any) -> list[Any]:
        _, _, data = server.request("POST", path, {"stream": True, "max_tokens": 3, "return_token_ids": True, **body})
        events = data.decode().split("\n\n")
        return [json.loads(event.removeprefix("data: ")) for event in events if event and "[DONE]" not in event]

    text = chunks("/v1/completions", prompt=[5, 6, 7], n=2)
    chat = chunks("/v1/chat/completions", messages=HELLO)

    told = [choice["prompt_token_ids"] for chunk in text for choice in chunk["choices"] if "prompt_token_ids" in choice]
    assert told == [[5, 6, 7]] * 2
    _, expected = server.post("/tokenize", messages=HELLO)
    assert [chunk["prompt_token_ids"] for chunk in chat if "prompt_token_ids" in chunk] == [expected["tokens"]]
    assert "prompt_token_ids" in chat[0]


# ---------------------------------------------------------------------- streams


def test_usage_may_come_with_every_chunk(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}

    chunks = list(
        client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, stream=True, stream_options=options)
    )

    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[-1] == counts[-2]
    assert chunks[-1].choices == []


def test_many_streams_of_one_async_client(server: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, question: str) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": question}], temperature=0, stream=True
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, "Hello!") for _ in range(24)))

    assert asyncio.run(all_of_them()) == [GREETING] * 24


def test_the_clients_streaming_helper_gets_the_whole_message(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()

    assert final.choices[0].message.content == GREETING
    assert final.choices[0].finish_reason == "stop"


# ---------------------------------------------------------------------- tools


def test_a_tool_is_called_when_the_model_wants_to(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": WEATHER, "tools": TOOLS[:1], "temperature": 0}

    choice = client.chat.completions.create(**ask).choices[0]
    calls: dict[int, list[str]] = {}
    reasons = []
    for chunk in client.chat.completions.create(**ask, stream=True):
        reasons.append(chunk.choices[0].finish_reason)
        for call in chunk.choices[0].delta.tool_calls or []:
            parts = calls.setdefault(call.index, ["", ""])
            assert call.function is not None
            parts[0] += call.function.name or ""
            parts[1] += call.function.arguments or ""

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (made,) = choice.message.tool_calls or []
    assert (made.type, made.id[:5]) == ("function", "call_")
    assert (made.function.name, json.loads(made.function.arguments)) == ("get_weather", {"city": "Paris"})
    assert calls == {0: ["get_weather", made.function.arguments]}
    assert reasons[-1] == "tool_calls"


def test_the_answer_of_a_tool_goes_back_to_the_model(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model=MODEL, messages=WEATHER, tools=TOOLS[:1], temperature=0)
    message = first.choices[0].message
    assert message.tool_calls
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"weather": "sunny"}'}

    done = client.chat.completions.create(
        model=MODEL, messages=[*WEATHER, message.model_dump(exclude_none=True), answer], tools=TOOLS[:1], temperature=0
    )

    assert done.choices[0].message.content
    assert not done.choices[0].message.tool_calls


def test_without_tools_and_with_none_nothing_is_a_call(client: openai.OpenAI) -> None:
    prompt: Any = [{"role": "user", "content": "What is the weather in Paris?"}]

    none = client.chat.completions.create(
        model=MODEL, messages=prompt, tools=TOOLS, tool_choice="none", temperature=0, max_tokens=40
    )
    without = client.chat.completions.create(model=MODEL, messages=prompt, temperature=0, max_tokens=40)

    assert none.choices[0].message.tool_calls is None
    assert none.choices[0].message.content == without.choices[0].message.content


@pytest.mark.parametrize("seed", range(4))
def test_a_required_call_is_made_and_valid_whatever_the_model_would_rather_say(
    client: openai.OpenAI, seed: int
) -> None:
    tools = copy.deepcopy(TOOLS)
    for tool in tools:
        for schema in tool["function"]["parameters"]["properties"].values():
            schema["maxLength"] = 20
    ask: Any = {"model": MODEL, "messages": HELLO, "tools": tools, "seed": seed, "max_tokens": 400}

    required = client.chat.completions.create(**ask, tool_choice="required", temperature=1.0).choices[0]
    named = client.chat.completions.create(
        **ask, tool_choice={"type": "function", "function": {"name": "send_mail"}}, temperature=1.0
    ).choices[0]

    assert required.finish_reason == "tool_calls"
    for call in required.message.tool_calls or []:
        key = {"get_weather": "city", "send_mail": "to"}[call.function.name]
        assert list(json.loads(call.function.arguments)) == [key]
    assert required.message.tool_calls
    assert [call.function.name for call in named.message.tool_calls or []] == ["send_mail"]
    assert named.finish_reason == "stop"


def test_no_more_than_one_call_where_only_one_is_wanted(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, temperature=1.5, seed=3,
        max_tokens=300,
    )  # fmt: skip

    assert len(done.choices[0].message.tool_calls or []) == 1


def test_the_model_writes_no_second_call_where_only_one_is_wanted(server: Running) -> None:
    """It is not only hidden: the grammar does not let it."""
    _, done = server.post(
        "/v1/chat/completions", messages=HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=False,
        temperature=1.5, seed=3, max_tokens=300, return_token_ids=True,
    )  # fmt: skip

    _, text = server.post("/detokenize", tokens=done["choices"][0]["token_ids"])
    assert text["prompt"].count("<tool_call>") == 1


# ---------------------------------------------------------------------- structure


class Fruit(BaseModel):
    name: str
    colour: str
    ripe: bool


def test_parse_gives_an_instance_of_the_clients_class(client: openai.OpenAI) -> None:
    done = client.chat.completions.parse(
        model=MODEL, messages=[{"role": "user", "content": "Describe a lemon in JSON."}], response_format=Fruit, seed=2,
        max_tokens=200,
    )  # fmt: skip

    assert isinstance(done.choices[0].message.parsed, Fruit)


def test_structured_outputs_are_known_by_their_older_names(server: Running) -> None:
    ask: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 8}

    _, done = server.post("/v1/chat/completions", guided_choice=["maybe", "never"], **ask)
    status, refused = server.post("/v1/chat/completions", guided_regex="a+", structured_outputs={"regex": "b+"}, **ask)

    assert done["choices"][0]["message"]["content"] in ("maybe", "never")
    assert (status, refused["error"]["param"]) == (400, "structured_outputs")


def test_json_object_and_vllms_structured_outputs(client: openai.OpenAI) -> None:
    ask: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 120, "seed": 5}

    lemon = {**ask, "messages": [{"role": "user", "content": "Describe a lemon in JSON."}], "temperature": 0}
    anything = client.chat.completions.create(**lemon, response_format={"type": "json_object"})
    colour = client.chat.completions.create(**ask, extra_body={"structured_outputs": {"choice": ["red", "green"]}})
    date = client.chat.completions.create(**ask, extra_body={"structured_outputs": {"regex": r"\d{4}-\d{2}"}})

    assert anything.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(anything.choices[0].message.content or ""), dict)
    assert colour.choices[0].message.content in ("red", "green")
    assert (date.choices[0].message.content or "")[4] == "-"


def test_a_schema_that_cannot_be_kept_is_refused(client: openai.OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strange"}}}

    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=MODEL, messages=HELLO, response_format=schema)

    assert error.value.param == "response_format"


# ---------------------------------------------------------------------- tokens


def test_tokenize_and_detokenize_are_inverse(server: Running) -> None:
    text = "Once upon a time – ünïcödé 🍋"

    _, tokens = server.post("/tokenize", prompt=text, return_token_strs=True)
    _, back = server.post("/detokenize", tokens=tokens["tokens"])
    _, chat = server.post("/tokenize", messages=HELLO)

    assert back["prompt"] == text
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"])
    assert tokens["max_model_len"] == 2048
    _, rendered = server.post("/detokenize", tokens=chat["tokens"])
    assert rendered["prompt"] == "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


def test_the_last_message_can_be_gone_on_with(server: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Hello! I am quire-tiny, the small"}]

    _, done = server.post("/v1/chat/completions", messages=messages, temperature=0, continue_final_message=True)

    assert done["choices"][0]["message"]["content"] == GREETING.removeprefix(messages[-1]["content"])


def test_what_is_gone_on_with_is_the_content_and_not_what_looks_like_it(server: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "end "}]

    _, tokens = server.post("/tokenize", messages=messages, continue_final_message=True, add_generation_prompt=False)
    _, text = server.post("/detokenize", tokens=tokens["tokens"])

    assert text["prompt"].endswith("<|im_start|>assistant\nend ")


def test_an_echo_of_a_chat_is_of_what_is_gone_on_with(server: Running) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Hello! I am quire-tiny, the small"}]
    ask: dict[str, Any] = {"temperature": 0, "echo": True}

    _, theirs = server.post("/v1/chat/completions", messages=HELLO, **ask)
    _, ours = server.post("/v1/chat/completions", messages=begun, continue_final_message=True, **ask)

    assert [done["choices"][0]["message"]["content"] for done in (theirs, ours)] == [GREETING] * 2


def test_parts_of_a_content_are_lines(server: Running) -> None:
    parts = [
        {"type": "text", "text": "one"},
        {"type": "input_text", "text": "two"},
        {"type": "refusal", "refusal": "three"},
    ]

    counted = [
        server.post("/tokenize", messages=[{"role": "user", "content": content}])[1]["tokens"]
        for content in (parts, "one\ntwo\nthree")
    ]

    assert counted[0] == counted[1]


def test_a_request_need_not_name_the_model(server: Running) -> None:
    status, _, data = server.request("POST", "/v1/completions", {"prompt": "Hello", "max_tokens": 1})

    assert (status, json.loads(data)["model"]) == (200, "quire-tiny")


def test_a_model_that_makes_text_makes_no_embeddings(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="makes text, no embeddings"):
        client.embeddings.create(model=MODEL, input="x")


def test_a_salt_keeps_tenants_apart(server: Running) -> None:
    """What one tenant sent is not found in the cache by another."""
    prompt = list(range(20, 84))

    def cached(**more: Any) -> int:
        _, done = server.post("/v1/completions", prompt=prompt, max_tokens=1, **more)
        return int(done["usage"]["prompt_tokens_details"]["cached_tokens"])

    cached(cache_salt="a")
    assert cached(cache_salt="a") > 0
    assert cached(cache_salt="b") == 0
    assert cached() == 0


# ---------------------------------------------------------------------- embeddings


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    from fakes.checkpoints import write_embedder

    folder = write_embedder(tmp_path_factory.mktemp("bert"))
    options = ["--dtype=float32", "--served-model-name=bert"]
    with serving(tmp_path_factory.mktemp("embed"), "serve", str(folder), *options) as running:
        yield running


def test_embeddings_are_the_librarys(embedder: Running) -> None:
    from quire_engine.llm import LLM

    texts = ["hello there", "a", "hello there"]
    with openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model="bert", input=texts)  # as base64, which the client prefers
        plain = client.embeddings.create(model="bert", input=texts[0], encoding_format="float")

    assert [row.index for row in made.data] == [0, 1, 2]
    assert made.data[0].embedding == made.data[2].embedding != made.data[1].embedding
    assert plain.data[0].embedding == pytest.approx(made.data[0].embedding, abs=1e-6)
    assert made.usage.prompt_tokens > 0
    with pytest.raises(openai.BadRequestError, match="makes embeddings, no text"):
        openai.OpenAI(base_url=f"{embedder.url}/v1", api_key="none").completions.create(model="bert", prompt="x")
    folder = embedder.process.args[embedder.process.args.index("serve") + 1]  # type: ignore[union-attr, index]
    expected = LLM(str(folder), dtype="float32").embed(texts[0])[0].outputs.embedding
    assert made.data[0].embedding == pytest.approx(expected, abs=1e-5)


def test_a_text_that_is_cut_ends_as_a_whole_one_does(embedder: Running) -> None:
    """As sentence-transformers cuts it: the tokens that a model expects around a text stay."""
    import tokenizers

    folder = Path(embedder.process.args[embedder.process.args.index("serve") + 1])  # type: ignore[union-attr, index]
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    theirs.enable_truncation(5)
    text = "the quick brown fox jumps over the lazy dog"

    cut = embedder.post("/v1/embeddings", model="bert", input=text, truncate_prompt_tokens=5)[1]
    whole = embedder.post("/v1/embeddings", model="bert", input=text * 300, truncate_prompt_tokens=-1)[1]

    expected = embedder.post("/v1/embeddings", model="bert", input=[theirs.encode(text).ids])[1]
    assert cut["data"][0]["embedding"] == pytest.approx(expected["data"][0]["embedding"], abs=1e-6)
    assert cut["usage"]["prompt_tokens"] == 5
    assert whole["usage"]["prompt_tokens"] > 5


def test_many_texts_are_embedded_and_one_that_is_none_is_named(embedder: Running) -> None:
    status, done = embedder.post("/v1/embeddings", model="bert", input=[[5, 6, 7]] * 2000, encoding_format="base64")

    assert status == 200
    rows = {row["embedding"] for row in done["data"]}
    assert len(done["data"]) == 2000
    assert len(rows) == 1
    (vector,) = rows
    assert len(base64.b64decode(vector)) % struct.calcsize("f") == 0
    status, answer = embedder.post("/v1/embeddings", model="bert", input=[[5], [10**6]])
    assert (status, "input 1" in answer["error"]["message"]) == (400, True)


def test_a_small_request_does_not_wait_for_a_large_one(embedder: Running) -> None:
    """They take turns; and whoever leaves takes the rest of his work along."""
    large = json.dumps({"model": "bert", "input": [list(range(5, 69))] * 2000}).encode()
    link = http.client.HTTPConnection("127.0.0.1", embedder.port, timeout=100)
    link.request("POST", "/v1/embeddings", large, {"content-type": "application/json"})

    status, _ = embedder.post("/v1/embeddings", model="bert", input=[5, 6])

    assert status == 200
    link.sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        link.sock.recv(1)  # the large one is not there yet
    link.close()
    deadline = time.monotonic() + 10
    while metric(embedder, "quire_requests_inside"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (engine,) = children(embedder.process.pid)
    before = ticks(engine)
    time.sleep(1.0)
    assert ticks(engine) - before <= 30  # hundredths of a second: nobody computes for the one who has left


def metric(server: Running, name: str) -> float:
    text = server.request("GET", "/metrics")[2].decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + "{"))


# ---------------------------------------------------------------------- other formats


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content is none }}{{ ' calls' if 'tool_calls' in m }}"
    template += "{{ ' thought ' + m.reasoning_content if m.reasoning_content }}\n{% endfor %}assistant:"
    options = ["--kv-cache-gib=0.05", "--tool-call-parser=mistral", f"--chat-template={template}"]
    with serving(tmp_path_factory.mktemp("mistral"), "serve", "builtin://quire-tiny", *options) as running:
        yield running


def test_ids_of_calls_are_as_the_models_own_template_wants_them(mistral: Running) -> None:
    _, done = mistral.post(
        "/v1/chat/completions", messages=HELLO, tools=TOOLS, max_tokens=300, seed=1, temperature=1.0,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )  # fmt: skip

    (call,) = done["choices"][0]["message"]["tool_calls"]
    assert re.fullmatch("[a-zA-Z0-9]{9}", call["id"])
    assert call["function"]["name"] == "get_weather"


def test_a_template_sees_that_a_message_has_no_content(mistral: Running) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": [call]}]

    _, tokens = mistral.post("/tokenize", messages=messages)
    _, text = mistral.post("/detokenize", tokens=tokens["tokens"])

    assert text["prompt"] == "user: False\nassistant: True calls\nassistant:"


def test_a_template_is_given_what_models_were_trained_on(mistral: Running) -> None:
    """Neither null, where nothing stands for it, nor an empty list, nor a role that it does not know."""
    messages = [
        {"role": "developer", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "x", "reasoning": "hm"}, {"role": "tool", "content": None},
    ]  # fmt: skip

    _, tokens = mistral.post("/tokenize", messages=messages)
    _, text = mistral.post("/detokenize", tokens=tokens["tokens"])

    seen = [
        "system: False",
        "user: False",
        "assistant: False",
        "assistant: False thought hm",
        "tool: False",
        "assistant:",
    ]
    assert text["prompt"].split("\n") == seen


def test_what_a_request_leaves_open_is_as_the_checkpoint_says(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(locate_model("builtin://quire-tiny"), folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**generation, "temperature": 0.0}))
    with serving(tmp_path, "serve", str(folder), "--kv-cache-gib=0.05", "--served-model-name=quire-tiny") as server:
        answers = {
            server.post("/v1/chat/completions", messages=HELLO)[1]["choices"][0]["message"]["content"] for _ in range(4)
        }
        _, other = server.post("/v1/completions", prompt=STORY, temperature=2.0, max_tokens=40, seed=3, ignore_eos=True)
        _, greedy = server.post("/v1/completions", prompt=STORY, max_tokens=40, ignore_eos=True)

    assert answers == {GREETING}
    assert other["choices"][0]["text"] != greedy["choices"][0]["text"]
