"""`quire get`, `describe`, `logs`, `scale`, `explain`, `down`: from another terminal, about the `quire up` that runs.

They print to standard output what was asked for, and to standard error what went wrong; 1 is for that, 2 for bad input.
"""

import json
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quire_api.errors import InvalidInput
from quire_api.parser import FlagParser
from quire_operator.local.client import STATE_HELP, NotHere, Quire, Refused, find
from quire_operator.local.logs import follow, last_lines
from quire_operator.local.state import StateFolder, default_folder
from quire_operator.local.tables import coloured, table
from quire_operator.local.words import HEADER, WIDE, describe, explain, row

__all__ = ["describe_", "down", "explain_", "get", "logs", "scale"]

WATCH_S = 0.3
LIST = {"apiVersion": "v1", "kind": "List"}


def get(argv: list[str]) -> int:
    parser = _parser("get", "List the models of the local Quire.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="one of them (default: all)")
    parser.add_argument("-w", "--watch", action="store_true", help="and a line whenever one changes")
    parser.add_argument(
        "-o", "--output", choices=("json", "yaml", "wide"), help="the resources as JSON or YAML, or more columns"
    )

    def run(arguments: Namespace) -> int:
        quire = find(arguments.state, "kubectl get llmd")
        if arguments.output in ("json", "yaml"):
            if arguments.watch:
                raise InvalidInput(["-w: goes with the table only; leave out -o"])
            _print_whole(quire, arguments.name, arguments.output)
            return 0
        return _print_rows(quire, arguments.name, wide=arguments.output == "wide", watch=arguments.watch)

    return _run(parser, argv, run)


def _chosen(quire: Quire, name: str | None) -> list[dict[str, Any]]:
    return [quire.picture(name)] if name else quire.pictures()


def _print_whole(quire: Quire, name: str | None, form: str) -> None:
    items = [picture["resource"] for picture in _chosen(quire, name)]
    whole = items[0] if name else {**LIST, "items": items}
    if form == "json":
        print(json.dumps(whole, indent=2))
        return
    from quire_operator.documents import dump

    print(dump(whole), end="")


def _print_rows(quire: Quire, name: str | None, *, wide: bool, watch: bool) -> int:
    header, colours = WIDE if wide else HEADER, coloured()
    pictures = _chosen(quire, name)
    rows = [row(picture, time.time(), wide=wide) for picture in pictures]
    if not rows and not watch:
        print("nothing runs: the files of `quire up` have no resource", file=sys.stderr)
        return 0
    print(table(header, rows, colours=colours), flush=True)
    widths = [max(len(line[c]) for line in (header, *rows)) for c in range(len(header))]
    shown = {cells[0]: _lasting(cells) for cells in rows}
    while watch:
        time.sleep(WATCH_S)
        for picture in _chosen(quire, name):
            cells = row(picture, time.time(), wide=wide)
            if shown.get(cells[0]) != _lasting(cells):
                print(table((), [cells], colours=colours, widths=widths), flush=True)
            shown[cells[0]] = _lasting(cells)
    return 0


def _lasting(cells: tuple[str, ...]) -> tuple[str, ...]:
    """Without the age, which always changes."""
    return (*cells[:4], *cells[5:])


def describe_(argv: list[str]) -> int:
    def run(arguments: Namespace) -> int:
        quire = find(arguments.state, f"kubectl describe llmd {arguments.name}")
        print(describe(quire.picture(arguments.name), quire.owner.url, time.time(), colours=coloured()))
        return 0

    return _run(_named("describe", "Everything about one model and its engines."), argv, run)


def explain_(argv: list[str]) -> int:
    def run(arguments: Namespace) -> int:
        quire = find(arguments.state, f"kubectl describe llmd {arguments.name}")
        picture = quire.picture(arguments.name)
        from quire_api.reasons import REASONS
        from quire_api.status import DeploymentStatus
        from quire_operator.planner.explain import explain as explain_scaling

        reasons = {reason.value: (doc.meaning, doc.fix) for reason, doc in REASONS.items()}
        status = DeploymentStatus.model_validate_json(json.dumps(picture["resource"]["status"]))
        decisions = explain_scaling(status) if status.autoscaling is not None else []
        print(explain(picture, reasons, decisions))
        return 0

    return _run(_named("explain", "Why a model is in its state, and has as many replicas as it has."), argv, run)


def scale(argv: list[str]) -> int:
    parser = _named("scale", "Change how many engines serve a model, until its file says otherwise.")
    parser.add_argument("--replicas", type=int, required=True, metavar="N", help="how many; 0 to 1000")

    def run(arguments: Namespace) -> int:
        quire = find(arguments.state, f"kubectl scale llmd/{arguments.name} --replicas={arguments.replicas}")
        name = quire.picture(arguments.name)["resource"]["metadata"]["name"]
        quire.scale(name, arguments.replicas)
        print(f"{name} scaled to {arguments.replicas}; watch it with: quire get {name} -w")
        return 0

    return _run(parser, argv, run)


def logs(argv: list[str]) -> int:
    parser = _named("logs", "What the engines of a model have written; also after `quire down`.")
    parser.add_argument("-f", "--follow", action="store_true", help="and what they write from now on")
    parser.add_argument("--replica", type=int, metavar="N", help="of NAME-N alone (default: the newest engine)")
    parser.add_argument("--tail", type=int, default=1000, metavar="LINES", help="at most so many (default: 1000)")

    def run(arguments: Namespace) -> int:
        folder = StateFolder(arguments.state or default_folder())
        path = _log(folder, arguments.name, arguments.replica)
        sys.stdout.buffer.write(last_lines(path, arguments.tail))
        sys.stdout.flush()
        if arguments.follow:
            for data in follow(path, lambda: folder.owner() is not None):
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
        return 0

    return _run(parser, argv, run)


def _log(folder: StateFolder, name: str, replica: int | None) -> Path:
    found = {
        int(path.stem.removeprefix(f"{name}-")): path
        for path in folder.logs.glob(f"{name}-*.log")
        if path.stem.removeprefix(f"{name}-").isdigit()
    }
    if not found:
        raise NotHere(
            f"{name}: no engine of this name has a log in {folder.logs}; `quire get` lists the names; "
            f"on a cluster: kubectl logs -l quire.dev/llmdeployment={name}"
        )
    if replica is None:
        return max(found.values(), key=lambda path: path.stat().st_mtime)
    if replica not in found:
        raise NotHere(f"{name}: there is no replica {replica}; there is {', '.join(map(str, sorted(found)))}")
    return found[replica]


def down(argv: list[str]) -> int:
    parser = _parser("down", "End the `quire up` that runs; what was accepted is finished first.")
    parser.add_argument("--now", action="store_true", help="do not wait for open answers: they end with an error")

    def run(arguments: Namespace) -> int:
        quire = find(arguments.state, "kubectl delete llmd NAME")
        open_requests = sum(picture["inFlight"] for picture in quire.pictures())
        quire.end(now=arguments.now)
        if open_requests and not arguments.now:
            print(f"draining {open_requests} open requests; `quire down --now` cuts them", file=sys.stderr)
        while quire.owner.alive:
            time.sleep(0.05)
        print(f"quire up (pid {quire.owner.pid}) has ended")
        return 0

    return _run(parser, argv, run)


def _parser(command: str, text: str) -> FlagParser:
    parser = FlagParser(prog=f"quire {command}", description=text, allow_abbrev=False)
    parser.add_argument("--state", type=Path, metavar="DIR", help=STATE_HELP)
    return parser


def _named(command: str, text: str) -> FlagParser:
    parser = _parser(command, text)
    parser.add_argument("name", metavar="NAME", help="the resource's name")
    return parser


def _run(parser: FlagParser, argv: list[str], command: Callable[[Namespace], int]) -> int:
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `quire logs | head` ends in silence
    try:
        return command(arguments)
    except (NotHere, Refused) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
