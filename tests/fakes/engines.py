"""Engines that are processes of their own, to be killed and stopped: each answers with its name, slowly if asked to.

A stream has an event every `delay` seconds; an answer that is none waits so long once.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["EngineProcess", "engines"]


@dataclass
class EngineProcess:
    process: "subprocess.Popen[bytes]"
    name: str
    address: str

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@contextlib.contextmanager
def engines(count: int, *, events: int = 5, delay: float = 0.0) -> Iterator[list[EngineProcess]]:
    started: list[EngineProcess] = []
    try:
        for i in range(count):
            command = [sys.executable, __file__, f"e{i}", str(events), str(delay)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE)
            started.append(EngineProcess(process, f"e{i}", ""))
        for engine in started:
            assert engine.process.stdout is not None
            engine.address = engine.process.stdout.readline().decode().strip()
        yield started
    finally:
        for engine in started:
            engine.process.kill()
            engine.process.wait()
            assert engine.process.stdout is not None
            engine.process.stdout.close()


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


async def _serve(name: str, events: int, delay: float) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /readyz "):
                    writer.write(whole(b"ok"))
                    continue
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                if json.loads(await reader.readexactly(length)).get("stream"):
                    await stream(writer)
                else:
                    await asyncio.sleep(delay)
                    writer.write(whole(name.encode()))
        writer.close()

    async def stream(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for i in range(events):
            event = b'data: {"engine": "%s", "n": %d}\n\n' % (name.encode(), i)
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(delay)
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=4096)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
