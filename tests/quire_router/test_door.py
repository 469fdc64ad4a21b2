"""Keys, groups, limits and the output cap; what models there are; ids of requests; what the state says."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fakes.backend import Backend, events, plain
from fakes.routing import Client, all_ready, route, run

from quire_api.errors import InvalidInput
from quire_router import Endpoint, Model, Registry, Router
from quire_router.config import read_config, read_keys
from quire_router.keys import KeyEntry, Keys, hash_of
from quire_router.watch import Watched

USAGE = b'{"choices": [], "usage": {"prompt_tokens": 7, "total_tokens": 19, "completion_tokens": 12}}'


def keys(**fields: Any) -> Keys:
    return Keys((KeyEntry(name="alice", sha256=hash_of("secret"), **fields),))


async def answers(request: bytes, writer: asyncio.StreamWriter) -> None:
    stream = b'"stream": true' in request
    writer.write(events(b'{"a": 1}', b'{"b": 1}', b"[DONE]") if stream else plain(USAGE))


def ask(client: Client, key: str = "secret", path: str = "/v1/completions", **fields: Any) -> None:
    body = json.dumps({"model": "m", "prompt": "a", **fields}).encode()
    client.send(body, path, head=f"authorization: Bearer {key}\r\n")


@pytest.mark.parametrize(
    "header", ["", "authorization: Bearer wrong\r\n", "authorization: Basic secret\r\n", "authorization: Bearer\r\n"]
)
def test_without_a_valid_key_nobody_comes_in(header: str) -> None:
    async def scenario(router: Router, port: int) -> None:
        router.use_keys(keys())
        client = await Client.connect(port)
        for path in ("/v1/completions", "/state", "/v1/models"):
            client.send(path=path, head=header)

            status, head, body = await client.answer()

            assert status == 401
            assert b"www-authenticate: Bearer" in head
            assert json.loads(body)["error"]["type"] == "authentication_error"
        for path in ("/livez", "/readyz", "/metrics"):
            client.send(b"", path, "GET")
            assert (await client.answer())[0] == 200

    run(scenario)


def test_a_key_of_no_group_sees_and_uses_only_models_that_are_for_all() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            here = (Endpoint(address=backend.address),)
            router.replace(
                Registry((Model(name="m", endpoints=here), Model(name="inner", aliases=("x",), groups=("staff",))))
            )
            router.use_keys(keys())
            client = await Client.connect(port)
            as_alice = "authorization: Bearer secret\r\n"

            assert [m["id"] for m in (await client.get("/v1/models", as_alice))["data"]] == ["m"]
            assert [m["name"] for m in (await client.get("/state", as_alice))["models"]] == ["m"]
            ask(client, model="x")
            status, error = await client.refusal()
            assert (status, error["message"]) == (403, "the key alice may not use x; what may be used: m")

            router.use_keys(keys(groups=("staff",)))
            assert [m["id"] for m in (await client.get("/v1/models", as_alice))["data"]] == ["m", "inner", "x"]
            assert (await client.get("/v1/models/x", as_alice))["id"] == "x"

    run(scenario)


def test_a_model_for_groups_is_closed_where_there_are_no_keys() -> None:
    async def scenario(router: Router, port: int) -> None:
        router.replace(Registry((Model(name="m", groups=("staff",)),)))
        client = await Client.connect(port)
        ask(client)

        status, error = await client.refusal()

        said = "this router has no keys, and whoever comes without may not use m; what may be used: nothing yet"
        assert (status, error["message"]) == (403, said)

    run(scenario)


def test_requests_a_minute_are_bounded() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router, backend.address)
            router.use_keys(keys(requests_per_minute=2))
            client = await Client.connect(port)
            for _ in range(2):
                ask(client)
                assert (await client.answer())[0] == 200
            ask(client)

            status, head, body = await client.answer()

        assert status == 429
        assert 25 <= int(head.lower().partition(b"retry-after: ")[2].partition(b"\r\n")[0]) <= 30
        assert json.loads(body)["error"]["message"] == "the key alice has used up its requests of this minute"

    run(scenario)


@pytest.mark.parametrize(
    ("stream", "tokens"), [(False, 19), (True, 2 + len(b'{"model": "m", "prompt": "a", "stream": true}') // 4)]
)
def test_tokens_are_counted_as_the_answer_says_or_as_they_look(stream: bool, tokens: int) -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router, backend.address)
            router.use_keys(keys(tokens_per_minute=tokens))
            client = await Client.connect(port)
            fields = {"stream": True} if stream else {}
            ask(client, **fields)
            await (client.stream() if stream else client.answer())
            ask(client)

            status, error = await client.refusal()

            assert (status, error["message"]) == (429, "the key alice has used up its tokens of this minute")
            client.send(b"", "/metrics", "GET")
            lines = (await client.answer())[2].decode().splitlines()
            counted = [float(line.split()[-1]) for line in lines if line.startswith("quire_router_key_tokens_total{")]
            assert sum(counted) == tokens
            assert 'quire_router_key_requests_total{code="429",key="alice"} 1.0' in lines
            assert "secret" not in "\n".join(lines)

    run(scenario)


def test_usage_is_read_whatever_the_end_of_a_stream_is_cut_into() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        whole = events(b'{"a": 1}', USAGE, b"[DONE]")
        for piece in (whole[:-60], whole[-60:-25], whole[-25:-7], whole[-7:-5], whole[-5:]):
            writer.write(piece)
            await asyncio.sleep(0.02)

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask(stream=True)
            await client.stream()

            assert (await client.get("/state"))["models"][0]["last_minute"]["tokens"] == 12

    run(scenario)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, "the request does not say how many it may make"),
        ({"max_tokens": 65}, "it asks for 65, all answers together"),
        ({"max_tokens": 33, "n": 2}, "it asks for 66, all answers together"),
    ],
)
def test_more_output_than_a_key_may_have_is_400_with_the_number_to_write(fields: dict[str, Any], seen: str) -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router, backend.address)
            router.use_keys(keys(max_output_tokens=64))
            client = await Client.connect(port)
            ask(client, **fields)

            status, error = await client.refusal()

            assert (status, error["param"]) == (400, "max_tokens")
            assert error["message"] == (
                f"max_tokens: the key alice may have 64 output tokens a request, and {seen}; send max_tokens of 64 or less"
            )
            ask(client, max_tokens=64)
            assert (await client.answer())[0] == 200
            ask(client, path="/v1/embeddings")
            assert (await client.answer())[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/%63ompletions", {}),
        ("/v1/completions/", {}),
        ("/v1/messages", {}),
        ("/v1/completions#/embeddings", {}),
        ("/v1/responses", {"max_tokens": 3}),
        ("/v1/chat/completions", {"max_output_tokens": 3}),
        ("/v1/completions", {"max_completion_tokens": 3}),
        ("/v1/chat/completions", {"max_tokens": 3, "max_completion_tokens": "999"}),
        ("/v1/chat/completions", {"max_tokens": 3, "max_completion_tokens": 999.0}),
        ("/v1/completions", {"max_tokens": 3, "n": "8"}),
        ("/v1/completions", {"max_tokens": -1}),
    ],
)
def test_there_is_no_way_around_an_output_cap(path: str, fields: dict[str, Any]) -> None:
    """Every spelling that some engine would read as more, or as no bound at all."""

    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router, backend.address)
            router.use_keys(keys(max_output_tokens=8))
            client = await Client.connect(port)
            ask(client, path=path, **fields)

            assert (await client.answer())[0] == 400
            assert backend.requests == []

    run(scenario)


def test_an_id_is_passed_on_or_made_and_the_trace_with_it() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=b\r\n"
            client.send(head=f"X-Request-ID: mine\r\n{trace}")
            await client.answer()
            client.send(head="x-request-id: not usable\r\n")
            await client.answer()
            client.send(b'{"model": "other"}', head="x-request-id: mine\r\n")
            _, head, _ = await client.answer()

        first, second = backend.requests
        assert b"\r\nx-request-id: mine\r\n" in first
        assert trace.encode() in first
        made = second.partition(b"\r\nx-request-id: ")[2].partition(b"\r\n")[0]
        assert len(made) == 32
        assert b"x-request-id: mine\r\n" in head

    run(scenario)


def test_a_session_stays_with_its_engine_whatever_the_prompt() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as a, Backend(answers) as b, Backend(answers) as c:
            route(router, a.address, b.address, c.address)
            await all_ready(port, 3)
            client = await Client.connect(port)
            for i in range(12):
                client.send(json.dumps({"model": "m", "prompt": f"{i} of them"}).encode(), head="x-session-id: s\r\n")
                await client.answer()
            by_session = [len(each.requests) for each in (a, b, c)]
            for i in range(12):
                client.ask(prompt=f"{i} of them")
                await client.answer()

            assert sorted(by_session) == [0, 0, 12]
            assert sorted(len(each.requests) for each in (a, b, c)) != [0, 0, 24]

    run(scenario)


def test_the_state_says_what_there_is_and_what_went_wrong() -> None:
    async def scenario(router: Router, port: int) -> None:
        async def fails(request: bytes, writer: asyncio.StreamWriter) -> None:
            stream = b'"stream": true' in request
            writer.write(
                events(b'{"a": 1}', b'{"b": 1}', b"[DONE]") if stream else plain(b"{}", "500 Internal Server Error")
            )

        async with Backend(fails) as backend:
            route(router, backend.address, aliases=("n",), desired=2, loading=1)
            client = await Client.connect(port)
            client.ask(model="n", stream=True)
            await client.stream()
            client.send(head="x-request-id: bad-one\r\n")
            await client.answer()

            state = await client.get("/state")

        model, error = state["models"][0], state["errors"][0]
        assert (model["name"], model["aliases"], model["desired"], model["ready"], model["loading"]) == (
            "m",
            ["n"],
            2,
            1,
            1,
        )
        assert model["bounds"] == {"inside": 2000, "held": 200, "hold_s": 300.0}
        assert model["backends"][0]["url"] == f"http://{backend.address}"
        assert model["backends"][0]["last_error"]["message"] == "the engine answered 500"
        assert (model["last_minute"]["requests"], model["last_minute"]["failed"], model["last_minute"]["tokens"]) == (
            2,
            1,
            2,
        )
        assert model["last_minute"]["first_token_s"]["p50"] > 0
        assert model["last_minute"]["time_per_token_s"] is not None
        assert (error["model"], error["status"], error["request_id"]) == ("m", 500, "bad-one")
        assert math.isclose(error["at"], state["now"], abs_tol=10)

    run(scenario)


# ---------------------------------------------------------------------- files

CONFIG = """
models:
  - name: m
    aliases: [gpt-4o]
    backends: ["127.0.0.1:1", /run/engine.sock]
    groups: [staff]
    strategy: LeastLoaded
    weigh: Tokens
    maxInside: 7
    hold: {requests: 3, seconds: 1.5}
"""


def test_a_config_file_becomes_a_registry(tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(CONFIG)

    (model,) = read_config(tmp_path / "router.yaml").models

    assert model == Model(
        name="m",
        aliases=("gpt-4o",),
        endpoints=(Endpoint(address="127.0.0.1:1"), Endpoint(address="/run/engine.sock")),
        groups=("staff",),
        strategy=model.strategy.LEAST_LOADED,
        weigh=model.weigh.TOKENS,
        max_inside=7,
        hold_requests=3,
        hold_s=1.5,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models: [", "not YAML"),
        ("models: 2024-13-45", "not YAML: month must be in 1..12"),
        pytest.param("[" * 1_000, "not YAML", id="deep"),
        ("models: []", "models"),
        ("models: [{name: m, backend: [a]}]", 'models.0.backend: unknown field; did you mean "backends"?'),
        (
            "models: [{name: m, backends: [nowhere]}]",
            "models.0.backends.0: nowhere is not HOST:PORT or /path/of/socket",
        ),
        ("models: [{name: m}, {name: n, aliases: [m]}]", "m: two models have this name; rename one"),
        ("models: [{name: m, hold: {seconds: -1}}]", "models.0.hold.seconds: must be greater than or equal to 0"),
        ("", "RouterConfig"),
    ],
)
def test_a_mistake_in_a_config_file_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "router.yaml").write_text(text)

    with pytest.raises(InvalidInput) as caught:
        read_config(tmp_path / "router.yaml")

    assert str(tmp_path / "router.yaml") in str(caught.value)
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            f"keys: [{{name: a, sha256: {hash_of('x')}}}, {{name: b, sha256: {hash_of('x')}}}]",
            "two keys have the sha256",
        ),
        (
            f"keys: [{{name: a, sha256: {hash_of('x')}}}, {{name: a, sha256: {hash_of('y')}}}]",
            "two keys have the name a",
        ),
        ("keys: [{name: a, sha256: secret}]", "keys.0.sha256: must match"),
        ("keys: [{name: a, key: secret}]", "keys.0.key: unknown field"),
    ],
)
def test_a_mistake_in_a_file_of_keys_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(text)

    with pytest.raises(InvalidInput) as caught:
        read_keys(tmp_path / "keys.yaml")

    assert problem in str(caught.value)


def test_a_changed_file_is_taken_and_a_bad_one_leaves_what_was(tmp_path: Path) -> None:
    path, taken, failures = tmp_path / "router.yaml", [], []
    path.write_text("models: [{name: a}]")
    watched = Watched(path, lambda file: taken.append(read_config(file).models[0].name), lambda: failures.append(1))
    watched.load()

    path.write_text("models: [{name: bb}]")
    watched.look()
    watched.look()
    path.write_text("models: [")
    watched.look()
    assert watched.error is not None
    assert failures == [1]
    path.unlink()
    watched.look()
    assert "cannot be read" in watched.error
    path.write_text("models: [{name: ccc}]")
    watched.look()

    assert taken == ["a", "bb", "ccc"]
    assert watched.error is None
