"""`quire plan`, `quire up`, `quire operator`."""

import asyncio
import logging
import signal
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import yaml

from quire_api.parser import FlagParser, port
from quire_operator.documents import load, load_profiles
from quire_operator.local.client import STATE_HELP
from quire_operator.local.detach import detach
from quire_operator.local.state import StateFolder, default_folder
from quire_operator.local.watch import Files
from quire_operator.planner.plan import Desired
from quire_operator.planner.workloads import is_workload
from quire_operator.render import kubernetes, process
from quire_operator.settings import LeaseName, OperatorSettings

__all__ = ["operator", "plan", "up"]


class _Whole(yaml.SafeDumper):
    """What two parts share, each of them shows."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def plan(argv: list[str]) -> int:
    """Print what would be applied, as YAML that kubectl takes; with --local, the processes."""
    parser = FlagParser(
        prog="quire plan", description="Print what the resources of YAML files become.", allow_abbrev=False
    )
    _add_files(parser)
    parser.add_argument(
        "--local", action="store_true", help="the processes of `quire up` instead of Kubernetes objects"
    )
    parser.add_argument(
        "--engine-image",
        default=OperatorSettings().engine_image,
        help="image of engines that name none (default: %(default)s)",
    )
    _add_profiles(parser)
    arguments = parser.parse_args(argv)
    settings = OperatorSettings(engine_image=arguments.engine_image, profiles=load_profiles(arguments.profiles))
    documents = []
    for deployment in load(arguments.file):
        if arguments.local:
            desired: Desired = process.render(deployment, "http://127.0.0.1:8000/v1")
        else:
            desired = kubernetes.render(deployment, settings)
        for manifest in (*desired.objects, *([desired.resolve] if desired.resolve else [])):
            if is_workload(manifest):  # set through /scale, so that an autoscaler may own it
                replicas = 0 if deployment.spec.suspend else desired.replicas
                manifest = {**manifest, "spec": {"replicas": replicas, **manifest["spec"]}}
            documents.append(manifest)
    print(yaml.dump_all(documents, Dumper=_Whole, sort_keys=False, width=120), end="")
    return 0


def up(argv: list[str]) -> int:
    parser = FlagParser(
        prog="quire up", description="Run the models of YAML files on this machine.", allow_abbrev=False
    )
    _add_files(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address of the endpoint (default: %(default)s)")
    parser.add_argument(
        "--port", type=port, default=8000, help="port of the endpoint; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument("--no-watch", action="store_true", help="do not follow changes of the files")
    parser.add_argument("--detach", action="store_true", help="go on in the background; `quire down` ends it")
    parser.add_argument("--state", type=Path, metavar="DIR", help=STATE_HELP)
    arguments = parser.parse_args(argv)
    files, state = Files(arguments.file), StateFolder(arguments.state or default_folder())
    if arguments.detach:
        Files(arguments.file).read()  # mistakes are said here, before anything is started
        return detach([word for word in argv if word != "--detach"], state)

    import uvloop

    from quire_operator.up import UpOptions, run_up

    logging.basicConfig(level=logging.WARNING, format="quire up: %(message)s", stream=sys.stderr)
    options = UpOptions(host=arguments.host, port=arguments.port, watch=not arguments.no_watch)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_up(files, state, options))


def operator(argv: list[str]) -> int:
    parser = FlagParser(prog="quire operator", description="Run the Kubernetes operator.", allow_abbrev=False)
    defaults = OperatorSettings()
    parser.add_argument(
        "--engine-image", default=defaults.engine_image, help="image of engines that name none (default: %(default)s)"
    )
    parser.add_argument(
        "--namespace", action="append", default=[], help="watch this namespace only; repeat it (default: all)"
    )
    parser.add_argument(
        "--cluster-domain", default=defaults.cluster_domain, help="for `status.url` (default: %(default)s)"
    )
    _add_profiles(parser)
    parser.add_argument(
        "--router-url",
        default="",
        metavar="URL",
        help="of the routers, for `status.url` (default: the model's Service)",
    )
    parser.add_argument(
        "--routers",
        type=_service,
        metavar="HOST:PORT",
        help="internal port of all routers, by a headless Service; without it nothing goes to zero (default: none)",
    )
    parser.add_argument("--port", type=port, default=8080, help="port of /livez and /metrics (default: %(default)s)")
    alone = parser.add_mutually_exclusive_group(required=True)
    alone.add_argument(
        "--lease",
        type=_lease,
        metavar="NAMESPACE/NAME",
        help="Lease that one operator holds at a time; the others stand by",
    )
    alone.add_argument("--no-lease", action="store_true", help="no other operator runs on this cluster, nor will")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)

    logging.getLogger("kopf.objects").setLevel(logging.WARNING)  # it tells of every event; we tell of every action

    from quire_operator.lease import LeaseLost
    from quire_operator.operate import OperateOptions, operate

    settings = OperatorSettings(
        engine_image=arguments.engine_image,
        cluster_domain=arguments.cluster_domain,
        profiles=load_profiles(arguments.profiles),
        router_url=arguments.router_url,
        routers=arguments.routers or "",
    )

    options = OperateOptions(namespaces=arguments.namespace, port=arguments.port, lease=arguments.lease)

    async def until_signalled() -> None:
        running = asyncio.create_task(operate(settings, options))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        try:
            await running
        except asyncio.CancelledError:
            pass

    try:
        asyncio.run(until_signalled())
    except LeaseLost as lost:
        logging.getLogger("quire.operator").error("%s; ending, to stand by anew", lost)
        return 1
    return 0


def _add_profiles(parser: FlagParser) -> None:
    parser.add_argument(
        "--profiles",
        type=Path,
        metavar="FILE",
        help="YAML with accelerator profiles besides nvidia and cpu, by name",
    )


def _service(text: str) -> str:
    host, _, number = text.rpartition(":")
    if not host:
        raise ArgumentTypeError(f"{text} is not HOST:PORT")
    port(number)
    return text


def _lease(text: str) -> LeaseName:
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise ArgumentTypeError(f"{text} is not NAMESPACE/NAME")
    return LeaseName(namespace, name)


def _add_files(parser: FlagParser) -> None:
    parser.add_argument(
        "-f",
        "--file",
        action="append",
        required=True,
        metavar="FILE",
        help="a YAML file, or a folder of them; repeat it",
    )
