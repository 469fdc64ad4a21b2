"""An HTTP server whose every byte is scripted, to see what a proxy makes of it. Real sockets.

It answers /readyz by itself, as `ready` says; those requests are not counted.
"""

import asyncio
from collections.abc import Awaitable, Callable

__all__ = ["UNREADY", "Backend", "chunked", "events", "plain"]

Script = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]

_BODY = (
    b'{"error": {"message": "the engine is draining", "type": "service_unavailable_error", "param": null, "code": 503}}'
)
UNREADY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: %d\r\nretry-after: 2\r\n\r\n%s" % (len(_BODY), _BODY)


def plain(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\nx-backend: yes\r\n\r\n%s" % (status.encode(), len(body), body)


def chunked(*parts: bytes, kind: str = "application/json") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n%s0\r\n\r\n" % (
        kind.encode(),
        body,
    )


def events(*parts: bytes) -> bytes:
    """A whole stream."""
    return chunked(*(b"data: %s\n\n" % part for part in parts), kind="text/event-stream; charset=utf-8")


class Backend:
    """Calls `script` with each request it has read whole; remembers them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[bytes] = []
        self.connections = 0  # which had a request
        self.lost = asyncio.Event()  # a client went away in the middle of an answer
        self.address = ""
        self.ready = plain(b"ok")  # what /readyz answers

    async def __aenter__(self) -> "Backend":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = False
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /readyz "):
                    writer.write(self.ready)
                    continue
                self.connections += not asked
                asked = True
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                answering = asyncio.create_task(self._script(self.requests[-1], writer))
                leaving = asyncio.create_task(self._gone(reader))
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if leaving.done():
                    self.lost.set()
                    answering.cancel()
                    return
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _gone(self, reader: asyncio.StreamReader) -> None:
        while not reader.at_eof():
            await asyncio.sleep(0.01)
