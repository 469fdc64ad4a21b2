"""What the dashboard is looked at with: a router with keys in a thread, a real engine, and one that says what it is told to.

Real sockets throughout. What the scripted engine answers depends on the last message of the chat.
"""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fakes.backend import Backend, plain

from quire_router import Endpoint, Model, Registry, Router, Scaling
from quire_router.keys import KeyEntry, Keys, hash_of

__all__ = ["HOSTILE", "HOSTILE_NAME", "KEY", "Stage", "staged"]

KEY = "e2e-key-7c1f"
HOSTILE = '<img src=x onerror="hacked=1"><script>hacked=1</script> & \'quoted\' "too"'
HOSTILE_NAME = "<img src=x onerror=hacked=1>"
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Stage:
    def __init__(self, engine: str) -> None:
        """`engine`: where quire-tiny is served."""
        self._engine = engine
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._replicas = 1
        self._scaled: tuple[Scaling, ...] = ()
        self._scripted = HOSTILE_NAME
        self.port = 0
        self.left = threading.Event()  # a client, in the middle of an answer of the scripted engine

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        self._do(self._start())

    def scale(self, replicas: int, reason: str) -> None:
        """The scripted model gets another number of replicas."""
        self._scaled = (Scaling(at=time.time(), before=self._replicas, after=replicas, reason=reason), *self._scaled)
        self._replicas = replicas
        self._do(self._put())

    def rename(self, scripted: str) -> None:
        """The scripted model is called so."""
        self._scripted = scripted
        self._do(self._put())

    def stop(self) -> None:
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _start(self) -> None:
        self._backends = [await Backend(self._answer).__aenter__() for _ in range(2)]
        for backend in self._backends:
            backend.ready = plain(b'{"running": 1, "waiting": 2, "kv_usage": 0.25}')
        self._router = Router()
        keys = (
            KeyEntry(name="all", sha256=hash_of(KEY), groups=("staff",)),
            KeyEntry(name="guest", sha256=hash_of("guest")),
        )
        self._router.use_keys(Keys(keys))
        await self._put()
        self.port = await self._router.start("127.0.0.1", 0)

    async def _put(self) -> None:
        scripted = tuple(Endpoint(address=backend.address) for backend in self._backends[: self._replicas])
        models = (
            Model(name="quire-tiny", endpoints=(Endpoint(address=self._engine),), desired=1),
            Model(
                name=self._scripted, endpoints=scripted, desired=self._replicas, history=self._scaled, groups=("staff",)
            ),
            Model(name="asleep", aliases=("gpt-4o",), desired=0),
        )
        self._router.replace(Registry(models))

    async def _stop(self) -> None:
        await self._router.stop(0)
        for backend in self._backends:
            await backend.__aexit__()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            await _answer(request, writer)
        except (ConnectionError, asyncio.CancelledError):
            self.left.set()


@contextmanager
def staged(engine: str) -> Iterator[Stage]:
    stage = Stage(engine)
    stage.start()
    try:
        yield stage
    finally:
        stage.stop()


async def _answer(request: bytes, writer: asyncio.StreamWriter) -> None:
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    asked = body["messages"][-1]["content"]
    if asked == "fail":
        writer.write(plain(b'{"error": {"message": "this went wrong", "code": 500}}', "500 Internal Server Error"))
        return
    writer.write(_HEAD)
    for delta in _SCRIPTS.get(asked, lambda: iter([{"content": asked}]))():
        _event(writer, {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await writer.drain()
        await asyncio.sleep(0.05)
    _event(writer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _event(writer: asyncio.StreamWriter, chunk: dict[str, Any]) -> None:
    data = b"data: %s\n\n" % json.dumps(chunk).encode()
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))


def _endless() -> Iterator[dict[str, Any]]:
    for number in range(100_000):
        yield {"content": f"{number} "}


def _thoughtful() -> Iterator[dict[str, Any]]:
    yield {"reasoning_content": "They want "}
    yield {"reasoning_content": "the weather."}
    yield {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "weather", "arguments": '{"city": '}}]}
    yield {"tool_calls": [{"index": 0, "function": {"arguments": '"Bern"}'}}]}
    yield {"content": "I look it up."}


_SCRIPTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "hostile": lambda: iter([{"reasoning_content": HOSTILE, "content": HOSTILE}]),
    "count": _endless,
    "think": _thoughtful,
}
