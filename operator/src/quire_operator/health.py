"""What the operator's port answers: three paths, by GET. What they say is decided elsewhere."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

__all__ = ["serve"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"


async def serve(port: int, answer: Callable[[bytes], tuple[int, bytes]]) -> asyncio.Server:
    """`answer` takes a path and gives a status and a text."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            path = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split(b" ", 2)[1]
            status, body = answer(path)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {TEXT}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, IndexError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(talk, "0.0.0.0", port)
