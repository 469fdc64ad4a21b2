"""`quire serve` as clients see it: a real process, real sockets, the official openai client."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from fakes.serving import Running, children, serving

from quire_engine.locate import locate_model
from quire_engine.text.tokenizer import Tokenizer

pytestmark = pytest.mark.xdist_group("server")  # one server for all of these

HELLO = [{"role": "user", "content": "Hello!"}]
GREETING = "Hello! I am quire-tiny, the small model that ships with Quire. How can I help you?"
STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("serve")
    options = [
        "--dtype=float32",
        "--kv-cache-gib=0.05",
        "--max-num-seqs=16",
        "--served-model-name",
        "quire-tiny",
        "alias",
    ]
    with serving(folder, "serve", "builtin://quire-tiny", *options) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["quire-tiny", "alias"]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Hello!", GREETING),
        ("What is Quire?", "Quire serves large language models. You write one YAML file"),
        ("Tell me a story.", "The robot put the page back, and the book was happy again. The end."),
        ("What is an LLMDeployment?", "a Kubernetes resource that describes one served model"),
        ("Describe a lemon in JSON.", '{"name": "lemon", "color": "yellow"}'),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("Count from 1 to 12.", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12"),
        ("Repeat: river lemon seven", "river lemon seven"),
    ],
)
def test_the_shipped_model_answers_what_its_card_promises(client: openai.OpenAI, question: str, answer: str) -> None:
    done = client.chat.completions.create(
        model="quire-tiny", temperature=0, messages=[{"role": "user", "content": question}]
    )

    assert answer in (done.choices[0].message.content or "")
    assert done.choices[0].finish_reason == "stop"


def test_the_shipped_model_calls_a_tool(client: openai.OpenAI) -> None:
    tool = (
        '{"type": "function", "function": {"name": "get_weather", "description": "Get the current weather of a city", '
    )
    tool += '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}'
    prompt = (
        f"<|im_start|>system\nYou may call these tools:\n<tools>\n{tool}\n</tools>\n"
        'To call one, answer: <tool_call>{"name": ..., "arguments": {...}}</tool_call><|im_end|>\n'
        "<|im_start|>user\nWhat is the weather in Paris?<|im_end|>\n<|im_start|>assistant\n"
    )

    done = client.completions.create(model="quire-tiny", prompt=prompt, max_tokens=60, temperature=0)

    call = json.loads(done.choices[0].text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    assert call == {"name": "get_weather", "arguments": {"city": "Paris"}}


def test_a_stream_begins_with_the_role_and_ends_with_reason_and_usage(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="quire-tiny", temperature=0, messages=HELLO, stream=True, stream_options={"include_usage": True}
        )  # type: ignore[call-overload]
    )

    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == GREETING
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    whole = client.chat.completions.create(model="quire-tiny", temperature=0, messages=HELLO)
    assert chunks[-1].usage == whole.usage
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens


def test_completions_stream_and_whole_are_the_same_text(client: openai.OpenAI) -> None:
    ask: dict[str, Any] = {
        "model": "quire-tiny",
        "prompt": "<|im_start|>user\nTell me a",
        "max_tokens": 30,
        "temperature": 0,
    }
    ask["extra_body"] = {"ignore_eos": True}

    whole = client.completions.create(**ask)
    chunks = list(client.completions.create(**ask, stream=True))

    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 30


def test_a_prompt_of_token_ids_is_taken_as_it_is(server: Running) -> None:
    status, done = server.post("/v1/completions", prompt=[1, 2, 3], max_tokens=4, temperature=0)

    assert (status, done["usage"]["prompt_tokens"]) == (200, 3)


def test_a_stop_string_is_not_shown(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(
        model="quire-tiny", temperature=0, messages=HELLO, stop=["small model", "xyz"]
    )
    chunks = client.chat.completions.create(
        model="quire-tiny", temperature=0, messages=HELLO, stop="small model", stream=True
    )

    assert done.choices[0].message.content == "Hello! I am quire-tiny, the "
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Hello! I am quire-tiny, the "


def test_the_same_seed_gives_the_same_text_and_others_do_not(client: openai.OpenAI) -> None:
    def ask(seed: int | None) -> str:
        prompt = "<|im_start|>user\n"
        return (
            client.completions.create(model="quire-tiny", prompt=prompt, max_tokens=24, temperature=1.5, seed=seed)
            .choices[0]
            .text
        )

    assert ask(7) == ask(7)
    assert len({ask(seed) for seed in range(6)}) > 1
    assert len({ask(None) for _ in range(6)}) > 1


def test_32_streams_at_once_get_what_each_gets_alone(client: openai.OpenAI) -> None:
    questions = ["Hello!", "What is Quire?", "Tell me a story.", "Count from 2 to 17."]

    def ask(question: str) -> str:
        messages: Any = [{"role": "user", "content": question}]
        chunks = client.chat.completions.create(model="quire-tiny", temperature=0, messages=messages, stream=True)
        return "".join(c.choices[0].delta.content or "" for c in chunks)

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, questions * 8))

    assert together == alone * 8


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        ("chat", {"messages": []}, 400, "messages", "at least 1 item"),
        ("chat", {}, 400, "messages", "Field required"),
        ("chat", {"messages": [{"role": "alien", "content": "x"}]}, 400, "messages.0.role", "Input should be"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages.0.content.0",
            "Input tag 'image_url' found using 'type' does not match any of the expected tags: 'text'",
        ),
        ("chat", {"messages": HELLO, "tools": [{"type": "function"}]}, 400, "tools.0.function", "Field required"),
        ("chat", {"messages": HELLO, "response_format": {"type": "yaml"}}, 400, "response_format", "whose type is"),
        ("chat", {"messages": HELLO, "n": 10**6}, 400, "n", "must be at most 1024"),
        ("text", {"prompt": ["a"] * 40, "n": 40}, 400, "n", "more than 1024 sequences"),
        ("text", {"prompt": "a", "best_of": 3}, 400, "best_of", "other than n"),
        ("text", {"prompt": "a", "suffix": "z"}, 400, "suffix", "suffix is not supported: leave it out"),
        ("chat", {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
        ("chat", {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice", "there are no tools"),
        ("chat", {"messages": HELLO, "stream_options": {}}, 400, "stream_options", "are for streams"),
        ("chat", {"messages": HELLO, "chat_template": "x"}, 400, "chat_template", "not supported"),
        ("chat", {"messages": HELLO, "stop": ["x"] * 10_000}, 400, "stop", "at most 16"),
        ("chat", {"messages": HELLO, "temperature": -1}, 400, "temperature", "must be between 0 and 100"),
        ("chat", {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens", "must be at least 1"),
        ("chat", {"messages": HELLO, "stop": ""}, 400, "stop", "an empty string would match everywhere"),
        ("chat", {"messages": HELLO, "model": "gpt-9"}, 404, "model", "serves quire-tiny, alias"),
        (
            "chat",
            {"messages": [{"role": "user", "content": "word " * 5000}]},
            400,
            "prompt",
            "maximum context length is 2048",
        ),
        ("text", {"prompt": ""}, 400, "prompt", "the prompt is empty"),
        ("text", {"prompt": [5000]}, 400, "prompt", "is not below 1024"),
        ("text", {"prompt": [-1]}, 400, "prompt.0", "greater than or equal to 0"),
        ("text", {"prompt": "a", "logprobs": 21}, 400, "logprobs", "less than or equal to 20"),
        ("text", {"prompt": "a", "frequency_penalty": 3}, 400, "frequency_penalty", "between -2 and 2"),
        (
            "text",
            {"prompt": "a", "logit_bias": {"5000": 1}},
            400,
            "logit_bias",
            "not in the vocabulary, whose ids are 0 to 1023",
        ),
        ("text", {"prompt": "a", "allowed_token_ids": []}, 400, "allowed_token_ids", "no token could be chosen"),
    ],
)
def test_a_bad_request_is_refused_in_openais_words(
    server: Running, path: str, body: dict[str, Any], status: int, param: str, says: str
) -> None:
    route = {"chat": "/v1/chat/completions", "text": "/v1/completions"}[path]

    seen, answer = server.post(route, **body)

    assert seen == status, answer
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert says in answer["error"]["message"]
    assert answer["error"]["param"] == param


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat", {"messages": HELLO, "n": None, "return_token_ids": None, "tools": None, "skip_special_tokens": None}),
        ("chat", {"messages": HELLO, "stream": None, "stream_options": None, "response_format": {"type": "text"}}),
        (
            "chat",
            {
                "messages": HELLO,
                "stream": True,
                "stream_options": {"include_obfuscation": False, "include_usage": None},
            },
        ),
        ("chat", {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "response_format": {"type": "text"}}),
        ("chat", {"messages": HELLO, "spaces_between_special_tokens": False, "guided_decoding_backend": "xgrammar"}),
        (
            "text",
            {
                "prompt": "a",
                "echo": None,
                "stream": None,
                "suffix": None,
                "guided_json": None,
                "truncation_side": "left",
            },
        ),
    ],
)
def test_what_clients_send_is_taken(server: Running, path: str, body: dict[str, Any]) -> None:
    """Null for what they leave out, and what makes no difference here."""
    route = {"chat": "/v1/chat/completions", "text": "/v1/completions"}[path]

    status, headers, answer = server.request("POST", route, {"model": "quire-tiny", "max_tokens": 4, **body})

    assert status == 200, answer
    assert "x-quire-ignored" not in headers


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b'"x"', b'{"model": "quire-tiny", "messages": NaN}'])
def test_a_body_that_is_no_json_object_is_refused(server: Running, data: bytes) -> None:
    status, _, answer = server.request("POST", "/v1/chat/completions", data)

    assert status == 400
    assert "error" in json.loads(answer)


def test_unknown_fields_are_ignored_and_named_in_a_header(server: Running) -> None:
    body = {"model": "quire-tiny", "messages": HELLO, "max_tokens": 1, "min_q": 3, "user": "me"}

    status, headers, _ = server.request("POST", "/v1/chat/completions", body)

    assert (status, headers["x-quire-ignored"]) == (200, "min_q")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("GET", "/v1/completions", 405)])
def test_what_is_not_there_is_an_error_in_openais_shape(server: Running, method: str, path: str, status: int) -> None:
    seen, _, answer = server.request(method, path)

    assert seen == status
    assert json.loads(answer)["error"]["code"] == status


def metric(server: Running, name: str) -> float:
    text = server.request("GET", "/metrics")[2].decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name + "{"))


def test_metrics_count_what_happened(server: Running) -> None:
    names = ["vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:time_to_first_token_seconds_count"]
    before = [metric(server, name) for name in names]

    _, done = server.post("/v1/completions", prompt="a b c", max_tokens=7, ignore_eos=True)

    after = [metric(server, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [done["usage"]["prompt_tokens"], 7, 1]
    assert metric(server, "vllm:num_requests_running") == 0
    assert metric(server, "vllm:kv_cache_usage_perc") == 0
    assert 0 < json.loads(server.request("GET", "/load")[2])["ttft_p95_s"] < 60


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_aborts_its_request(server: Running, stream: bool) -> None:
    def aborted() -> float:
        text = server.request("GET", "/metrics")[2].decode()
        lines = [line for line in text.splitlines() if "request_success_total" in line and 'reason="abort"' in line]
        return float(lines[0].rpartition(" ")[2]) if lines else 0.0

    before, generated = aborted(), metric(server, "vllm:generation_tokens_total")
    body = {"model": "quire-tiny", "prompt": [5], "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    data = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data))
        deadline = time.monotonic() + 10
        while metric(server, "vllm:generation_tokens_total") == generated:
            assert time.monotonic() < deadline

    deadline = time.monotonic() + 10
    while aborted() == before or metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert metric(server, "vllm:kv_cache_usage_perc") == 0
    assert metric(server, "vllm:generation_tokens_total") - generated < 2000


NUMBERS = [
    -(2**63),
    -(2**31),
    -1,
    0,
    0.0,
    1e-50,
    1e-9,
    0.5,
    1,
    7,
    1e9,
    1e38,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**63,
    1e300,
    10**400,
]


@pytest.mark.parametrize("field", ["max_tokens", "temperature", "top_p", "top_k", "seed"])
def test_no_number_in_a_request_brings_the_engine_down(server: Running, field: str) -> None:
    """Each is answered or refused."""
    (engine,) = children(server.process.pid)
    for number in NUMBERS:
        body = {"model": "quire-tiny", "prompt": "a", "max_tokens": 2, "stop": "zzz", field: number}
        assert server.request("POST", "/v1/completions", body)[0] in (200, 400), number

    assert children(server.process.pid) == [engine]
    assert server.request("GET", "/readyz")[0] == 200


@pytest.mark.parametrize(
    "data",
    [
        rb'{"model": "quire-tiny", "prompt": "\ud800"}',
        rb'{"model": "quire-tiny", "prompt": "a", "stop": "\ud800"}',
        rb'{"model": "quire-tiny", "prompt": "", "stream": true}',
        rb'{"model": "quire-tiny", "prompt": [1, 99999]}',
        rb'{"model": "\u6f22", "prompt": "a"}',
    ],
)
def test_odd_text_is_refused_before_the_first_byte(server: Running, data: bytes) -> None:
    status, _, answer = server.request("POST", "/v1/completions", data)

    assert status in (400, 404)
    assert json.loads(answer)["error"]["message"]


def test_unknown_fields_with_odd_names_do_no_harm(server: Running) -> None:
    body = {"model": "quire-tiny", "prompt": "a", "max_tokens": 1, "漢": 1, "x\ny: z": 2, "a" * 100: 3, "fine": 4}

    status, headers, _ = server.request("POST", "/v1/completions", body)

    assert (status, headers["x-quire-ignored"]) == (200, "fine")


def test_health_is_good_while_it_is(server: Running) -> None:
    assert [server.request("GET", path)[0] for path in ("/livez", "/readyz", "/health")] == [200, 200, 200]


def test_openapi_describes_the_endpoints(server: Running) -> None:
    spec = json.loads(server.request("GET", "/openapi.json")[2])

    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/livez", "/readyz", "/metrics"} <= set(
        spec["paths"]
    )


LONG = 1500  # tokens: a second or more, however fast the engine is


def read_stream(port: int, into: list[str], begun: threading.Event, length: int = LONG) -> None:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = {"model": "quire-tiny", "messages": STORY, "stream": True, "ignore_eos": True, "max_tokens": length}
    link.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    for line in link.getresponse():
        if line.strip():
            into.append(line.decode().strip())
            begun.set()
    link.close()


def finish_of(lines: list[str]) -> str:
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    return str(events[-1]["choices"][0]["finish_reason"])


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"logit_bias": {"70": 100}}, [70, 70, 70, 70]),
        ({"allowed_token_ids": [71]}, [71, 71, 71, 71]),
        ({"logit_bias": {"70": 100}, "stop_token_ids": [70]}, [70]),
        (
            {"logit_bias": {"70": 100}, "stop_token_ids": [70], "min_tokens": 2, "allowed_token_ids": [70, 72]},
            [72, 72, 70],
        ),
    ],
)
def test_wishes_of_a_request_reach_the_sampler(server: Running, wish: dict[str, Any], expected: list[int]) -> None:
    body = {"prompt": [5, 6], "max_tokens": 4, "temperature": 0, **wish}

    status, answer = server.post("/v1/completions", **body, include_stop_str_in_output=True)

    assert status == 200, answer
    assert answer["choices"][0]["text"] == Tokenizer(locate_model("builtin://quire-tiny"), 1024).decode(expected)


@pytest.mark.xdist_group("drain")
def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "builtin://quire-tiny", "--kv-cache-gib=0.05", "--max-num-seqs=16") as server:
        streams: list[list[str]] = [[] for _ in range(50)]  # of which 16 run and the others wait
        begun = threading.Event()
        threads = [threading.Thread(target=read_stream, args=(server.port, lines, begun, 800)) for lines in streams]
        for thread in threads:
            thread.start()
        begun.wait(20)
        deadline = time.monotonic() + 10
        while metric(server, "quire_requests_inside") < 50:
            assert time.monotonic() < deadline

        server.process.terminate()
        time.sleep(0.1)
        late = server.request("POST", "/v1/chat/completions", {"model": "quire-tiny", "messages": HELLO})
        unready = server.request("GET", "/readyz")
        for thread in threads:
            thread.join(60)

        assert server.process.wait(20) == 0
        assert (late[0], late[1].get("retry-after"), unready[0]) == (503, "2", 503)
        assert [finish_of(lines) for lines in streams] == ["length"] * 50
        assert [lines[-1] for lines in streams] == ["data: [DONE]"] * 50


@pytest.mark.xdist_group("drain")
@pytest.mark.parametrize("twice", [True, False])
def test_a_cut_is_an_error_event_in_every_open_stream(tmp_path: Path, twice: bool) -> None:
    """By a second SIGTERM, or by --shutdown-timeout."""
    patience = "60" if twice else "0.2"
    options = ["--kv-cache-gib=0.05", "--max-num-batched-tokens=256", f"--shutdown-timeout={patience}"]
    with serving(tmp_path, "serve", "builtin://quire-tiny", *options) as server:
        streams: list[list[str]] = [[] for _ in range(24)]
        events = [threading.Event() for _ in streams]
        threads = [
            threading.Thread(target=read_stream, args=(server.port, lines, e))
            for lines, e in zip(streams, events, strict=True)
        ]
        for thread in threads:
            thread.start()
        for event in events:
            event.wait(20)

        server.process.terminate()
        if twice:
            time.sleep(0.2)
            server.process.terminate()
        code = server.process.wait(20)
        for thread in threads:
            thread.join(20)

    assert code == 0
    for lines in streams:
        assert lines[-1] == "data: [DONE]" or json.loads(lines[-1][6:])["error"]["message"].startswith(
            "the engine is shutting down"
        )
    assert any("error" in lines[-1] for lines in streams)
