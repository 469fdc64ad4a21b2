"""`quire fetch`: SOURCE STORE, and resolve, verify, list, gc.

What was asked for goes to standard output, all else to standard error. A failure is one line, `Reason: sentence`, and
the exit code of its reason (quire_api.fetching); a mistake in the arguments is exit code 2, as everywhere.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quire_api.errors import InvalidInput
from quire_api.fetching import FETCH_OUTCOMES
from quire_api.parser import FlagParser
from quire_engine.fetch.errors import FetchFailure, Interrupted
from quire_engine.fetch.halt import Halt

__all__ = ["fetch"]

TERMINATION_LOG = Path("/dev/termination-log")
UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def fetch(argv: list[str]) -> int:
    verb, arguments = _parse(argv)
    halt = Halt()
    try:
        with _signals(halt):
            return VERBS[verb](arguments, halt)
    except FetchFailure as failure:
        line = f"{failure.reason}: {' '.join(str(failure).split())}"
        print(f"quire fetch: {line}", file=sys.stderr)
        _leave_word(line)
        return failure.exit_code
    except BrokenPipeError:
        return 1


def _fetch(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.bring import Fetch, bring
    from quire_engine.fetch.port import answering
    from quire_engine.fetch.progress import Meter, Teller
    from quire_engine.fetch.source import LocalSource, parse_source

    source = parse_source(arguments.source)
    if isinstance(source, LocalSource):
        return _in_place(source, arguments, halt)
    if arguments.store is None:
        raise InvalidInput([f"no folder to fetch into: quire fetch {arguments.source} STORE"])
    wanted = Fetch(
        source=source,
        store=Path(arguments.store).expanduser(),
        choice=_choice(arguments),
        connections=_between("--connections", arguments.connections, 1, 64),
        verify=arguments.verify,
    )
    meter = Meter()
    with ExitStack() as stack:
        if arguments.status_port is not None:
            port = _between("--status-port", arguments.status_port, 0, 65535)
            try:
                stack.enter_context(answering(port, meter.status))
            except OSError as error:
                raise InvalidInput([f"--status-port: {port} cannot be listened on: {error.strerror}"]) from None
        file = Path(arguments.status_file) if arguments.status_file else None
        stack.enter_context(Teller(meter, quiet=arguments.quiet, file=file))
        try:
            folder = bring(wanted, meter, halt)
        except FetchFailure as failure:
            meter.phase("failed", f"{failure.reason}: {failure}")
            raise
    return _say_where(folder, arguments)


def _in_place(source: Any, arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.local import local_folder, verify_folder

    verdict = verify_folder(local_folder(source), hashes=True, halt=halt)
    return _say_where(verdict.folder, arguments)


def _say_where(folder: Path, arguments: argparse.Namespace) -> int:
    print(json.dumps({"folder": str(folder)}) if arguments.json else folder)
    return 0


def _resolve(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.resolving import resolve_line

    line = resolve_line(arguments.source, _choice(arguments), halt)
    print(line)
    _leave_word(line)
    return 0


def _verify(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.local import verify_folder
    from quire_engine.fetch.progress import human
    from quire_engine.fetch.store import finished_in, is_store

    path = Path(arguments.path).expanduser()
    folders = [each.folder for each in finished_in(path)] if is_store(path) else [path]
    failures: list[FetchFailure] = []
    for folder in folders:
        try:
            verdict = verify_folder(folder, hashes=True, halt=halt)
        except Interrupted:
            raise
        except FetchFailure as failure:
            failures.append(failure)
            continue
        what = "every hash is right" if verdict.hashed else "no manifest; every file has the length it says it has"
        print(f"{folder}: {verdict.files} files, {human(verdict.bytes)}: {what}")
    for each in failures[:-1]:
        print(f"quire fetch: {each.reason}: {each}", file=sys.stderr)
    if failures:
        raise failures[-1]
    return 0


def _list(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.gc import contents
    from quire_engine.fetch.progress import human

    found = contents(_store(arguments))
    if arguments.json:
        print(json.dumps([{**asdict(each), "folder": str(each.folder)} for each in found]))
        return 0
    for each in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        state = each.busy or ("ready" if each.finished else "unfinished")
        print(f"{human(each.bytes):>10}  {used}  {state:12}  {each.folder}")
    return 0


def _gc(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.gc import collect, contents, victims
    from quire_engine.fetch.progress import human

    quota = _bytes("--quota", arguments.quota)
    found = contents(_store(arguments), [Path(path) for path in arguments.keep])
    total = sum(each.bytes for each in found)
    freed = 0
    for each in victims(found, quota):
        halt.check()
        if arguments.dry_run or collect(each):
            print(f"{'would remove' if arguments.dry_run else 'removed'} {each.folder} ({human(each.bytes)})")
            freed += each.bytes
    left = total - freed
    print(f"{human(total)} before, {human(left)} after, of {human(quota)}")
    if left > quota:
        print("the rest is in use, kept, or being written", file=sys.stderr)
    return 0


VERBS: dict[str, Callable[[argparse.Namespace, Halt], int]] = {
    "fetch": _fetch,
    "resolve": _resolve,
    "verify": _verify,
    "list": _list,
    "gc": _gc,
}


def _parse(argv: list[str]) -> tuple[str, argparse.Namespace]:
    verb = argv[0] if argv and argv[0] in VERBS and argv[0] != "fetch" else "fetch"
    rest = argv if verb == "fetch" else argv[1:]
    codes = ", ".join(f"{outcome.exit_code} {reason}" for reason, outcome in FETCH_OUTCOMES.items())
    about = {
        "fetch": (
            "SOURCE STORE",
            "Bring a model into a folder of models; the last line printed is its own folder there.",
        ),
        "resolve": (
            "SOURCE",
            "Print revision, bytes and footprint of a model as one line of JSON; nothing is fetched.",
        ),
        "verify": ("PATH", "Read every byte of a model, or of all models of a store, and compare."),
        "list": ("STORE", "List the models of a store."),
        "gc": (
            "STORE --quota SIZE",
            "Remove the models of a store that were not asked for longest, until it is within a quota.",
        ),
    }[verb]
    name = "quire fetch" + ("" if verb == "fetch" else f" {verb}")
    others = "" if verb != "fetch" else "\nother forms: quire fetch resolve | verify | list | gc, each with --help"
    parser = FlagParser(
        prog=name,
        usage=f"{name} {about[0]} [--flags]",
        description=about[1],
        epilog=f"exit codes: {codes}{others}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _ADD[verb](parser)
    return verb, parser.parse_args(rest)


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="hf://org/model[@revision], s3://bucket/prefix, https://.../manifest.json; file://, pvc:// and builtin:// are verified in place")  # fmt: skip
    parser.add_argument(
        "store", metavar="STORE", nargs="?", help="the folder of models; not for what is verified in place"
    )
    _add_choice(parser)
    parser.add_argument(
        "--verify", action="store_true", help="compare the hashes of what is there already, and mend it"
    )
    parser.add_argument("--connections", metavar="N", default="8", help="requests at a time (default: 8)")
    parser.add_argument("--status-file", metavar="PATH", help="keep the progress there, as a line of JSON")
    parser.add_argument("--status-port", metavar="PORT", help="answer the same line there over HTTP")
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument("--json", action="store_true", help="print the folder as JSON")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help="bring these files instead of those chosen by rule; configuration and tokenizer come along; may be repeated")  # fmt: skip
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="leave these files out; may be repeated")  # fmt: skip
    parser.add_argument(
        "--allow-pickle", action="store_true", help="take pickled weights where there are no safetensors"
    )


def _add_resolve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="as for `quire fetch`")
    _add_choice(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a model's folder, or a store")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the folder of models")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the folder of models")
    parser.add_argument("--quota", metavar="SIZE", required=True, help="bytes that may stay, as 200GiB")
    parser.add_argument("--keep", metavar="FOLDER", action="append", default=[], help="a model that must stay; may be repeated")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "fetch": _add_fetch,
    "resolve": _add_resolve,
    "verify": _add_verify,
    "list": _add_list,
    "gc": _add_gc,
}


def _choice(arguments: argparse.Namespace) -> Any:
    from quire_engine.fetch.choose import Choice

    return Choice(
        include=tuple(arguments.include), exclude=tuple(arguments.exclude), allow_pickle=arguments.allow_pickle
    )  # fmt: skip


def _store(arguments: argparse.Namespace) -> Path:
    path = Path(arguments.store).expanduser()
    if not path.is_dir():
        raise InvalidInput([f"{path} is no folder"])
    return path


def _between(flag: str, text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise InvalidInput([f"{flag}: {text} is not a number from {low} to {high}"])
    return int(text)


def _bytes(flag: str, text: str) -> int:
    number = text.rstrip("BKMGTikb")
    unit = text[len(number) :]
    unit = {"K": "KiB", "M": "MiB", "G": "GiB", "T": "TiB", "Ki": "KiB", "Mi": "MiB", "Gi": "GiB", "Ti": "TiB"}.get(
        unit, unit
    )
    try:
        return int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        raise InvalidInput([f"{flag}: {text} is no size; write 200GiB, or a number of bytes"]) from None


@contextmanager
def _signals(halt: Halt) -> Iterator[None]:
    """SIGTERM and SIGINT end it in order: the lock is released, what arrived is kept."""

    def stop(number: int, _: object) -> None:
        halt.stop(Interrupted(f"{signal.Signals(number).name}: what arrived is kept, the next run goes on from there"))

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_word(line: str) -> None:
    """Where Kubernetes looks for a container's last words."""
    with suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(line[:4096])
