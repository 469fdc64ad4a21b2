"""`quire fetch`: SOURCE STORE, and resolve, verify, list, gc.

What was asked for goes to standard output, all else to standard error. A failure is one line, `Reason: sentence`, and
the exit code of its reason (quire_api.fetching); a mistake in the arguments is exit code 2, as everywhere.
"""

import argparse
import json
import os
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
from quire_engine.fetch.arguments import between, bytes_of, choice_of, parse_arguments, store_of
from quire_engine.fetch.errors import FetchFailure, Interrupted
from quire_engine.fetch.halt import Halt

__all__ = ["fetch"]

TERMINATION_LOG = Path("/dev/termination-log")


def fetch(argv: list[str]) -> int:
    verb, arguments = parse_arguments(argv)
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
    from quire_engine.fetch.progress import Meter, Teller, replace
    from quire_engine.fetch.source import LocalSource, parse_source

    source = parse_source(arguments.source)
    if isinstance(source, LocalSource):
        return _in_place(source, arguments, halt)
    if arguments.store is None:
        raise InvalidInput([f"no folder to fetch into: quire fetch {arguments.source} STORE"])
    wanted = Fetch(
        source=source,
        store=Path(arguments.store).expanduser(),
        choice=choice_of(arguments),
        connections=between("--connections", arguments.connections, 1, 64),
        verify=arguments.verify,
        revision=arguments.revision,
    )
    meter = Meter()
    with ExitStack() as stack:
        if arguments.status_port is not None:
            port = between("--status-port", arguments.status_port, 0, 65535)
            try:
                stack.enter_context(answering(port, meter.status))
            except OSError as error:
                raise InvalidInput([f"--status-port: {port} cannot be listened on: {error.strerror}"]) from None
        file = Path(arguments.status_file) if arguments.status_file else None
        if file is not None:
            try:
                replace(file, json.dumps(meter.status()) + "\n")
            except OSError as error:
                raise InvalidInput([f"--status-file: {file} cannot be written: {error.strerror}"]) from None
        stack.enter_context(Teller(meter, quiet=arguments.quiet, file=file))
        try:
            folder = bring(wanted, meter, halt)
        except FetchFailure as failure:
            meter.phase("failed", f"{failure.reason}: {failure}")
            raise
    if arguments.link is not None:
        _link(Path(arguments.link).expanduser(), folder)
    return _say_where(folder, arguments)


def _link(path: Path, folder: Path) -> None:
    """In one step, so that nobody finds half of it; a file or folder that is no link stays."""
    if path.exists() and not path.is_symlink():
        raise InvalidInput([f"--link: {path} exists and is no link: choose another path"])
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.symlink_to(folder.absolute())
        fresh.replace(path)
    except OSError as error:
        raise InvalidInput([f"--link: {path} cannot be made: {error.strerror}"]) from None


def _in_place(source: Any, arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.local import local_folder, verify_folder

    verdict = verify_folder(local_folder(source), hashes=True, halt=halt)
    return _say_where(verdict.folder, arguments)


def _say_where(folder: Path, arguments: argparse.Namespace) -> int:
    print(json.dumps({"folder": str(folder)}) if arguments.json else folder)
    return 0


def _resolve(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.resolving import resolve_line

    line = resolve_line(arguments.source, choice_of(arguments), halt)
    print(line)
    _leave_word(line)
    return 0


def _verify(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.local import verify_folder
    from quire_engine.fetch.progress import human
    from quire_engine.fetch.store import is_store, revisions_in

    path = Path(arguments.path).expanduser()
    folders = list(revisions_in(path)) if is_store(path) else [path]
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

    found = contents(store_of(arguments))
    if arguments.json:
        print(json.dumps([{**asdict(each), "folder": str(each.folder)} for each in found]))
        return 0
    for each in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
        state = each.busy or ("ready" if each.finished else "unfinished")
        print(f"{human(each.bytes):>10}  {used}  {state:12}  {each.folder}")
    return 0


def _gc(arguments: argparse.Namespace, halt: Halt) -> int:
    from quire_engine.fetch.gc import collect, contents, is_within, victims
    from quire_engine.fetch.progress import human

    quota, store = bytes_of("--quota", arguments.quota), store_of(arguments)
    keep = [Path(path).expanduser() for path in arguments.keep]
    found = contents(store, keep)
    if empty := [path for path in keep if not any(is_within(each.folder, path) for each in found)]:
        raise InvalidInput([f"--keep: there is no model at {path}; nothing was removed" for path in empty])
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


@contextmanager
def _signals(halt: Halt) -> Iterator[None]:
    """SIGTERM and SIGINT end it in order: the lock is released, what arrived is kept. A second one ends it at once."""

    def stop(number: int, _: object) -> None:
        if halt.stopped:
            os._exit(FETCH_OUTCOMES[Interrupted.reason].exit_code)
        halt.stop(Interrupted(f"{signal.Signals(number).name}: what arrived is kept, the next run goes on from there"))
        if halt.may_cut:
            raise KeyboardInterrupt

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
