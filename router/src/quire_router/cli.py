"""`quire router`: the router alone, before backends given on the command line."""

import asyncio
import signal
import sys

import uvloop

from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser, port
from quire_router.proxy import Router
from quire_router.registry import Registry, Route

__all__ = ["router"]


def router(argv: list[str]) -> int:
    parser = FlagParser(
        prog="quire router", description="Route requests by their `model` to engines.", allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    parser.add_argument(
        "--backend",
        action="append",
        required=True,
        metavar="MODEL=ADDRESS",
        help="an engine: host:port or the path of a socket; repeat it",
    )
    arguments = parser.parse_args(argv)
    registry = Registry()
    registry.replace(_routes(arguments.backend))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(Router(registry), arguments.host, arguments.port))


def _routes(backends: list[str]) -> list[Route]:
    by_model: dict[str, list[str]] = {}
    for backend in backends:
        model, separator, address = backend.partition("=")
        if not (model and separator and address and (address.startswith("/") or address.rpartition(":")[2].isdigit())):
            raise InvalidInput([f"--backend: {backend} is not MODEL=HOST:PORT or MODEL=/path/of/socket"])
        by_model.setdefault(model, []).append(address)
    return [Route(names=(model,), addresses=tuple(addresses)) for model, addresses in by_model.items()]


async def _run(server: Router, host: str, port: int) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        port = await server.start(host, port)
    except OSError as error:
        print(
            f"quire router: cannot listen on {host}:{port}: {error.strerror or error}; choose another with --host or --port",
            file=sys.stderr,
        )
        return 1
    print(f"routing {', '.join(server.registry.models)} at http://{host}:{port}/v1", file=sys.stderr)
    await stop.wait()
    await server.stop()
    return 0
