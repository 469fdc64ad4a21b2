"""Streams of server-sent events to measure what lies between: a backend that makes them, and a client that reads them.

Every event carries the time when it was written, by the clock of the machine, which both share; the client takes the
difference. The backend is one process that listens on several ports. Both are as plain as a protocol can be, so that
what is measured is the proxy's.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

__all__ = ["Reading", "read_streams"]

PADDING = "x" * 120  # with it, an event is about as long as an engine's
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
READY = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
PATIENCE_S = 120.0


# ---------------------------------------------------------------------- backend


class Maker(asyncio.Protocol):
    """Answers a POST with as many events as its `max_tokens` says, `every` seconds apart."""

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._data += data
        end = self._data.find(b"\r\n\r\n")
        while end >= 0 and self._transport is not None:
            head = self._data[:end].lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
            if len(self._data) < end + 4 + length:
                return
            body, self._data = self._data[end + 4 : end + 4 + length], self._data[end + 4 + length :]
            if head.startswith(b"get "):
                self._transport.write(READY)
            else:
                ask = json.loads(body)
                self._transport.write(HEAD)
                self._next(ask["max_tokens"], ask["every"])
            end = self._data.find(b"\r\n\r\n")

    def _next(self, left: int, every: float) -> None:
        if self._transport is None:
            return
        if left == 0:
            self._transport.write(END)
            return
        event = b'data: {"t": %d, "x": "%s"}\n\n' % (time.monotonic_ns(), PADDING.encode())
        self._transport.write(b"%x\r\n%s\r\n" % (len(event), event))
        asyncio.get_running_loop().call_later(every, self._next, left - 1, every)


async def _make(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Maker, "127.0.0.1", port, backlog=4096) for port in ports]
    print("ready", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


# ---------------------------------------------------------------------- client


@dataclass
class Reading:
    delays_ms: list[float] = field(default_factory=list)  # of each event but the first of its stream
    first_ms: list[float] = field(default_factory=list)  # from the request to the first event
    complete: int = 0
    dropped: int = 0


class Reader(asyncio.Protocol):
    """One connection, on which one stream is asked for after another."""

    def __init__(self, request: bytes, streams: int, reading: Reading) -> None:
        self._request = request
        self._left = streams
        self._reading = reading
        self._asked_ns = 0
        self._first = True
        self._tail = b""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._ask()

    def _ask(self) -> None:
        self._left -= 1
        self._asked_ns, self._first, self._tail = time.monotonic_ns(), True, b""
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        data = self._tail + data
        at = data.find(b'{"t": ')
        while at >= 0:
            end = data.find(b",", at)
            if end < 0:
                break
            if self._first:
                self._first = False
                self._reading.first_ms.append((now - self._asked_ns) / 1e6)
            else:
                self._reading.delays_ms.append((now - int(data[at + 6 : end])) / 1e6)
            data = data[end:]
            at = data.find(b'{"t": ')
        self._tail = data[-64:] if at < 0 else data[at:]
        if data.endswith(b"\r\n0\r\n\r\n"):
            self._reading.complete += 1
            if self._left:
                self._ask()
            else:
                self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self._reading.dropped += 1 + self._left
            self.done.set_result(None)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
        self._transport.close()


async def read_streams(
    ports: list[int], *, users: int, streams: int, events: int, every: float, over: float
) -> Reading:
    """So many users, who come evenly within `over` seconds; each asks for so many streams. Spread over `ports`."""
    body = json.dumps({"model": "bench", "stream": True, "max_tokens": events, "every": every}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    reading, loop, readers = Reading(), asyncio.get_running_loop(), []
    for i in range(users):
        try:
            _, reader = await loop.create_connection(
                lambda: Reader(request, streams, reading), "127.0.0.1", ports[i % len(ports)]
            )
        except OSError:
            reading.dropped += streams
            continue
        readers.append(reader)
        await asyncio.sleep(over / users)
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(reader.done for reader in readers))
    return reading


def _main(argv: list[str]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_make([int(port) for port in argv]))


if __name__ == "__main__":
    _main(sys.argv[1:])
