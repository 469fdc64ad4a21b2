"""A line to a server that can become slow: every byte to and from it comes so much later, as on a broken network."""

import asyncio

__all__ = ["SlowLine"]


class SlowLine:
    """A relay before `address`. `latency_s` may change while connections are open."""

    def __init__(self, address: str) -> None:
        self._to = address
        self._tasks: list[asyncio.Task[None]] = []
        self._ends: list[asyncio.StreamWriter] = []
        self.latency_s = 0.0
        self.address = ""

    async def __aenter__(self) -> "SlowLine":
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in self._ends:
            end.transport.abort()
        await asyncio.sleep(0)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = self._to.rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        for source, target in ((reader, far_writer), (far_reader, writer)):
            self._tasks.append(asyncio.create_task(self._carry(source, target)))
            self._ends.append(target)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await source.read(1 << 16):
                loop.call_later(self.latency_s, _send, target, data)
        except ConnectionError:
            pass
        loop.call_later(self.latency_s, target.close)


def _send(target: asyncio.StreamWriter, data: bytes) -> None:
    if not target.is_closing():
        target.write(data)
