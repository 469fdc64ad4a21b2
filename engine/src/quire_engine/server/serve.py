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
from collections.abc import Iterator
from typing import Any

import uvicorn

from quire_api.engine import EngineConfig
from quire_engine.errors import EXIT_ADDRESS
from quire_engine.locate import locate_model
from quire_engine.process.client import EngineClient
from quire_engine.server.app import make_app
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
    folder = locate_model(config.model)
    spec, tokenizer = read_spec(folder), Tokenizer(folder)
    names = config.served_model_name or (folder.name,)
    listener = _bind(config)
    metrics = EngineMetrics(names[0])
    client = EngineClient(config, metrics.on_load)
    generation = Generation(config, names, spec, tokenizer, client, metrics)
    app = make_app(generation, metrics)
    server = _Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2, ws="none"
        )
    )
    stop = asyncio.Event()
    cut = asyncio.Event()

    def on_signal() -> None:
        (cut if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)

    await client.start()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    announcing = asyncio.create_task(_announce(client, names[0], listener))
    stopping: asyncio.Future[bool] = asyncio.create_task(stop.wait())
    waits: list[asyncio.Future[Any]] = [client.ended, stopping]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    announcing.cancel()

    if not client.ended.done():
        generation.draining = True
        log.info("draining %d open requests", client.open_requests)
        await _drained(client, cut, config.shutdown_timeout)
        client.cut_all()
    ended = client.ended.result() if client.ended.done() else None
    server.should_exit = True  # answers what is left of the open responses, then returns
    await serving
    await client.stop()
    if config.uds:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(config.uds)
    if ended is not None:
        raise ServerFailure(ended.reason, ended.exit_code)


async def _drained(client: EngineClient, cut: asyncio.Event, timeout: float) -> None:
    """Until no request is open, or a second signal, or the end of patience."""
    cutting = asyncio.create_task(cut.wait())
    deadline = asyncio.get_running_loop().time() + timeout
    while client.open_requests and client.alive and not cutting.done() and asyncio.get_running_loop().time() < deadline:
        await asyncio.wait({cutting}, timeout=0.05)
    cutting.cancel()


async def _announce(client: EngineClient, name: str, listener: socket.socket) -> None:
    ready = await client.ready
    address = listener.getsockname()
    where = f"http://{address[0]}:{address[1]}/v1" if isinstance(address, tuple) else f"unix:{address}"
    tokens = ready.num_blocks * ready.block_size
    log.info(
        "%s is ready at %s: %s on %s, KV cache of %d tokens, up to %d in a request, loaded in %.1f s",
        name, where, ready.dtype, ready.device, tokens, ready.max_model_len, ready.load_seconds,
    )  # fmt: skip


def _bind(config: EngineConfig) -> socket.socket:
    """Take the address before anything is started."""
    try:
        if config.uds:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(config.uds)
        else:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            listener = socket.socket(family)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((config.host, config.port))
        listener.listen(2048)
    except OSError as error:
        where, flag = (config.uds, "--uds") if config.uds else (f"{config.host}:{config.port}", "--port")
        raise ServerFailure(
            f"cannot listen on {where}: {os.strerror(error.errno or 0)}; choose another with {flag}", EXIT_ADDRESS
        ) from None
    return listener
