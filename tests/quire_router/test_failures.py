"""Engines that die, hang, refuse and break off: what has no byte yet goes elsewhere, the rest ends with a clear error."""

import asyncio
import json
import signal

import pytest
from fakes.backend import UNREADY, Backend, chunked, events, plain
from fakes.engines import engines
from fakes.routing import Client, all_ready, route, run, until
from fakes.serving import free_port
from fakes.slow_line import SlowLine

from quire_router import Router, Strategy

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'10\r\ndata: {"n": 1}\n\n\r\n'


def errors_in(stream: list[bytes]) -> list[str]:
    found = [json.loads(event.removeprefix(b"data: ")) for event in stream if event.startswith(b"data: {")]
    return [each["error"]["message"] for each in found if "error" in each]


# ---------------------------------------------------------------------- real processes


def test_a_killed_engine_loses_no_request_that_had_no_byte() -> None:
    with engines(2, delay=1.0) as pair:

        async def scenario(router: Router, port: int) -> None:
            route(router, *(engine.address for engine in pair))
            await all_ready(port, 2)
            clients = [await Client.connect(port) for _ in range(20)]
            for client in clients:
                client.ask()
            await until(lambda: router.demand()["m"].in_flight == 20)

            pair[0].send(signal.SIGKILL)

            answers = await asyncio.gather(*(client.answer() for client in clients))
            assert {(status, body) for status, _, body in answers} == {(200, b"e1")}

        run(scenario)


def test_a_killed_engines_streams_end_with_an_error_event_and_the_others_go_on() -> None:
    with engines(2, events=10, delay=0.1) as pair:

        async def scenario(router: Router, port: int) -> None:
            route(router, *(engine.address for engine in pair))
            await all_ready(port, 2)
            clients = [await Client.connect(port) for _ in range(20)]
            for client in clients:
                client.ask(stream=True)
            streams = [asyncio.create_task(client.stream()) for client in clients]
            await asyncio.sleep(0.4)

            pair[0].send(signal.SIGKILL)

            ends = [stream for _, stream in await asyncio.gather(*streams)]
            broken = [stream for stream in ends if errors_in(stream)]
            assert 0 < len(broken) < 20
            assert all(
                errors_in(stream) == ["the engine closed the connection in the middle of its answer"]
                for stream in broken
            )
            assert all(len(stream) == 11 and stream[-1] == b"data: [DONE]" for stream in ends if stream not in broken)
            clients[0].ask()
            assert (await clients[0].answer())[2] == b"e1"

        run(scenario)


def test_a_stopped_engine_gets_nothing_new_and_its_unanswered_requests_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_router.exchange.MOVE_AFTER_S", 0.8)
    with engines(2, delay=1.0) as pair:

        async def scenario(router: Router, port: int) -> None:
            route(router, *(engine.address for engine in pair))
            await all_ready(port, 2)
            clients = [await Client.connect(port) for _ in range(10)]
            for client in clients:
                client.ask()
            await until(lambda: router.demand()["m"].in_flight == 10)
            pair[0].send(signal.SIGSTOP)

            answers = await asyncio.gather(*(client.answer() for client in clients))

            assert {(status, body) for status, _, body in answers} == {(200, b"e1")}
            state = (await clients[0].get("/state"))["models"][0]
            assert {b["url"]: b["state"] for b in state["backends"]} == {
                f"http://{pair[0].address}": "stale",
                f"http://{pair[1].address}": "ready",
            }
            pair[0].send(signal.SIGCONT)
            await all_ready(port, 2)

        run(scenario)


def test_the_streams_of_an_engine_that_stays_silent_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire_router.exchange.GIVE_UP_S", 1.0)
    with engines(1, events=50, delay=0.1) as (engine,):

        async def scenario(router: Router, port: int) -> None:
            route(router, engine.address)
            client = await Client.connect(port)
            client.ask(stream=True)
            await client.reader.readuntil(b'"n": 2')

            engine.send(signal.SIGSTOP)

            rest = await asyncio.wait_for(client.reader.readuntil(b"\r\n0\r\n\r\n"), 10)
            assert b"the engine does not answer in the middle of its answer" in rest

        run(scenario)


def test_behind_a_line_that_is_ten_seconds_slow_nothing_is_lost_while_another_engine_lives() -> None:
    with engines(2, delay=1.0) as pair:

        async def scenario(router: Router, port: int) -> None:
            async with SlowLine(pair[0].address) as line:
                route(router, line.address, pair[1].address)
                await all_ready(port, 2)
                clients = [await Client.connect(port) for _ in range(10)]
                for client in clients:
                    client.ask()
                await until(lambda: router.demand()["m"].in_flight == 10)

                line.latency_s = 10.0

                answers = await asyncio.wait_for(asyncio.gather(*(client.answer() for client in clients)), 9)
                assert [status for status, _, _ in answers] == [200] * 10
                clients[0].ask()
                assert (await clients[0].answer())[2] == b"e1"
                line.latency_s = 0.0
                await all_ready(port, 2)

        run(scenario)


def test_behind_a_line_that_is_ten_seconds_slow_the_only_engine_answers_nobody_and_everybody_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quire_router.exchange.GIVE_UP_S", 2.0)
    with engines(1, events=50, delay=0.1) as (engine,):

        async def scenario(router: Router, port: int) -> None:
            async with SlowLine(engine.address) as line:
                route(router, line.address)
                await all_ready(port, 1)
                streaming, asking = await Client.connect(port), await Client.connect(port)
                streaming.ask(stream=True)
                await streaming.reader.readuntil(b'"n": 2')

                line.latency_s = 10.0

                rest = await asyncio.wait_for(streaming.reader.readuntil(b"\r\n0\r\n\r\n"), 9)
                assert b"the engine does not answer in the middle of its answer" in rest
                asking.ask()
                line.latency_s = 0.0
                assert (await asking.answer())[0] == 200

        run(scenario)


def test_an_engine_that_takes_long_is_waited_for() -> None:
    with engines(1, delay=1.5) as (engine,):

        async def scenario(router: Router, port: int) -> None:
            route(router, engine.address)
            client = await Client.connect(port)
            client.ask()

            assert (await client.answer())[2] == b"e0"

        run(scenario)


def test_while_engines_come_and_go_nothing_is_lost() -> None:
    """As in a roll-out: each is taken out of the registry before it ends, some end before that is known."""
    with engines(4, delay=0.02) as four:

        async def scenario(router: Router, port: int) -> None:
            addresses = [engine.address for engine in four]
            route(router, *addresses)
            await all_ready(port, 4)
            statuses: list[int] = []

            async def ask() -> None:
                client = await Client.connect(port)
                for _ in range(15):
                    client.ask()
                    statuses.append((await client.answer())[0])

            asking = [asyncio.create_task(ask()) for _ in range(20)]
            await asyncio.sleep(0.1)
            route(router, *addresses[1:])
            await asyncio.sleep(0.1)
            four[1].send(signal.SIGKILL)
            await asyncio.sleep(0.1)
            route(router, *addresses[2:])
            four[2].send(signal.SIGKILL)

            await asyncio.gather(*asking)
            assert statuses == [200] * 300

        run(scenario)


# ---------------------------------------------------------------------- scripted bytes


async def hangs_up(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def answers(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(plain(b"ok"))


async def unready(request: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(UNREADY)


def test_an_engine_that_hangs_up_before_any_byte_is_not_asked_twice() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(hangs_up) as bad, Backend(answers) as good:
            route(router, bad.address, good.address)
            await all_ready(port, 2)
            client = await Client.connect(port)
            for _ in range(3):
                client.ask()
                assert (await client.answer())[0] == 200

        assert len(bad.requests) <= 3
        assert len(good.requests) == 3

    run(scenario)


def test_an_engine_that_hangs_up_and_is_alone_is_502() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(hangs_up) as bad:
            route(router, bad.address)
            client = await Client.connect(port)
            client.ask()

            status, error = await client.refusal()

        assert (status, error["type"], error["message"]) == (502, "upstream_error", "the engine closed the connection")
        assert len(bad.requests) == 1

    run(scenario)


def test_a_request_at_which_engines_die_does_not_kill_them_all() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(hangs_up) as a, Backend(hangs_up) as b, Backend(hangs_up) as c, Backend(hangs_up) as d:
            four = [a, b, c, d]
            route(router, *(each.address for each in four))
            await all_ready(port, 4)
            client = await Client.connect(port)
            client.ask()

            assert (await client.refusal())[0] == 502
            assert sum(len(each.requests) for each in four) == 3

    run(scenario)


def test_a_503_of_an_engine_that_takes_nothing_goes_elsewhere() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(unready) as bad, Backend(answers) as good:
            route(router, bad.address, good.address)
            await all_ready(port, 2)
            client = await Client.connect(port)
            for _ in range(3):
                client.ask()
                assert (await client.answer())[0] == 200

    run(scenario)


@pytest.mark.parametrize(
    "status", ["503 Service Unavailable", "500 Internal Server Error", "400 Bad Request", "429 Too Many Requests"]
)
def test_other_errors_are_the_engines_to_give(status: str) -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b'{"error": {"type": "other"}}', status))

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            seen, head, body = await client.answer()

        assert (seen, body) == (int(status[:3]), b'{"error": {"type": "other"}}')
        assert b"x-backend: yes" in head

    run(scenario)


def test_an_address_where_nobody_is_counts_for_nothing_while_another_is_there() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as good:
            route(router, f"127.0.0.1:{free_port()}", good.address)
            client = await Client.connect(port)
            for _ in range(3):
                client.ask()
                assert (await client.answer())[0] == 200

    run(scenario)


def test_half_of_a_short_answer_is_a_clean_502_and_not_retried() -> None:
    async def cut(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(cut) as backend, Backend(cut) as other:
            route(router, backend.address, other.address)
            client = await Client.connect(port)
            client.ask()

            status, error = await client.refusal()

            assert (status, error["message"]) == (502, "the engine closed the connection in the middle of its answer")
            assert len(backend.requests) + len(other.requests) == 1

    run(scenario)


def test_half_of_a_large_answer_ends_the_connection() -> None:
    async def cut(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nhalf")
        await writer.drain()
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(cut) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            assert (await asyncio.wait_for(client.reader.read(), 10)).endswith(b"half")

    run(scenario)


@pytest.mark.parametrize("rest", [b"", b'10\r\ndata: {"n"', b"1", b"0\r\n"])
def test_a_stream_that_breaks_off_after_an_event_ends_with_an_error_event(rest: bytes) -> None:
    async def cut(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + EVENT + rest)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(cut) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask(stream=True)

            _, stream = await client.stream()

            assert stream[0] == b'data: {"n": 1}'
            assert errors_in(stream) == ["the engine closed the connection in the middle of its answer"]
            client.send(b"", "/livez", "GET")  # the connection goes on
            assert (await client.answer())[0] == 200

    run(scenario)


def test_a_stream_that_breaks_off_within_an_event_is_cut() -> None:
    async def cut(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b'8\r\ndata: {"\r\n')
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(cut) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask(stream=True)

            assert (await asyncio.wait_for(client.reader.read(), 10)).endswith(b'8\r\ndata: {"\r\n')

    run(scenario)


@pytest.mark.parametrize("garbage", [b"nonsense\r\n\r\n", HEAD + b"zz\r\n", b"x" * 100_000])
def test_what_is_no_http_is_an_error_and_no_crash(garbage: bytes) -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(garbage)

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            assert (await client.refusal())[0] == 502

    run(scenario)


def test_a_circuit_opens_after_failures_in_a_row_and_closes_again() -> None:
    broken = True

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(plain(b"{}", "500 Internal Server Error") if broken else plain(b"ok"))

    async def scenario(router: Router, port: int) -> None:
        nonlocal broken
        async with Backend(script) as bad, Backend(answers) as good:
            route(router, bad.address, good.address, strategy=Strategy.ROUND_ROBIN)
            await all_ready(port, 2)
            client = await Client.connect(port)
            for _ in range(20):
                client.ask()
                await client.answer()
            states = {b["url"]: b["state"] for b in (await client.get("/state"))["models"][0]["backends"]}
            assert states == {f"http://{bad.address}": "open", f"http://{good.address}": "ready"}
            assert len(bad.requests) < 8

            broken = False
            await asyncio.sleep(1.1)
            for _ in range(4):
                client.ask()
                assert (await client.answer())[0] == 200
            await all_ready(port, 2)

    run(scenario)


def test_an_engine_that_turns_away_the_request_on_trial_is_tried_again() -> None:
    """Five failures, an open circuit, and then a 503: it says nothing of the engine, and must not keep it out for ever."""
    says = plain(b"{}", "500 Internal Server Error")

    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(says)

    async def scenario(router: Router, port: int) -> None:
        nonlocal says
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            for _ in range(5):
                client.ask()
                assert (await client.answer())[0] == 500
            says = UNREADY
            client.ask()
            await until(lambda: len(backend.requests) > 5)
            says = plain(b"ok")

            assert (await client.answer())[0] == 200

    run(scenario)


def test_an_interim_answer_is_not_passed_on() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + plain(b"ok"))

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            assert (await client.answer())[0] == 200

    run(scenario)


def test_a_drained_engine_finishes_its_streams() -> None:
    async def scenario(router: Router, port: int) -> None:
        go_on = asyncio.Event()

        async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
            whole = events(b'{"n": 1}', b"[DONE]")
            writer.write(whole[:-20])
            await go_on.wait()
            writer.write(whole[-20:])

        async with Backend(script) as old, Backend(answers) as new:
            route(router, old.address)
            client = await Client.connect(port)
            client.ask(stream=True)
            await until(lambda: router.demand()["m"].in_flight == 1)

            route(router, new.address)
            other = await Client.connect(port)
            other.ask()
            assert (await other.answer())[2] == b"ok"
            go_on.set()

            assert (await client.stream())[1][-1] == b"data: [DONE]"

    run(scenario)


def test_a_chunked_answer_without_events_passes() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunked())

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            assert (await client.stream())[1] == []

    run(scenario)


def test_an_answer_that_ends_with_its_connection_ends_so_for_the_client() -> None:
    async def script(request: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nhello")
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        async with Backend(script) as backend:
            route(router, backend.address)
            client = await Client.connect(port)
            client.ask()

            assert (await asyncio.wait_for(client.reader.read(), 10)).endswith(b"\r\n\r\nhello")

    run(scenario)


def test_an_engine_that_answers_before_it_has_read_gets_the_next_request_over_another_connection() -> None:
    connections = 0

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /readyz "):
            writer.write(plain(b"ok"))
        else:
            connections += 1
            writer.write(plain(b"ok", "413 Content Too Large" if connections == 1 else "200 OK"))
        await over.wait()
        writer.close()

    async def scenario(router: Router, port: int) -> None:
        server = await asyncio.start_server(early, "127.0.0.1", 0)
        route(router, f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        client = await Client.connect(port)
        client.ask(prompt="x" * (16 << 20))
        assert (await client.answer())[0] == 413

        client.ask()

        assert (await client.answer())[0] == 200
        over.set()
        server.close()

    over = asyncio.Event()
    run(scenario)


def test_a_name_that_no_resolver_takes_is_an_engine_that_does_not_answer() -> None:
    async def scenario(router: Router, port: int) -> None:
        async with Backend(answers) as good:
            route(router, f"{'a' * 70}.example:80", good.address)
            await all_ready(port, 1)
            state = (await (await Client.connect(port)).get("/state"))["models"][0]

            assert sorted(backend["state"] for backend in state["backends"]) == ["ready", "stale"]

    run(scenario)
