"""Requests for a model without an engine: they wait within bounds, one wakes it, and every wait has an end."""

import asyncio
import json

import pytest
from fakes.backend import UNREADY, Backend, events, plain
from fakes.routing import Client, all_ready, route, run, until

from quire_router import Demand, Router

QUICK = {"quire_router.hold.OPEN_AFTER_S": 0.2, "quire_router.hold.COMMENT_EVERY_S": 0.1}


@pytest.fixture
def quick_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in QUICK.items():
        monkeypatch.setattr(name, seconds)


async def answers(request: bytes, writer: asyncio.StreamWriter) -> None:
    stream = b'"stream": true' in request
    writer.write(events(b'{"n": 1}', b"[DONE]") if stream else plain(b"ok"))


def test_requests_for_a_model_at_zero_wake_it_once_and_flow_when_it_is_there() -> None:
    woken: list[str] = []

    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router)
            clients = [await Client.connect(port) for _ in range(20)]
            for client in clients:
                client.ask()
            await until(lambda: router.demand()["m"].held == 20)
            assert router.demand() == {"m": Demand(held=20, in_flight=0, tokens=0)}

            route(router, backend.address)

            assert {(await client.answer())[0] for client in clients} == {200}
            assert router.demand()["m"].held == 0
            assert woken == ["m"]

    run(scenario, woken.append)


def test_an_engine_that_is_loading_is_waited_for() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            backend.ready = plain(b"the model is being loaded", "503 Service Unavailable")
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()
            await until(lambda: router.demand()["m"].held == 1)
            state = (await (await Client.connect(port)).get("/state"))["models"][0]
            assert (state["ready"], state["loading"], state["held"]) == (0, 1, 1)

            backend.ready = plain(b"ok")

            assert (await client.answer())[0] == 200

    run(scenario)


def test_one_more_than_may_wait_is_429_at_once() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, hold_requests=2)
        clients = [await Client.connect(port) for _ in range(2)]
        for client in clients:
            client.ask()
        await until(lambda: router.demand()["m"].held == 2)
        late = await Client.connect(port)
        late.ask()

        status, head, body = await late.answer()

        assert status == 429
        assert b"retry-after: 2\r\n" in head
        assert json.loads(body)["error"]["message"] == "m has no engine ready, and 2 requests wait for one already"

    run(scenario)


def test_one_more_than_may_be_inside_is_429_at_once() -> None:
    async def slow(request: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(60)

    async def scenario(router: Router, port: int) -> None:
        async with Backend(slow) as backend:
            route(router, backend.address, max_inside=3)
            for _ in range(3):
                (await Client.connect(port)).ask()
            await until(lambda: router.demand()["m"].in_flight == 3)
            late = await Client.connect(port)
            late.ask()

            status, error = await late.refusal()

        assert (status, error["message"]) == (429, "m has 3 requests already, the most that are let in")

    run(scenario)


@pytest.mark.parametrize("stream", [False, True])
def test_over_its_time_a_wait_ends_with_503_and_retry_after(stream: bool) -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, hold_s=0.2)
        client = await Client.connect(port)
        client.ask(stream=stream)

        status, head, body = await client.answer()

        assert status == 503
        assert b"retry-after: 2\r\n" in head
        assert json.loads(body)["error"]["message"] == "m: no engine was ready within 0 s"

    run(scenario)


@pytest.mark.usefixtures("quick_comments")
def test_a_stream_that_waits_long_hears_comments_and_then_its_events() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router)
            client = await Client.connect(port)
            client.ask(stream=True)
            await asyncio.sleep(0.5)

            route(router, backend.address)

            head, stream = await client.stream()
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"content-type: text/event-stream" in head
            assert stream[-2:] == [b'data: {"n": 1}', b"data: [DONE]"]
            assert stream[0] == b": waiting for an engine"
            assert 2 <= len(stream[:-2]) <= 5
            client.ask()  # the connection goes on
            assert (await client.answer())[0] == 200

    run(scenario)


@pytest.mark.usefixtures("quick_comments")
def test_what_is_no_stream_gets_no_byte_before_its_answer() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, hold_s=0.6)
        client = await Client.connect(port)
        client.ask()

        assert (await client.answer())[0] == 503

    run(scenario)


@pytest.mark.usefixtures("quick_comments")
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (plain(b'{"error": {"message": "too long", "code": 400}}', "400 Bad Request"), 400),
        (plain(b"oops", "500 Internal Server Error"), 502),
        (plain(b"{}"), 502),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", 502),
    ],
)
def test_once_a_stream_has_its_head_every_failure_is_an_event(answer: bytes, code: int) -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router)
            client = await Client.connect(port)
            client.ask(stream=True)
            await asyncio.sleep(0.3)
            route(router, backend.address)

            _, stream = await client.stream()

        assert json.loads(stream[-1].removeprefix(b"data: "))["error"]["code"] == code
        assert len([event for event in stream if event.startswith(b"data: ")]) == 1

    run(scenario)


@pytest.mark.usefixtures("quick_comments")
def test_an_opened_stream_whose_time_is_over_ends_with_an_event() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, hold_s=0.5)
        client = await Client.connect(port)
        client.ask(stream=True)

        _, stream = await client.stream()

        assert json.loads(stream[-1].removeprefix(b"data: "))["error"]["code"] == 503

    run(scenario)


@pytest.mark.usefixtures("quick_comments")
def test_an_opened_stream_takes_an_answer_of_known_length_too() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 14\r\n\r\ndata: [DONE]\n\n"
        )

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router)
            client = await Client.connect(port)
            client.ask(stream=True)
            await asyncio.sleep(0.3)
            route(router, backend.address)

            assert (await client.stream())[1][-1] == b"data: [DONE]"

    run(scenario)


def test_a_client_that_leaves_waits_no_more() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router)
        client = await Client.connect(port)
        client.ask()
        await until(lambda: router.demand()["m"].held == 1)

        client.writer.close()

        await until(lambda: router.demand()["m"].held == 0)

    run(scenario)


def test_an_engine_that_turns_a_request_away_is_asked_again_when_it_is_ready() -> None:
    """As when the last engine begins to drain at the very moment: the request waits, and the model is woken."""
    turned_away = 0
    woken: list[str] = []

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal turned_away
        turned_away += 1
        writer.write(UNREADY if turned_away == 1 else plain(b"ok"))

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            await all_ready(port, 1)
            client = await Client.connect(port)
            client.ask()

            assert (await client.answer())[0] == 200
            assert woken == ["m"]

    run(scenario, woken.append)


def test_a_model_that_is_removed_while_a_request_waits_is_404() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router)
        client = await Client.connect(port)
        client.ask()
        await until(lambda: router.demand()["m"].held == 1)
        router.replace(type(router.registry)())

        assert (await client.refusal())[0] == 404

    run(scenario)


def test_stop_turns_away_what_is_held_unless_engines_may_come() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as backend:
            route(router)
            client = await Client.connect(port)
            client.ask()
            await until(lambda: router.demand()["m"].held == 1)

            stopping = asyncio.create_task(router.stop(keep_holding=True))
            await asyncio.sleep(0.1)
            route(router, backend.address)
            assert (await client.answer())[0] == 200
            await stopping

    async def turned_away(router: Router, port: int) -> None:
        route(router)
        client = await Client.connect(port)
        client.ask()
        await until(lambda: router.demand()["m"].held == 1)
        stopping = asyncio.create_task(router.stop())

        status, error = await client.refusal()

        assert (status, error["message"]) == (503, "m: the router is shutting down")
        await stopping

    run(scenario)
    run(turned_away)


def test_streams_that_outlast_the_patience_of_stop_end_with_an_error_event() -> None:
    async def endless(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"a\r\ndata: {}\n\n\r\n")
            await asyncio.sleep(0.02)

    async def scenario(router: Router, port: int) -> None:
        async with Backend(endless) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask(stream=True)
            await until(lambda: router.demand()["m"].in_flight == 1)
            stopping = asyncio.create_task(router.stop(0.2))

            _, stream = await client.stream()

            assert json.loads(stream[-1].removeprefix(b"data: "))["error"]["message"] == "the router is shutting down"
            await asyncio.wait_for(stopping, 5)

    run(scenario)
