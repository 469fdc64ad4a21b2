"""Many clients that stream one answer after the other, in this process, each on a connection of its own."""

import asyncio
import json
import threading
import time

__all__ = ["ManyStreams", "stream_once"]

QUESTION = "Tell me a story."


class ManyStreams:
    """Every client begins again until `finish`; each answer must be whole, and the same as the first."""

    def __init__(self, host: str, port: int, model: str, count: int) -> None:
        self._where = host, port, model
        self._count = count
        self._begun = 0
        self._over = threading.Event()
        self._broken: list[str] = []
        self._texts: set[str] = set()
        self.whole = 0
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._thread.start()

    def begun(self) -> bool:
        return self._begun >= self._count or bool(self._broken)

    def finish(self) -> list[str]:
        self._over.set()
        self._thread.join(300)
        assert not self._thread.is_alive(), "streams did not end within 300 s"
        several = [f"{len(self._texts)} different answers"] if len(self._texts) > 1 else []
        print(f"   {self.whole} streams of {self._count} clients, {len(self._broken)} broken", flush=True)
        return self._broken + several

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._count)))

    async def _client(self, number: int) -> None:
        first = True

        def on_first() -> None:
            nonlocal first
            self._begun += first
            first = False

        while not self._over.is_set():
            started = time.monotonic()
            try:
                self._texts.add(await stream_once(*self._where, on_first))
                self.whole += 1
            except (OSError, AssertionError, asyncio.IncompleteReadError, ValueError) as error:
                self._broken.append(f"client {number}, after {time.monotonic() - started:.1f} s: {error!r}")
                return


async def stream_once(host: str, port: int, model: str, on_first: object) -> str:
    """The text of one answer; AssertionError or OSError when it is not whole."""
    body = json.dumps(
        {
            "model": model,
            "stream": True,
            "temperature": 0,
            "messages": [{"role": "user", "content": QUESTION}],
        }
    ).encode()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        writer.write(f"{head}content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readline()
        assert b" 200 " in status, status + await reader.read(500)
        text, done = "", False
        async for line in reader:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                if callable(on_first):
                    on_first()
                text += event["choices"][0]["delta"].get("content") or ""
            done = done or line.startswith(b"data: [DONE]")
        assert done, f"it broke off after {len(text)} characters"
        return text
    finally:
        writer.close()
