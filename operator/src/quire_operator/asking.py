"""A GET for JSON, from engines and routers: HTTP/1.0, no connection kept, and no error, only no answer."""

import asyncio
import json
from typing import Any

__all__ = ["ask"]

ANSWER_MOST = 1 << 20


async def ask(where: str, path: str, timeout_s: float) -> Any:
    """`where` is host:port or the path of a socket; None when there is no such answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            if where.startswith("/"):
                reader, writer = await asyncio.open_unix_connection(where)
            else:
                host, _, port = where.rpartition(":")
                reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nhost: quire\r\nconnection: close\r\n\r\n".encode())
                answer = b""
                while len(answer) < ANSWER_MOST and (part := await reader.read(65_536)):
                    answer += part
            finally:
                writer.close()
        head, _, body = answer.partition(b"\r\n\r\n")
        return json.loads(body) if head.split(b" ", 2)[1:2] == [b"200"] else None
    except (OSError, TimeoutError, ValueError, RecursionError):
        return None
