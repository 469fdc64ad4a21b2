"""One fetch from its source to a finished folder: resolve, look, lock, transfer, publish.

Many may do this at once for one model, on one machine or on many: one writes, the others wait and find it finished.
"""

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from quire_engine.fetch.choose import Choice, choose
from quire_engine.fetch.client import Client
from quire_engine.fetch.errors import InsufficientStorage, Interrupted, ModelNotFound, SourceUnreachable
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.hub import list_hub
from quire_engine.fetch.layout import Place, is_revision, model_folder
from quire_engine.fetch.listing import Listing, RemoteFile
from quire_engine.fetch.lock import Lock, Watch
from quire_engine.fetch.manifest import Manifest
from quire_engine.fetch.progress import Meter
from quire_engine.fetch.retry import Policy
from quire_engine.fetch.s3 import list_s3
from quire_engine.fetch.source import HubSource, S3Source, Source, WebSource
from quire_engine.fetch.store import adopt, known_place, publish, ready_at, sync_folder, touch, wrong_hashes
from quire_engine.fetch.transfer import MARKS, transfer
from quire_engine.fetch.web import list_web
from quire_engine.fetch.wire import Wire

__all__ = ["Fetch", "bring", "is_offline", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """What is asked for, and how."""

    source: Source
    store: Path
    choice: Choice = field(default_factory=Choice)
    connections: int = 8
    verify: bool = False  # hash what is there already
    policy: Policy = field(default_factory=Policy)
    revision: str = ""  # the only one that will do
    stale: bool = False  # take what a branch meant when it was last asked for, when its source does not answer


def is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def resolve(source: Source, client: Client) -> Listing:
    match source:
        case HubSource():
            return list_hub(source, client)
        case S3Source():
            return list_s3(source)
        case WebSource():
            return list_web(source, client)
    raise ModelNotFound(f"{source} is verified where it is, and not fetched")


def bring(fetch: Fetch, meter: Meter, halt: Halt) -> Path:
    """The folder of the finished model."""
    known = known_place(fetch.store, fetch.source, fetch.choice.mark)
    pinned = isinstance(fetch.source, HubSource) and fetch.source.pinned
    offline = is_offline() and isinstance(fetch.source, HubSource)
    if known is not None and (pinned or offline) and _is_good(known, fetch, halt):
        return _done(known, meter)
    if offline:
        raise SourceUnreachable(
            f"{fetch.source} is not in {fetch.store}, and HF_HUB_OFFLINE forbids to ask the hub: fetch it while online"
        )
    if fetch.revision and is_revision(fetch.revision):
        asked_for = Place(model=model_folder(fetch.store, fetch.source), name=fetch.revision + fetch.choice.mark)
        if _is_good(asked_for, fetch, halt):
            return _done(asked_for, meter)
    client = Client(wire=Wire(), halt=halt, policy=fetch.policy)
    try:
        with halt.cut_off():
            listing = resolve(fetch.source, client)
    except SourceUnreachable as failure:
        if not fetch.stale or known is None or not _is_good(known, fetch, halt):
            raise
        meter.phase("ready", f"{failure}; taking what was fetched before")
        touch(known.final)
        return known.final
    finally:
        client.wire.close()
    if fetch.revision not in ("", listing.revision):
        raise ModelNotFound(
            f"{fetch.source} was {fetch.revision[:40]} when it was asked for, and is {listing.revision} now: "
            "put back what was there, or give the new one another place and name that"
        )
    place = Place(model=model_folder(fetch.store, fetch.source), name=listing.revision + fetch.choice.mark)
    if not _is_good(place, fetch, halt):
        files = choose(listing.files, fetch.choice, str(fetch.source))
        _write(fetch, place, listing, files, client, meter)
    _remember(fetch, place)
    return _done(place, meter)


def _is_good(place: Place, fetch: Fetch, halt: Halt) -> bool:
    manifest = ready_at(place.final)
    return manifest is not None and not (fetch.verify and wrong_hashes(place.final, manifest, halt))


def _done(place: Place, meter: Meter) -> Path:
    touch(place.final)
    meter.phase("ready", str(place.final))
    return place.final


def _write(
    fetch: Fetch, place: Place, listing: Listing, files: tuple[RemoteFile, ...], client: Client, meter: Meter
) -> None:
    """Under the lock, or not at all if somebody else does it meanwhile."""
    halt, lock = client.halt, None
    try:
        place.model.mkdir(parents=True, exist_ok=True)
        lock = _lock(place, meter, halt)
        if lock is None or _is_good(place, fetch, halt):
            return
        meter.phase("verifying")
        temporary, manifest = adopt(place, lock.number, halt)
        if manifest is None:
            manifest = _transferred(fetch, listing, files, temporary, client, meter)
        if not lock.held:
            raise _overtaken(place)
        publish(temporary, MARKS, place, manifest)
    except OSError as error:
        if lock is not None and not lock.held:
            raise _overtaken(place) from None
        raise InsufficientStorage(f"cannot write {error.filename or place.model}: {error.strerror}") from None
    finally:
        if lock is not None:
            lock.release()


def _transferred(
    fetch: Fetch, listing: Listing, files: tuple[RemoteFile, ...], temporary: Path, client: Client, meter: Meter
) -> Manifest:
    meter.phase("resolving")
    with client.halt.cut_off():
        pinned = listing.pin(files)
    meter.phase("downloading")
    brought = transfer(pinned, temporary, client=client, meter=meter, connections=fetch.connections)
    meter.phase("verifying")
    return Manifest(source=str(fetch.source), revision=listing.revision, files=brought)


def _lock(place: Place, meter: Meter, halt: Halt) -> Lock | None:
    """None: somebody else has finished it."""
    watch = Watch(place.lock)
    while True:
        path, holder = watch.next()
        if path is not None:
            with suppress(FileExistsError):
                return Lock(path, lambda: meter.counts, lambda: halt.stop(_overtaken(place)))
            continue
        if ready_at(place.final) is not None:
            return None
        if holder is not None:
            meter.phase("waiting", f"for {holder.words}, which fetches it")
            meter.expect(holder.total, holder.done)
        halt.wait(0.5)


def _overtaken(place: Place) -> Interrupted:
    return Interrupted(f"another process took over {place.final}, for this one did not move: run it again")


def _remember(fetch: Fetch, place: Place) -> None:
    """What the branch or tag means now."""
    if not isinstance(fetch.source, HubSource) or fetch.source.pinned:
        return
    ref = place.ref(fetch.source.revision, fetch.choice.mark)
    with suppress(OSError):
        if not ref.exists() or ref.read_text() != place.name:
            ref.parent.mkdir(exist_ok=True)
            fresh = ref.with_name(f".{ref.name}.{os.getpid()}")
            fresh.write_text(place.name)
            fresh.replace(ref)
            sync_folder(ref.parent)
