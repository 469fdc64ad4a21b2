"""The server's HTTP below the application: time limits, in this process; and how much JSON is taken."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from quire_engine.server import body, wire
from quire_engine.server.body import num_containers_and_values
from quire_engine.server.wire import Wire

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[bytes]]


@asynccontextmanager
async def listening(answer_s: float) -> AsyncIterator[int]:
    """The port of a server that answers "done" after so long."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(answer_s)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
        await send({"type": "http.response.body", "body": b"done"})

    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off")
    state = ServerState()
    server = await asyncio.get_running_loop().create_server(
        lambda: Wire(config, state, {}), sock=socket.create_server(("127.0.0.1", 0))
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


def talk(monkeypatch: pytest.MonkeyPatch, said: bytes, answer_s: float = 0) -> bytes:
    """What comes back until the server closes, where headers have to come within a tenth of a second."""
    monkeypatch.setattr(wire, "HEAD_S", 0.1)

    async def run() -> bytes:
        async with listening(answer_s) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            seen = await asyncio.wait_for(reader.read(-1), 10)
            writer.close()
            return seen

    return asyncio.run(run())


def test_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert talk(monkeypatch, b"") == b""


def test_headers_that_do_not_come_to_an_end_are_408(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = talk(monkeypatch, b"GET / HTTP/1.1\r\nhost: x\r\n")

    head, _, answer = seen.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer)["error"]["code"] == 408


@pytest.mark.parametrize("more", [b"\r\n", b"GET /"], ids=["an empty line", "half a request"])
def test_the_limit_counts_after_an_answer_too_and_cuts_none(monkeypatch: pytest.MonkeyPatch, more: bytes) -> None:
    """A connection that stays, and of which half a request, or less, came while the first was being answered."""
    seen = talk(monkeypatch, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + more, answer_s=0.5)

    assert seen.startswith(b"HTTP/1.1 200 OK")
    assert b"done" in seen


def as_written(value: Any) -> tuple[int, int]:
    """Containers and names, and values that follow another."""
    if isinstance(value, dict):
        inner = [as_written(each) for each in value.values()]
        own = 1 + len(value)
    elif isinstance(value, list):
        inner = [as_written(each) for each in value]
        own = 1
    else:
        return 0, 0
    return own + sum(c for c, _ in inner), max(0, len(inner) - 1) + sum(v for _, v in inner)


TEXTS = st.text(st.sampled_from('"\\,:[]{}a'))
VALUES = st.recursive(
    st.none() | st.integers() | TEXTS, lambda each: st.lists(each) | st.dictionaries(TEXTS, each), max_leaves=20
)


@given(VALUES)
def test_parts_in_strings_do_not_count(value: Any) -> None:
    data = json.dumps(value).encode()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body, "MOST_CONTAINERS", 0)  # so that it matters how many there are exactly
        patch.setattr(body, "MOST_VALUES", 10_000)
        counted = num_containers_and_values(data)

    assert counted == as_written(value) or (counted[0] == 0 and as_written(value)[0] == 0)
