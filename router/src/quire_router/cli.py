"""`quire router`: the router alone, before engines named in a file, on the command line, or by a cluster."""

import asyncio
import contextlib
import logging
import resource
import signal
import ssl
import sys
from argparse import Namespace
from collections.abc import Callable, Coroutine
from pathlib import Path

import uvloop

from quire_api.errors import InvalidInput
from quire_api.parser import FlagParser, port
from quire_router.config import address, read_config, read_keys
from quire_router.keys import hash_of
from quire_router.registry import Endpoint, Model, Registry
from quire_router.router import Router
from quire_router.watch import Watched

__all__ = ["router"]


def router(argv: list[str]) -> int:
    if argv[:1] == ["hash-key"]:
        return _hash_key(argv[1:])
    arguments = _parser().parse_args(argv)
    if sum(map(bool, (arguments.config, arguments.backend, arguments.kubernetes))) != 1:
        raise InvalidInput(
            ["name the engines: by --config FILE, by --backend MODEL=HOST:PORT, once or more, or by --kubernetes"]
        )
    if arguments.namespace and not arguments.kubernetes:
        raise InvalidInput(["--namespace goes with --kubernetes"])
    if bool(arguments.tls_cert_file) != bool(arguments.tls_key_file):
        raise InvalidInput(["--tls-cert-file and --tls-key-file go together: give both, or none"])
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if arguments.tls_cert_file else None
    _allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments, tls))


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="quire router",
        description="Route requests by their `model` to engines. `quire router hash-key` reads an API key from standard"
        " input and prints what a file of keys has of it.",
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=port, default=8000, help="port to listen on; 0 takes a free one (default: 8000)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of models; read again when it changes")
    parser.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="MODEL=ADDRESS",
        help="instead: an engine, as host:port or the path of a socket; repeat it",
    )
    parser.add_argument(
        "--kubernetes", action="store_true", help="instead: follow the LLMDeployments of a cluster, and their engines"
    )
    parser.add_argument(
        "--namespace", action="append", default=[], help="of these namespaces only; repeat it (default: all)"
    )
    parser.add_argument(
        "--internal-port",
        type=port,
        metavar="PORT",
        help="also serve the probes, /metrics and /demand here, without keys or TLS, for those who run it (default: no)",
    )
    parser.add_argument(
        "--keys-file", type=Path, metavar="FILE", help="YAML file of API keys; read again when it changes"
    )
    parser.add_argument("--tls-cert-file", type=Path, metavar="FILE", help="serve HTTPS with this certificate chain")
    parser.add_argument("--tls-key-file", type=Path, metavar="FILE", help="its private key")
    parser.add_argument(
        "--shutdown-timeout",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long open answers may take after a signal, before they end with an error (default: 300)",
    )
    return parser


def _hash_key(argv: list[str]) -> int:
    FlagParser(
        prog="quire router hash-key",
        description="Read an API key from standard input; print what a file of keys has of it.",
        allow_abbrev=False,
    ).parse_args(argv)
    secret = sys.stdin.readline().strip()
    if not secret:
        raise InvalidInput(["hash-key: standard input has no key: pipe one in, such as from `openssl rand -hex 24`"])
    print(hash_of(secret))
    return 0


def _take_chain(tls: ssl.SSLContext, cert: Path, key: Path) -> None:
    """For connections from now on."""
    try:
        for context in (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), tls):  # a bad pair would stay in the first
            context.load_cert_chain(cert, key, password="")  # of a key that has one, nobody could be asked
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput([f"--tls-cert-file {cert}, --tls-key-file {key}: {error}"]) from None


def _allow_many_connections() -> None:
    """A stream takes two descriptors, and many systems begin with 1,024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # some systems name a limit that they do not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _from_flags(backends: list[str]) -> Registry:
    by_model: dict[str, list[str]] = {}
    for backend in backends:
        model, separator, where = backend.partition("=")
        try:
            found = address(where) if model and separator else None
        except ValueError:
            found = None
        if found is None:
            raise InvalidInput([f"--backend: {backend} is not MODEL=HOST:PORT or MODEL=/path/of/socket"])
        by_model.setdefault(model, []).append(found)
    return Registry(
        tuple(
            Model(name=model, endpoints=tuple(Endpoint(address=each) for each in dict.fromkeys(addresses)))
            for model, addresses in by_model.items()
        )
    )


async def _run(arguments: Namespace, tls: ssl.SSLContext | None) -> int:
    server = Router()
    if arguments.kubernetes:
        from quire_router.cluster.world import ClusterWorld, api_client  # a second of imports, and 50 MB

        async with api_client() as api:
            server.world = world = ClusterWorld(api, arguments.namespace, server.replace)
            return await _serve(server, [], world.run, arguments, tls)
    files = []
    if arguments.config is None:
        server.replace(_from_flags(arguments.backend))
    else:
        files.append(server.watch(arguments.config, lambda path: server.replace(read_config(path))))
    return await _serve(server, files, None, arguments, tls)


async def _serve(
    server: Router,
    files: list[Watched],
    follow: Callable[[], Coroutine[None, None, None]] | None,
    arguments: Namespace,
    tls: ssl.SSLContext | None,
) -> int:
    """Until a signal, following `files` and whatever else says where engines are."""
    if arguments.keys_file is not None:
        files.append(server.watch(arguments.keys_file, lambda path: server.use_keys(read_keys(path))))
    if tls is not None:
        key = arguments.tls_key_file
        files.append(server.watch(arguments.tls_cert_file, lambda path: _take_chain(tls, path, key), key))
    for file in files:
        file.load()
    stop, cut = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, lambda: (cut if stop.is_set() else stop).set())
    host = arguments.host
    try:
        taken = await server.start(host, arguments.port, tls)
        if arguments.internal_port is not None:
            await server.backstage.start(host, arguments.internal_port)
    except OSError as error:
        reason = f"{error.strerror or error}; choose another with --host or --port"
        print(f"quire router: cannot listen on {host}:{arguments.port}: {reason}", file=sys.stderr)
        return 1
    names = ", ".join(model.name for model in server.registry.models) or "the models of a cluster"
    print(f"routing {names} at {'https' if tls else 'http'}://{host}:{taken}/v1", file=sys.stderr)
    following = {
        asyncio.create_task(each()) for each in (*(file.follow for file in files), *([follow] if follow else []))
    }
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait({stopped, *following}, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # raises what ended one that is to go on for ever
    stopping = asyncio.create_task(server.stop(arguments.shutdown_timeout, keep_holding=True))
    cutting = asyncio.create_task(cut.wait())
    await asyncio.wait({stopping, cutting}, return_when=asyncio.FIRST_COMPLETED)
    if cut.is_set():
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        await server.stop(0)
    for task in (*following, cutting):
        task.cancel()
    await asyncio.gather(*following, cutting, return_exceptions=True)
    return 0
