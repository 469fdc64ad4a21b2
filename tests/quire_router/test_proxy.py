"""The proxy over real sockets: bytes untouched, nothing answered twice, nothing left open."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable

import pytest
from fakes.backend import Backend, chunked, plain
from fakes.routing import BODY, Client, all_ready, route, run, until

from quire_router import Endpoint, Model, Registry, Router


async def _never(request: bytes, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


def says(*answers: bytes) -> Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]:
    """One answer after the other, the last one again and again."""
    left = list(answers)

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(left.pop(0) if len(left) > 1 else left[0])
        await writer.drain()

    return script


def test_request_and_answer_pass_untouched() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"\x00\xff answer"))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send(path="/v1/completions?x=1", head="X-Request-Id: 7\r\nAuthorization: Bearer k\r\n")

            status, head, body = await client.answer()

        assert (status, body) == (200, b"\x00\xff answer")
        assert b"x-backend: yes" in head
        seen = backend.requests[0]
        assert seen.startswith(b"POST /v1/completions?x=1 HTTP/1.1\r\n")
        assert b"\r\nx-request-id: 7\r\n" in seen
        assert b"Authorization: Bearer k\r\n" in seen
        assert seen.endswith(BODY)

    run(scenario)


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_a_chunked_answer_arrives_whole_however_it_is_cut(size: int) -> None:
    whole = chunked(b"data: one\n\n", b"data: two\n\n" * 300, b"data: [DONE]\n\n")

    async def dribble(request: bytes, writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(whole), size):
            writer.write(whole[start : start + size])
            await asyncio.sleep(0)

    async def scenario(router: Router, port: int) -> None:
        async with Backend(dribble) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            for _ in range(2):  # the second one over the same connections
                client.send()
                assert await asyncio.wait_for(client.reader.readexactly(len(whole)), 10) == whole
            assert backend.connections == 1

    run(scenario)


def test_a_stream_is_passed_on_as_it_comes() -> None:
    async def scenario(router: Router, port: int) -> None:
        go_on = asyncio.Event()

        async def halting(request: bytes, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
            await go_on.wait()
            writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

        async with Backend(halting) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()

            assert (await asyncio.wait_for(client.reader.readuntil(b"one"), 10)).endswith(b"one")
            go_on.set()
            assert (await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), 10)).startswith(b"\r\n3\r\ntwo")

    run(scenario)


def test_a_chunked_request_is_framed_anew_for_the_engine() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"ok"))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
            client.writer.write(head)
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            client.writer.write(b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (9, BODY[:9], len(BODY) - 9, BODY[9:]))

            assert (await client.answer())[0] == 200

        assert backend.requests[0].endswith(b"\r\n\r\n" + BODY)
        assert b"content-length: %d" % len(BODY) in backend.requests[0]

    run(scenario)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"1"), plain(b"2"), plain(b"3"))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            for _ in range(3):
                client.send()

            assert [(await client.answer())[2] for _ in range(3)] == [b"1", b"2", b"3"]

    run(scenario)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"model": "other"}', 404, "the model 'other' does not exist; served here: m"),
        (b"{}", 400, "model: send a JSON object that names one; served here: m"),
        (b"not json", 400, "model: send a JSON object that names one; served here: m"),
        (b'{"model": 7}', 400, "model: send a JSON object that names one; served here: m"),
        (b"[]", 400, "model: send a JSON object that names one; served here: m"),
    ],
)
def test_a_request_for_no_known_model_is_refused(body: bytes, status: int, message: str) -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, "127.0.0.1:1")
        client = await Client.connect(port)
        client.send(body)

        seen, error = await client.refusal()

        assert (seen, error["message"], error["param"]) == (status, message, "model")

    run(scenario)


def test_a_kept_connection_that_died_is_replaced_and_the_request_sent_once_more() -> None:
    async def scenario(router: Router, port: int) -> None:
        calls = 0

        async def dies_idle(request: bytes, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            if calls == 2:  # the kept connection: ended without an answer, as an idle time-out would
                writer.close()
            else:
                writer.write(plain(b"%d" % calls))

        async with Backend(dies_idle) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            bodies = []
            for _ in range(2):
                client.send()
                bodies.append((await client.answer())[2])

            assert bodies == [b"1", b"3"]
            assert backend.connections == 2

    run(scenario)


def test_a_client_that_leaves_ends_the_request_at_the_engine() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(_never) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            while not backend.requests:
                await asyncio.sleep(0.01)

            client.writer.close()

            await asyncio.wait_for(backend.lost.wait(), 5)
            await until(lambda: router.demand()["m"].in_flight == 0)

    run(scenario)


def test_a_slow_reader_holds_the_engine_back_and_loses_nothing() -> None:
    size = 32 << 20

    async def flood(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent[0] += 1 << 16

    sent = [0]

    async def scenario(router: Router, port: int) -> None:
        async with Backend(flood) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            await asyncio.sleep(0.5)
            held = sent[0]
            await client.reader.readuntil(b"\r\n\r\n")
            got = len(await client.reader.readexactly(size))

            client.send()  # over the connection that was held back a moment ago
            assert (await client.answer())[0] == 200

        assert held < size // 2
        assert got == size

    run(scenario)


def test_stop_ends_busy_keep_alive_connections_after_their_answer() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"ok"))) as backend:
            route(router, backend.address)
            answered = 0

            async def insist() -> None:
                nonlocal answered
                client = await Client.connect(port)
                while True:
                    client.send()
                    await client.answer()
                    answered += 1

            insisting = [asyncio.create_task(insist()) for _ in range(8)]
            while answered < 50:
                await asyncio.sleep(0.01)

            await asyncio.wait_for(router.stop(), 5)

            ends = await asyncio.gather(*insisting, return_exceptions=True)
            assert all(isinstance(e, asyncio.IncompleteReadError | ConnectionError) for e in ends)

    run(scenario)


def test_stop_cuts_a_client_that_never_reads_when_patience_ends() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(bytes(64 << 20)))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            while not backend.requests:
                await asyncio.sleep(0.01)

            await asyncio.wait_for(router.stop(patience=0.3), 5)

    run(scenario)


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"model": "m", "a": ' + b"[" * 200_000])
def test_a_body_nested_too_deep_is_refused(data: bytes) -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router, "127.0.0.1:1")
        client = await Client.connect(port)
        client.send(data)

        assert (await client.refusal())[0] == 400

    run(scenario)


def test_headers_without_end_are_refused() -> None:
    async def scenario(router: Router, port: int) -> None:
        client = await Client.connect(port)
        client.writer.write(b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 40_000)

        assert (await asyncio.wait_for(client.reader.read(), 10)).startswith(b"HTTP/1.1 431 ")

    run(scenario)


def test_an_answer_to_head_has_no_body() -> None:
    async def scenario(router: Router, port: int) -> None:
        client = await Client.connect(port)
        client.send(b"", "/livez", "HEAD")
        client.send(b"", "/livez", "GET")

        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 2" in head
        assert (await client.answer())[2] == b"ok"

    run(scenario)


def test_a_trailer_is_no_header() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"ok"))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            client.writer.write(head + b"%x\r\n%s\r\n0\r\nauthorization: smuggled\r\n\r\n" % (len(BODY), BODY))

            assert (await client.answer())[0] == 200

        assert b"smuggled" not in backend.requests[0]

    run(scenario)


def test_stop_waits_for_open_answers_and_takes_no_more() -> None:
    async def scenario(router: Router, port: int) -> None:
        async def slowly(request: bytes, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(0.3)
            writer.write(plain(b"done"))

        async with Backend(slowly) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            while not backend.requests:
                await asyncio.sleep(0.01)

            stopping = asyncio.create_task(router.stop())

            assert (await client.answer())[2] == b"done"
            await stopping
            assert await client.reader.read() == b""
            with pytest.raises(ConnectionRefusedError):
                await Client.connect(port)

    run(scenario)


@pytest.mark.parametrize("garbage", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"])
def test_what_is_no_http_is_refused(garbage: bytes) -> None:
    async def scenario(router: Router, port: int) -> None:
        client = await Client.connect(port)
        client.writer.write(garbage)

        assert (await asyncio.wait_for(client.reader.read(), 10)).startswith(b"HTTP/1.1 400 ")

    run(scenario)


def test_its_own_endpoints() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(says(plain(b"ok"))) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            await client.answer()
            answers = {}
            for path in ("/livez", "/readyz", "/v1/models", "/metrics"):
                client.send(b"", path, "GET")
                answers[path] = await client.answer()

        assert {status for status, _, _ in answers.values()} == {200}
        assert [m["id"] for m in json.loads(answers["/v1/models"][2])["data"]] == ["m"]
        assert b'quire_router_requests_total{code="200",model="m"} 1.0' in answers["/metrics"][2]

    run(scenario)


def test_a_model_is_found_by_its_quoted_name_and_can_only_be_read() -> None:
    async def scenario(router: Router, port: int) -> None:
        router.replace(Registry((Model(name="org/\u00e9"),)))
        client = await Client.connect(port)

        assert (await client.get("/v1/models/org%2F%C3%A9"))["id"] == "org/\u00e9"
        client.send(b"", "/v1/models/org%2F%C3%A9", "DELETE")
        assert (await client.answer())[0] == 405

    run(scenario)


def test_a_model_that_is_gone_is_not_counted_as_held() -> None:
    async def scenario(router: Router, port: int) -> None:
        route(router)
        client, other = await Client.connect(port), await Client.connect(port)
        client.ask()
        await until(lambda: router.demand()["m"].held == 1)
        other.send(b"", "/metrics", "GET")
        assert b'quire_router_requests_held{model="m"} 1.0' in (await other.answer())[2]

        router.replace(Registry())

        assert (await client.answer())[0] == 404
        other.send(b"", "/metrics", "GET")
        assert b"quire_router_requests_held{" not in (await other.answer())[2]

    run(scenario)


def test_clients_that_leave_at_any_moment_leave_nothing_behind() -> None:
    """While held, while streaming, while they send: no task, no connection, no count stays."""

    async def endless(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"a\r\ndata: {}\n\n\r\n")
        await asyncio.sleep(60)

    def ours() -> int:
        return sum("/src/quire_router/" in repr(task) for task in asyncio.all_tasks())

    async def scenario(router: Router, port: int) -> None:
        async with Backend(endless) as backend:
            here = (Endpoint(address=backend.address),)
            router.replace(Registry((Model(name="m", endpoints=here), Model(name="zero"))))
            await all_ready(port, 1)
            before = ours(), len(os.listdir("/proc/self/fd"))
            clients = [await Client.connect(port) for _ in range(200)]
            for n, client in enumerate(clients):
                client.ask(model="m" if n % 2 else "zero", stream=n % 4 < 2)
                if n % 5 == 0:
                    client.writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc")
            await until(lambda: (router.demand()["zero"].held, router.demand()["m"].in_flight) == (100, 100))

            for client in clients:
                client.writer.transport.abort()

            await until(lambda: {each.held + each.in_flight + each.tokens for each in router.demand().values()} == {0})
            await until(lambda: ours() <= before[0] and len(os.listdir("/proc/self/fd")) <= before[1])

    run(scenario)
