"""A router on real sockets, and clients that speak to it in raw bytes. Everything ends with the scenario."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from quire_router import Endpoint, Model, Registry, Router

__all__ = ["BODY", "Client", "Scenario", "all_ready", "route", "run", "until"]

BODY = json.dumps({"model": "m", "prompt": "é 漢", "extra": [1, 2]}).encode()
Scenario = Callable[[Router, int], Awaitable[None]]


class Client:
    opened: ClassVar[list["Client"]] = []  # of the scenario that runs, to be closed with it

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> "Client":
        client = cls(*await asyncio.open_connection("127.0.0.1", port))
        cls.opened.append(client)
        return client

    def send(self, body: bytes = BODY, path: str = "/v1/completions", method: str = "POST", head: str = "") -> None:
        framing = f"content-length: {len(body)}\r\n" if body else ""
        self.writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\n{framing}{head}\r\n".encode() + body)

    def ask(self, **fields: Any) -> None:
        self.send(json.dumps({"model": "m", "prompt": "a", **fields}).encode())

    async def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head, body of one answer framed by content-length."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        return int(head.split(b" ")[1]), head, await asyncio.wait_for(self.reader.readexactly(length), 10)

    async def refusal(self) -> tuple[int, Any]:
        status, _, body = await self.answer()
        return status, json.loads(body)["error"]

    async def get(self, path: str, head: str = "") -> Any:
        self.send(b"", path, "GET", head)
        return json.loads((await self.answer())[2])

    async def stream(self) -> tuple[bytes, list[bytes]]:
        """The head, and the events of a chunked stream that ends as it should; a comment is one, too."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
        data = b""
        while size := int(await asyncio.wait_for(self.reader.readline(), 10), 16):
            data += await self.reader.readexactly(size)
            assert await self.reader.readexactly(2) == b"\r\n"
        assert await self.reader.readexactly(2) == b"\r\n"
        return head, [event for event in data.split(b"\n\n") if event]


def run(scenario: Scenario, wake: Callable[[str], None] = lambda model: None) -> None:
    async def main() -> None:
        router = Router(wake)
        port = await router.start("127.0.0.1", 0)
        try:
            await asyncio.wait_for(scenario(router, port), 30)
        finally:
            await asyncio.wait_for(router.stop(1), 10)
            while Client.opened:
                Client.opened.pop().writer.close()
            await asyncio.sleep(0.01)  # until the transports are gone

    asyncio.run(main())


def route(router: Router, *addresses: str, **fields: Any) -> None:
    """One model, `m`, with these engines."""
    endpoints = tuple(Endpoint(address=address) for address in addresses)
    router.replace(Registry((Model(name="m", endpoints=endpoints, **fields),)))


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


async def all_ready(port: int, count: int) -> None:
    client = await Client.connect(port)

    async def ready() -> int:
        return int((await client.get("/state"))["models"][0]["ready"])

    async with asyncio.timeout(10):
        while await ready() != count:
            await asyncio.sleep(0.02)
