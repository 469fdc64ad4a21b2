"""The API process from start to exit: bind, start the engine, serve, drain.

We own the signals: uvicorn's own handling would close the listener at once, and neither "what was accepted
finishes" nor "what comes after is refused with 503" would hold.

    SIGTERM, SIGINT   unready; finish what was accepted, refuse the rest; exit 0
    a second one, or --shutdown-timeout over: cut, each open stream gets an error event; exit 0
    engine process ended: each open stream gets an error event; exit with its code
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from quire_api.engine import EngineConfig
from quire_engine.process.client import EngineClient
from quire_engine.server.assemble import Parts, assemble
from quire_engine.server.door import Door
from quire_engine.server.listen import ServerFailure, bind
from quire_engine.server.wire import Wire

__all__ = ["serve"]

log = logging.getLogger("quire.serve")


class _Server(uvicorn.Server):
    """uvicorn, its hands off the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: EngineConfig) -> None:
    """Run until told to stop."""
    stop, cut = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (cut if stop.is_set() else stop).set())
    parts = assemble(config)
    listener = bind(config.host, config.port, config.uds)
    admin = None if config.admin_port is None else bind(config.admin_host, config.admin_port, None, "--admin-")
    try:
        await parts.client.start()
        await _serve_until(stop, cut, config.shutdown_timeout, listener, admin, parts)
    finally:
        await parts.client.stop()
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)
    if parts.client.failed is not None:
        raise ServerFailure(parts.client.failed.reason, parts.client.failed.exit_code)


async def _serve_until(
    stop: asyncio.Event,
    cut: asyncio.Event,
    patience: float,
    listener: socket.socket,
    admin: socket.socket | None,
    parts: Parts,
) -> None:
    """Serve; when told to stop, drain; when the engine or the server has ended, end."""
    client, door = parts.client, parts.door
    servers = [(_uvicorn(parts.front, **parts.tls), listener)]
    if admin is not None:
        servers.append((_uvicorn(parts.admin), admin))
    serving = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in servers]
    announcing = asyncio.create_task(_announce(client, parts.generation.names[0], listener, admin, parts.tls))
    stopping = asyncio.create_task(stop.wait())
    waits: list[asyncio.Future[Any]] = [client.ended, stopping, *serving]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    stopping.cancel()
    if stop.is_set() and client.alive:
        parts.generation.stopping = True
        log.info("draining %d open requests", door.inside)
        await _drained(door, client, cut, patience)
        client.cut_all()
    for server, _ in servers:
        server.should_exit = True  # what is still open gets its error event, then it returns
    await asyncio.gather(*serving)


def _uvicorn(app: ASGIApp, **options: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
            http=Wire,
            ws="none",
            server_header=False,
            **options,
        )
    )


async def _drained(door: Door, client: EngineClient, cut: asyncio.Event, patience: float) -> None:
    """Until nobody is inside, or a second signal, or the end of patience."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while door.inside and client.alive and not cut.is_set() and loop.time() < deadline:
        await asyncio.sleep(0.02)


async def _announce(
    client: EngineClient, name: str, listener: socket.socket, admin: socket.socket | None, tls: dict[str, str]
) -> None:
    started = time.monotonic()
    ready = await asyncio.shield(client.ready)
    gc.collect()
    gc.freeze()  # what was loaded stays; collections look only at what is new
    address = listener.getsockname()
    scheme = "https" if tls else "http"
    where = f"{scheme}://{address[0]}:{address[1]}/v1" if isinstance(address, tuple) else f"unix:{address}"
    if admin is not None:
        log.info("the admin endpoints are at http://%s:%d", *admin.getsockname()[:2])
    if not ready.num_blocks:
        log.info("%s makes embeddings at %s, of up to %d tokens", name, where, ready.max_model_len)
        return
    tokens = ready.num_blocks * ready.block_size
    log.info(
        "%s is ready at %s after %.1f s: %s on %s, KV cache of %d tokens, up to %d in a request",
        name, where, time.monotonic() - started, ready.dtype, ready.device, tokens, ready.max_model_len,
    )  # fmt: skip
