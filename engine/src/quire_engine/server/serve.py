"""The API process from start to exit: bind, start the engine, serve, drain.

We own the signals: uvicorn's own handling would close the listener at once, and neither "what was accepted
finishes" nor "what comes after is refused with 503" would hold.

    SIGTERM, SIGINT   unready; finish what was accepted, refuse the rest; exit 0
    a second one, or --shutdown-timeout over: cut, each open stream gets an error event; exit 0
    engine process ended: each open stream gets an error event; exit with its code
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from quire_api.engine import EngineConfig
from quire_engine.errors import EXIT_ADDRESS
from quire_engine.locate import locate_model
from quire_engine.process.client import EngineClient
from quire_engine.server.app import make_app
from quire_engine.server.door import Door
from quire_engine.server.generation import Generation
from quire_engine.server.metrics import EngineMetrics
from quire_engine.spec import read_spec
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["ServerFailure", "serve"]

log = logging.getLogger("quire.serve")


class ServerFailure(Exception):
    """The server could not start, or ended for another reason than a signal."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


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
    folder = locate_model(config.model)
    spec = read_spec(folder)
    names = config.served_model_name or (folder.resolve().name,)
    metrics = EngineMetrics(names[0])
    client = EngineClient(config, metrics.on_load)
    generation = Generation(config, names, spec, Tokenizer(folder, spec.shape.vocabulary), client, metrics)
    door = Door(make_app(generation, metrics), generation.why_not_ready)
    listener = _bind(config)
    try:
        await client.start()
        await _serve_until(stop, cut, config.shutdown_timeout, listener, names[0], generation, client, door)
    finally:
        await client.stop()
        if config.uds:
            Path(config.uds).unlink(missing_ok=True)
    if client.failed is not None:
        raise ServerFailure(client.failed.reason, client.failed.exit_code)


async def _serve_until(
    stop: asyncio.Event,
    cut: asyncio.Event,
    patience: float,
    listener: socket.socket,
    name: str,
    generation: Generation,
    client: EngineClient,
    door: Door,
) -> None:
    """Serve; when told to stop, drain; when the engine or the server has ended, end."""
    server = _Server(
        uvicorn.Config(
            door, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2, ws="none"
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(client, name, listener))
    stopping = asyncio.create_task(stop.wait())
    waits: list[asyncio.Future[Any]] = [client.ended, serving, stopping]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()
    stopping.cancel()
    if stop.is_set() and client.alive:
        generation.draining = True
        log.info("draining %d open requests", door.inside)
        await _drained(door, client, cut, patience)
        client.cut_all()
    server.should_exit = True  # what is still open gets its error event, then it returns
    await serving


async def _drained(door: Door, client: EngineClient, cut: asyncio.Event, patience: float) -> None:
    """Until nobody is inside, or a second signal, or the end of patience."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while door.inside and client.alive and not cut.is_set() and loop.time() < deadline:
        await asyncio.sleep(0.02)


async def _announce(client: EngineClient, name: str, listener: socket.socket) -> None:
    started = time.monotonic()
    ready = await asyncio.shield(client.ready)
    address = listener.getsockname()
    where = f"http://{address[0]}:{address[1]}/v1" if isinstance(address, tuple) else f"unix:{address}"
    tokens = ready.num_blocks * ready.block_size
    log.info(
        "%s is ready at %s after %.1f s: %s on %s, KV cache of %d tokens, up to %d in a request",
        name, where, time.monotonic() - started, ready.dtype, ready.device, tokens, ready.max_model_len,
    )  # fmt: skip


def _bind(config: EngineConfig) -> socket.socket:
    """Take the address before anything is started."""
    try:
        if config.uds:
            listener = _bind_unix(config.uds)
        else:
            listener = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((config.host, config.port))
        listener.listen(2048)
    except (OSError, UnicodeError, TypeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error)
        where, flags = (config.uds, "--uds") if config.uds else (f"{config.host}:{config.port}", "--host or --port")
        raise ServerFailure(f"cannot listen on {where}: {reason}; choose another with {flags}", EXIT_ADDRESS) from None
    return listener


def _bind_unix(path: str) -> socket.socket:
    """A socket file that nobody answers on is what a killed server left: take its place."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # not there, or no socket at all: bind will say so
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    return listener
