"""Which models of a store go, so that the rest is within a quota. Who was not asked for longest goes first.

Never what is in use, what is to be kept, or what somebody writes just now.
"""

import os
import shutil
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from quire_engine.fetch.errors import InsufficientStorage
from quire_engine.fetch.layout import SCHEMES, TEMPORARY, Place
from quire_engine.fetch.leases import STALE_S, age_s, readers
from quire_engine.fetch.lock import Holder, Lock, Watch
from quire_engine.fetch.manifest import READY
from quire_engine.fetch.store import finished_in, revisions_in

__all__ = ["Candidate", "collect", "contents", "is_within", "victims"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    folder: Path
    source: str
    revision: str
    bytes: int
    used: float
    finished: bool
    busy: str  # why it must stay; empty: it may go


def contents(store: Path, keep: Sequence[Path] = ()) -> list[Candidate]:
    """All models, finished or not."""
    found = []
    for each in finished_in(store):
        held = readers(each.folder)
        busy = f"in use by {held}" if held else _kept(each.folder, keep)
        found.append(
            Candidate(
                folder=each.folder,
                source=each.manifest.source,
                revision=each.manifest.revision,
                bytes=each.manifest.bytes,
                used=each.used,
                finished=True,
                busy=busy,
            )
        )
    for folder in _unfinished(store, {each.folder for each in found}):
        _, holder = _glance(place_of(folder).lock)
        busy = f"written by {holder.words}" if holder else _kept(folder, keep)
        try:
            used = folder.stat().st_mtime
        except FileNotFoundError:
            continue  # it was finished, or taken over, meanwhile
        found.append(
            Candidate(
                folder=folder,
                source="",
                revision="",
                bytes=_size(folder),
                used=used,
                finished=False,
                busy=busy,
            )
        )
    return found


def is_within(folder: Path, above: Path) -> bool:
    return folder.resolve().is_relative_to(above.resolve())


def _kept(folder: Path, keep: Sequence[Path]) -> str:
    return "to be kept" if any(is_within(folder, above) for above in keep) else ""


def victims(found: Sequence[Candidate], quota: int) -> list[Candidate]:
    """Pure. The unfinished first, then the longest unused, until the rest fits or nothing more may go."""
    total = sum(each.bytes for each in found)
    chosen = []
    for each in sorted(found, key=lambda c: (c.finished, c.used, str(c.folder))):
        if total <= quota:
            break
        if not each.busy:
            chosen.append(each)
            total -= each.bytes
    return chosen


def collect(candidate: Candidate) -> bool:
    """Remove it; False if somebody began to use or to write it meanwhile."""
    place = place_of(candidate.folder)
    path, _ = _glance(place.lock)
    if path is None:
        return False
    try:
        lock = Lock(path, lambda: (0, candidate.bytes), lambda: None)
    except FileExistsError:
        return False
    except OSError as error:
        raise InsufficientStorage(f"cannot remove {candidate.folder}: {error.strerror}") from None
    try:
        gone = place.temporary(lock.number)
        if candidate.finished and not _unpublish(candidate):
            return False
        candidate.folder.rename(gone)
        shutil.rmtree(gone)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise InsufficientStorage(f"cannot remove {candidate.folder}: {error.strerror}") from None
    finally:
        lock.release()
    return True


def place_of(folder: Path) -> Place:
    name = folder.name
    if name.startswith(TEMPORARY):
        name = name.removeprefix(TEMPORARY).rpartition("-")[0]
    return Place(model=folder.parent, name=name)


def _unpublish(candidate: Candidate) -> bool:
    """Nobody loads it any more. Who took a lease before that keeps it: a reader takes the lease first, then looks for READY."""
    folder = candidate.folder
    ready = folder / READY
    aside = folder / f".{READY}.gone"
    ready.rename(aside)
    if readers(folder) or aside.stat().st_mtime != candidate.used:  # a fetch has just answered with it
        aside.rename(ready)
        return False
    return True


def _glance(lock: Path) -> tuple[Path | None, Holder | None]:
    """What a Watch would say in the end, to somebody who does not wait: a holder whose beat stopped long ago is none."""
    following, holder = Watch(lock).next()
    if following is None:
        ripe, _ = Watch(lock, patience_s=0).next()
        if ripe is not None and _is_old(ripe.with_suffix(f".{int(ripe.suffix[1:]) - 1}")):
            return ripe, None
    return following, holder


def _is_old(lock: Path) -> bool:
    try:
        return age_s(lock) > STALE_S
    except OSError:
        return False


def _unfinished(store: Path, finished: Set[Path]) -> list[Path]:
    """Under a temporary name, or under their own and without the marks of a finished model."""
    found = [folder for folder in revisions_in(store) if folder not in finished]
    for scheme in SCHEMES:
        for top, folders, _ in os.walk(store / scheme):
            found += [Path(top, name) for name in folders if name.startswith(TEMPORARY)]
            folders[:] = sorted(name for name in folders if not name.startswith("."))
    return found


def _size(folder: Path) -> int:
    """Of the disk, since an unfinished file may have holes."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_blocks * 512
    return total
