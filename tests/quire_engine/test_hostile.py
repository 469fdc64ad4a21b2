"""Requests that mean harm, or might: each gets its error, and nobody else notices. A real process, real sockets."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fakes.controls import Controls
from fakes.serving import Running, children, serving

pytestmark = pytest.mark.xdist_group("hostile")

TINY = {"model": "quire-tiny", "max_tokens": 3}
HELLO = [{"role": "user", "content": "Hello!"}]
LONG = {**TINY, "prompt": "a", "max_tokens": 1900, "ignore_eos": True, "stream": True}
AMBIGUOUS = 'root ::= root root | "a"'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With control streams beside all of this module's requests."""
    options = ["--dtype=float32", "--kv-cache-gib=0.05", "--max-num-seqs=16"]
    with serving(tmp_path_factory.mktemp("hostile"), "serve", "builtin://quire-tiny", *options) as running:
        engine = children(running.process.pid)[:1]
        with Controls(running) as controls:
            yield running
        assert controls.wrong == []
        assert controls.compared > 0
        assert engine[0] in children(running.process.pid)
        assert "Traceback" not in running.log.read_text()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def body(**fields: Any) -> bytes:
    return json.dumps({**TINY, **fields}).encode()


def chat(**fields: Any) -> bytes:
    return body(messages=HELLO, **fields)


def text(**fields: Any) -> bytes:
    return body(prompt="a", **fields)


def raw(rest: str) -> bytes:
    return b'{"model": "quire-tiny", "max_tokens": 3, ' + rest.encode() + b"}"


def structured(**asked: Any) -> bytes:
    return text(structured_outputs=asked)


REFUSED: dict[str, tuple[str, bytes, str | None]] = {  # path, body, the parameter at fault
    "no JSON": ("text", b"{", "body"),
    "bytes that are no text": ("text", b"\xff\xfe\x00", None),
    "JSON that nests without end": ("text", b"[" * 100_000, None),
    "a number of 5,000 digits": ("text", raw(f'"prompt": "a", "seed": {"9" * 5000}'), None),
    "a number of 400 digits": ("text", text(seed=10**400), "seed"),
    "no number": ("text", text(temperature=float("nan")), "temperature"),
    "infinity": ("text", text(top_p=float("inf")), "top_p"),
    "a bias that is no number": ("text", text(logit_bias={"5": float("nan")}), "logit_bias"),
    "a bias of 400 digits": ("text", text(logit_bias={"5": 10**400}), "logit_bias.5"),
    "a bias out of range": ("text", text(logit_bias={"5": 101}), "logit_bias"),
    "a bias of no token": ("text", text(logit_bias={"1024": 1}), "logit_bias"),
    "a million biases": ("text", text(logit_bias={f"x{i}": 1 for i in range(200_000)}), "logit_bias"),
    "10,000 stop strings": ("text", text(stop=["x"] * 10_000), "stop"),
    "a stop string of a million characters": ("text", text(stop="x" * 1_000_000), "stop"),
    "a million answers": ("text", text(n=10**6), "n"),
    "answers times prompts": ("text", body(prompt=["a"] * 33, n=32), "n"),
    "a prompt's log probabilities a thousand times": ("text", body(prompt=[5] * 2000, n=1024, echo=True, logprobs=20), "n"),
    "200,000 prompts": ("text", body(prompt=["a"] * 200_000), "n"),
    "a million bad ids": ("text", body(prompt=[-1] * 1_000_000), "prompt.0"),
    "ids and then a word": ("text", body(prompt=[*[1] * 100_000, "a"]), "prompt.100000"),
    "a prompt of 400,000 words": ("text", body(prompt="word " * 400_000), "prompt"),
    "a prompt that is half a character": ("text", raw(r'"prompt": "\ud800"'), "prompt"),
    "a bias by half a character": ("text", raw(r'"prompt": "a", "logit_bias": {"\ud800": 1}'), None),
    "an option by half a character": (
        "text", raw(r'"prompt": "a", "structured_outputs": {"\ud800": 1}'), "structured_outputs",
    ),
    "a property by half a character": (
        "text", raw(r'"prompt": "a", "structured_outputs": {"json": {"properties": {"\ud800": {"type": "x"}}}}'),
        "structured_outputs",
    ),
    "a million lists": ("text", raw('"prompt": "a", "x": [' + ",".join(["[]"] * 500_000) + "]"), None),
    "20,000 messages": ("chat", body(messages=HELLO * 20_000), "messages"),
    "no messages": ("chat", body(messages=[]), "messages"),
    "messages of the wrong type": ("chat", body(messages={"role": "user"}), "messages"),
    "calls that are a number": ("chat", body(messages=[{**HELLO[0], "tool_calls": 5}]), "messages.0.tool_calls"),
    "calls that are numbers": ("chat", body(messages=[{**HELLO[0], "tool_calls": [5]}]), "messages.0.tool_calls.0"),
    "a call without a name": ("chat", body(messages=[{**HELLO[0], "tool_calls": [{"a": 1}]}]), "messages"),
    "variables of the template that are the request's": (
        "chat", chat(chat_template_kwargs={"add_generation_prompt": 1}), "chat_template_kwargs",
    ),
    "messages by another way": ("chat", chat(chat_template_kwargs={"messages": 1}), "chat_template_kwargs"),
    "tools by another way": ("chat", chat(chat_template_kwargs={"tools": 1}), "chat_template_kwargs"),
    "a schema that refers to itself": ("text", structured(json={"$ref": "#"}), "structured_outputs"),
    "a schema that is nothing but depth": (
        "text", raw('"prompt": "a", "structured_outputs": {"json": {"properties": {"a": ' + nested(900) + "}}}"),
        "structured_outputs",
    ),
    "a schema that explodes": (
        "text",
        structured(json={"type": "object", "properties": {f"property {i}": {"type": "string"} for i in range(3000)}}),
        "structured_outputs",
    ),
    "a grammar without end": ("text", structured(grammar="root ::= root"), "structured_outputs"),
    "a grammar that is none": ("text", structured(grammar="x"), "structured_outputs"),
    "50,000 parentheses": ("text", structured(regex="(" * 50_000), "structured_outputs"),
    "two ways to say it": ("text", structured(regex="a", choice=["a"]), "structured_outputs"),
    "a grammar and no token for it": ("text", text(allowed_token_ids=[5], structured_outputs={"choice": ["hello"]}), None),
    "a grammar that takes longer with every token": (
        "text", text(max_tokens=1900, logit_bias={"67": 100}, structured_outputs={"grammar": AMBIGUOUS}), None,
    ),
    "a token that is no token": ("detokenize", body(tokens=[10**30]), "tokens"),
    "a chat of nobody": ("tokenize", body(messages=[], continue_final_message=True), "messages"),
}  # fmt: skip
PATHS = {
    "text": "/v1/completions",
    "chat": "/v1/chat/completions",
    "tokenize": "/tokenize",
    "detokenize": "/detokenize",
}


@pytest.mark.parametrize("what", REFUSED)
def test_is_refused_in_openais_shape(server: Running, what: str) -> None:
    path, data, param = REFUSED[what]

    status, _, answer = server.request("POST", PATHS[path], data, timeout=20)

    error = json.loads(answer)["error"]
    assert (status, error["code"], error["type"]) == (400, 400, "invalid_request_error"), error
    assert error["message"]
    assert len(error["message"]) < 2100
    assert param is None or error["param"] == param, error


@pytest.mark.parametrize(
    "data",
    [
        chat(chat_template_kwargs={"self": 1, "loop": 2, "range": 3, "namespace": 4, "raise_exception": 5}),
        raw(f'"messages": [{{"role": "user", "content": "x", "foo": {nested(900)}}}]'),
        raw(f'"messages": [{{"role": "user", "content": "x"}}], "chat_template_kwargs": {{"a": {nested(900)}}}'),
        body(
            messages=[
                {**HELLO[0], "tool_calls": [{"function": {"name": "x", "arguments": "[" * 100_000}}]},
            ],
            truncate_prompt_tokens=50,
        ),
        chat(tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": 5, "type": 7}}}]),
    ],
    ids=["names of the template's own", "a deep message", "a deep variable", "deep arguments", "an odd schema"],
)
def test_what_is_odd_and_harmless_is_answered(server: Running, data: bytes) -> None:
    status, _, answer = server.request("POST", "/v1/chat/completions", data, timeout=20)

    assert status == 200, answer


@pytest.mark.parametrize(
    "regex", ["(a+)+$", "(((a{1,99}){1,99}){1,99}|b){1,99}c", ".{0,300}x" * 60, "(a|a)*" * 30 + "b"]
)
def test_a_regex_on_which_others_hang_is_followed(server: Running, regex: str) -> None:
    status, _, answer = server.request("POST", "/v1/completions", structured(regex=regex), timeout=20)

    assert status == 200, answer


def test_many_answers_by_a_large_schema_cost_as_much_as_one(server: Running) -> None:
    schema = {"type": "object", "properties": {f"k{i}": {"type": "boolean"} for i in range(400)}}

    status, _, answer = server.request("POST", "/v1/completions", text(n=128, structured_outputs={"json": schema}))

    assert (status, len(json.loads(answer)["choices"])) == (200, 128)


# ---------------------------------------------------------------------- below HTTP


def http(data: bytes, head: bytes = b"", path: bytes = b"/v1/completions") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n%s" % (path, head, len(data), data)


def answers(server: Running, data: bytes, number: int = 1) -> list[tuple[int, Any]]:
    """Status and body of what comes back, until the server closes or has answered so often."""
    seen = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        try:
            sock.sendall(data)
        except OSError:
            pass  # it has heard enough; its answer is there all the same
        found: list[tuple[int, Any]] = []
        while len(found) < number:
            try:
                more = sock.recv(65536)
            except ConnectionResetError:
                more = b""
            seen += more
            while (at := seen.find(b"\r\n\r\n")) >= 0:
                lines = seen[:at].lower().split(b"\r\n")
                length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
                if len(seen) < at + 4 + length:
                    break
                found.append((int(lines[0].split()[1]), json.loads(seen[at + 4 : at + 4 + length])))
                seen = seen[at + 4 + length :]
            if not more:
                break
    return found


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (http(text(), b"x: " + b"a" * 3_000_000 + b"\r\n"), 431),
        (http(text(), b"x: a\r\n" * 100_000), 431),
        (http(text(), path=b"/" + b"a" * 200_000), 431),
        (b"POST / HTTP/1.1\r\nx: " + b"a" * 300_000, 431),
        (http(text(), path=b"/\xff\xfe"), 400),
        (b"\x16\x03\x01\x02\x00\x01\x00" * 20, 400),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef", 400),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 999999999999\r\n\r\n", 413),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\n", 400),
    ],
    ids=["a huge header", "many headers", "a huge address", "a header without end", "an address of bytes", "TLS",
         "two lengths", "length and chunks", "no chunk", "a body that is said to be huge", "a length of 5,000 digits"],
)  # fmt: skip
def test_bytes_that_are_no_request_are_refused_in_openais_shape(server: Running, data: bytes, status: int) -> None:
    ((seen, answer),) = answers(server, data)

    assert (seen, answer["error"]["code"]) == (status, status)


def test_a_body_may_come_a_byte_at_a_time(server: Running) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in text())

    ((status, answer),) = answers(
        server, b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )

    assert (status, answer["object"]) == (200, "text_completion")


def test_requests_in_a_row_are_answered_in_their_order(server: Running) -> None:
    seen = answers(
        server, http(text(max_tokens=5, ignore_eos=True)) + http(b"{") + http(text(max_tokens=2, ignore_eos=True)), 3
    )

    assert [status for status, _ in seen] == [200, 400, 200]
    assert [seen[i][1]["usage"]["completion_tokens"] for i in (0, 2)] == [5, 2]


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["byte by byte", "at once"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
def test_who_asks_for_another_protocol_is_answered_in_this_one(server: Running, protocol: bytes, size: int) -> None:
    """RFC 9110: a server may ignore the wish. With a body, and the next request on the same connection."""
    wish = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: %s\r\nhttp2-settings: AAMAAABkAAQ\r\n" % protocol
    data = http(text(max_tokens=5, ignore_eos=True), wish) + http(text(max_tokens=2, ignore_eos=True))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as sock:
        for at in range(0, len(data), size):
            sock.sendall(data[at : at + size])
        seen = b""
        while seen.count(b'"completion_tokens"') < 2:
            seen += sock.recv(65536)

    assert seen.count(b"HTTP/1.1 200 OK") == 2
    assert seen.index(b'"completion_tokens":5') < seen.index(b'"completion_tokens":2')


def test_requests_of_one_name_are_requests_of_their_own(server: Running) -> None:
    def ask(number: int) -> int:
        head = b"x-request-id: mine\r\n"
        ((_, answer),) = answers(server, http(text(max_tokens=number, ignore_eos=True), head))
        return int(answer["usage"]["completion_tokens"])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(1, 25))) == list(range(1, 25))


# ---------------------------------------------------------------------- clients that do not keep up


def metric(server: Running, name: str) -> float:
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def test_a_slow_reader_gets_all_of_it_and_holds_up_nobody(server: Running) -> None:
    data = json.dumps({**LONG, "logprobs": 20, "stream_options": {"include_usage": True}}).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(http(data, b"connection: close\r\n"))
        begun = sock.recv(100)

        statuses = [server.request("POST", "/v1/completions", text())[0] for _ in range(20)]
        time.sleep(1)
        seen = bytearray(begun)
        while more := sock.recv(1 << 20):
            seen += more

    assert statuses == [200] * 20
    assert b'"completion_tokens":1900' in seen
    assert seen.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["half", "reset", "closed", "cut"])
def test_of_who_leaves_nothing_stays(server: Running, stream: bool, how: str) -> None:
    data = http(json.dumps({**LONG, "stream": stream}).encode())
    for part in (data[:40], data[:-20]) if how == "cut" else (data, data + data):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(part)
            time.sleep(0.05)
            if how == "half":
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
            elif how == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    deadline = time.monotonic() + 20
    while metric(server, "quire_requests_inside") > 1 or metric(server, "vllm:num_requests_running") > 1:  # the control
        assert time.monotonic() < deadline
        time.sleep(0.02)
