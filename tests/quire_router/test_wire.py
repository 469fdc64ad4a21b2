"""What clients may send: requests that can be read in two ways, too large, too slow, or broken in any way at random.

Beside the broken ones a control connection asks, and must get its own answers and nothing else.
"""

import asyncio
import random
from collections.abc import Iterator

import pytest
from fakes.backend import Backend, plain
from fakes.routing import BODY, Client, route, run, until
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_router import Router

POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /v1/smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


async def echo(request: bytes, writer: asyncio.StreamWriter) -> None:
    """The control's mark, where the request has one."""
    writer.write(plain(request.partition(b"mark-")[2][:8] or b"none"))


async def end_of(port: int, data: bytes) -> bytes:
    client = await Client.connect(port)
    client.writer.write(data)
    return await asyncio.wait_for(client.reader.read(), 10)


@pytest.mark.parametrize(
    "doubtful",
    [
        POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        POST + b"content-length: 3, 3\r\n\r\nabc",
        POST + b"content-length: +3\r\n\r\nabc",
        POST + b"content-length: 0x3\r\n\r\nabc",
        POST + b"content-length : 3\r\n\r\nabc",
        POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        POST + b"x: a\r\n folded\r\n\r\n",
        POST + b"x: a\0b\r\n\r\n",
        POST + b"x\0: a\r\n\r\n",
        POST + b"x: a\rb\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\nhost: x\n\n",
        b"GET /a\x01b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET http://other/livez HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"3\r\nabcXX0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"fffffffffffffffff\r\nabc\r\n" + SMUGGLED,
        CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n" + SMUGGLED,
        CHUNKED + b"3;a\nabc\r\n0\r\n\r\n" + SMUGGLED,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_can_be_read_in_two_ways_is_400_and_the_end(doubtful: bytes) -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(echo) as backend:
            route(router, backend.address)

            answer = await end_of(port, doubtful)

            assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
            assert b"connection: close\r\n" in answer
            assert answer.count(b"HTTP/1.1 ") == 1
            assert backend.requests == []

    run(scenario)


def test_an_offer_to_upgrade_is_not_taken_up() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(echo) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            for _ in range(2):
                client.send(
                    head="connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
                )
            client.send(b"", "/livez", "GET")

            assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 200]
            assert backend.requests[1].endswith(b"\r\n\r\n" + BODY)
            assert b"upgrade" not in backend.requests[0].lower()
            assert b"http2-settings" not in backend.requests[0].lower()

    run(scenario)


def test_what_is_named_by_connection_stays_here() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(echo) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send(
                head="connection: x-mine\r\nconnection: x-other\r\nx-mine: 1\r\nx-other: 1\r\nte: trailers\r\nx-yours: 2\r\n"
            )
            await client.answer()

        assert b"x-mine" not in backend.requests[0]
        assert b"x-other" not in backend.requests[0]
        assert b"te: " not in backend.requests[0]
        assert b"x-yours: 2\r\n" in backend.requests[0]

    run(scenario)


def test_an_old_client_gets_an_answer_it_can_read() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        assert request.startswith(b"POST /v1/completions HTTP/1.0\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: [DONE]\n\n")
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)

            answer = await end_of(
                port, b"POST /v1/completions HTTP/1.0\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
            )

        assert answer.endswith(b"\r\n\r\ndata: [DONE]\n\n")

    run(scenario)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 1_000_000, 431),
        (CHUNKED + b"1;" + b"a" * 1_000_000, 431),
        (CHUNKED + b"1\r\na\r\n0\r\nx: " + b"a" * 1_000_000, 431),
        (POST + b"content-length: 99999999999\r\n\r\n", 413),
        (CHUNKED + b"5000000\r\n" + bytes(65 << 20), 413),
        (b"CONNECT other:443 HTTP/1.1\r\nhost: other:443\r\n\r\n", 405),
    ],
)
def test_what_is_too_large_is_refused_while_it_comes(data: bytes, status: int) -> None:
    async def scenario(router: Router, port: int) -> None:
        assert (await end_of(port, data)).startswith(b"HTTP/1.1 %d " % status)

    run(scenario)


@pytest.mark.parametrize("begin", [b"", b"GET /livez HT", POST + b"content-length: 9\r\n\r\nabc", CHUNKED])
def test_who_is_too_slow_is_let_go(begin: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_S", "BODY_S", "KEEP_S"):
        monkeypatch.setattr(f"quire_router.client.{name}", 0.2)

    async def scenario(router: Router, port: int) -> None:
        answer = await end_of(port, begin)

        assert answer.startswith(b"HTTP/1.1 408 ") if begin else answer == b""

    run(scenario)


def test_a_head_that_dribbles_is_not_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_router.client.HEAD_S", 0.5)

    async def scenario(router: Router, port: int) -> None:
        client = await Client.connect(port)
        client.writer.write(b"GET /livez HTTP/1.1\r\nhost: x\r\n")

        async def dribble() -> None:
            while True:
                client.writer.write(b"x: y\r\n")
                await asyncio.sleep(0.05)

        dribbling = asyncio.create_task(dribble())
        assert (await asyncio.wait_for(client.reader.read(), 10)).startswith(b"HTTP/1.1 408 ")
        dribbling.cancel()

    run(scenario)


def test_a_flood_of_small_requests_over_one_connection_disturbs_nobody() -> None:
    """Its answers are not read: they must neither fill the memory nor keep the others waiting."""

    async def scenario(router: Router, port: int) -> None:
        flood = await Client.connect(port)
        flood.writer.write(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 20_000)
        other, longest, loop = await Client.connect(port), 0.0, asyncio.get_running_loop()
        for _ in range(50):
            before = loop.time()
            other.send(b"", "/livez", "GET")
            assert (await other.answer())[2] == b"ok"
            longest = max(longest, loop.time() - before)

        assert longest < 2  # seconds; all at once takes five
        flood.writer.transport.abort()

    run(scenario)


def test_who_waits_to_be_asked_for_a_body_is_asked_after_the_answer_before_it() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(echo) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            client.writer.write(POST + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(BODY))
            assert (await client.answer())[0] == 200

            asked = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 10)

            assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.writer.write(BODY)
            assert (await client.answer())[0] == 200

    run(scenario)


def test_who_sends_too_much_ahead_is_let_go_after_the_answer_he_waits_for() -> None:
    async def scenario(router: Router, port: int) -> None:
        go_on = asyncio.Event()

        async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
            await go_on.wait()
            writer.write(plain(b"ok"))

        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.send()
            await until(lambda: router.demand()["m"].in_flight == 1)
            for _ in range(4):
                client.send(BODY[:-1] + b" " * (1 << 20) + b"}")
            await client.writer.drain()
            go_on.set()

            assert (await client.answer())[0] == 200
            assert await asyncio.wait_for(client.reader.read(), 10) == b""
            assert len(backend.requests) == 1

    run(scenario)


# ---------------------------------------------------------------------- at random


def mutations(dice: random.Random, count: int) -> Iterator[bytes]:
    """Good requests with a piece that is not."""
    goods = [
        POST + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY),
        CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
        b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
    ]
    pieces = [
        b"\r\n", b"\n", b"\0", b" ", b"0\r\n\r\n", b"transfer-encoding: chunked\r\n", b"content-length: 0\r\n", b"content-length: 99\r\n",
        b"GET / HTTP/1.1\r\n", b"\xff" * 9, b":" * 9, b"a" * 70_000, b"connection: close\r\n", b"upgrade: h2c\r\nconnection: upgrade\r\n",
        b"expect: 100-continue\r\n", b"%", b"-1", SMUGGLED,
    ]  # fmt: skip
    for _ in range(count):
        data = b"".join(dice.choices(goods, k=dice.choice([1, 1, 2])))
        for _ in range(dice.choice([1, 1, 2, 3])):
            at = dice.randrange(len(data))
            data = data[:at] + dice.choice([b"", *pieces]) + data[at + dice.choice([0, 0, 1, 5, 40]) :]
        yield data


def test_broken_requests_disturb_nobody_else() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(echo) as backend:
            route(router, backend.address)
            over = asyncio.Event()

            async def control(number: int) -> int:
                client, asked = await Client.connect(port), 0
                while not over.is_set():
                    mark = b"%04d%04d" % (number, asked % 10_000)
                    client.send(b'{"model": "m", "prompt": "mark-%s"}' % mark)
                    assert (await client.answer())[2] == mark
                    asked += 1
                return asked

            async def broken(seed: int) -> None:
                for data in mutations(random.Random(seed), 40):
                    client = await Client.connect(port)
                    client.writer.write(data)
                    await asyncio.sleep(0.005)
                    if random.Random(seed).random() < 0.5:
                        client.writer.write_eof()
                    client.writer.transport.abort()

            controls = [asyncio.create_task(control(number)) for number in range(3)]
            await asyncio.gather(*(broken(seed) for seed in range(8)))
            over.set()

            assert all(asked > 10 for asked in await asyncio.gather(*controls))
            await until(lambda: router.demand()["m"].in_flight == 0)
            assert not any(b"/v1/smuggled" in request.partition(b"\r\n")[0] for request in backend.requests)

    run(scenario)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_any_bytes_get_an_answer_or_an_end(pieces: list[bytes]) -> None:
    async def scenario(router: Router, port: int) -> None:
        client = await Client.connect(port)
        for piece in pieces:
            client.writer.write(piece)
            await asyncio.sleep(0)
        client.writer.write_eof()
        answer = await asyncio.wait_for(client.reader.read(), 10)

        assert not answer or answer.startswith(b"HTTP/1.1 ")
        other = await Client.connect(port)
        other.send(b"", "/livez", "GET")
        assert (await other.answer())[2] == b"ok"

    run(scenario)
