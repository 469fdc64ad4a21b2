"""Finished models on disk: how one becomes finished, whatever the moment at which this process is killed.

    .tmp-NAME-n/  files, each verified and synced → manifest.json, synced → renamed to NAME → READY.json, synced

A folder without READY.json is never loaded. What a crash leaves between two of these steps is taken up by the next
writer: it checks every hash of the manifest, and goes on.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from quire_engine.fetch.errors import WeightsCorrupt
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.layout import SCHEMES, TEMPORARY, Place, is_revision, model_folder
from quire_engine.fetch.manifest import (
    MANIFEST,
    READY,
    Manifest,
    Unready,
    parse_manifest,
    read_ready,
    ready_text,
    wrong_sizes,
)
from quire_engine.fetch.source import HubSource, Source

__all__ = [
    "Finished",
    "adopt",
    "finished_in",
    "is_store",
    "known_place",
    "publish",
    "ready_at",
    "revisions_in",
    "sync_folder",
    "touch",
    "wrong_hashes",
]

BUFFER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    folder: Path
    manifest: Manifest
    used: float  # when it was last asked for; by the file system's clock


def ready_at(folder: Path) -> Manifest | None:
    """The manifest, if the model is finished and every file has its size."""
    try:
        manifest = read_ready(folder)
    except Unready:
        return None
    return None if wrong_sizes(folder, manifest) else manifest


def wrong_hashes(folder: Path, manifest: Manifest, halt: Halt | None = None) -> list[str]:
    """The files whose content is not the manifest's; every byte is read."""
    view = memoryview(bytearray(BUFFER))
    wrong = []
    for file in manifest.files:
        seal = hashlib.sha256()
        try:
            with (folder / file.path).open("rb", buffering=0) as opened:
                while count := opened.readinto(view):
                    seal.update(view[:count])
                    if halt is not None:
                        halt.check()
        except OSError:
            wrong.append(file.path)
            continue
        if seal.hexdigest() != file.sha256:
            wrong.append(file.path)
    return wrong


def adopt(place: Place, number: int, halt: Halt) -> tuple[Path, Manifest | None]:
    """The folder to write into under this lock, with what earlier ones left. A manifest: nothing is left to fetch.

    The rename to a name of ours stops whoever believes to hold an older lock.
    """
    temporary = place.temporary(number)
    left = [place.final] if place.final.exists() else []
    with suppress(FileNotFoundError):
        (place.final / READY).unlink()  # first: from here on nobody loads it
    older = [p for p in place.model.glob(f"{TEMPORARY}{place.name}-*") if p.name.rpartition("-")[2].isdecimal()]
    left += sorted(older, key=lambda p: int(p.name.rpartition("-")[2]), reverse=True)
    for each in left:
        if each == left[0]:
            each.rename(temporary)
        else:
            shutil.rmtree(each, ignore_errors=True)
    temporary.mkdir(parents=True, exist_ok=True)
    return temporary, _whole(temporary, halt)


def _whole(folder: Path, halt: Halt) -> Manifest | None:
    """Of a folder that has its manifest already: everything is right, or what is not is removed."""
    path = folder / MANIFEST
    try:
        manifest = parse_manifest(path.read_bytes(), str(path))
    except (OSError, WeightsCorrupt):
        path.unlink(missing_ok=True)
        return None
    wrong = wrong_hashes(folder, manifest, halt)
    if not wrong:
        return manifest
    for name in wrong:
        (folder / name).unlink(missing_ok=True)
    path.unlink()
    return None


def publish(temporary: Path, marks: str, place: Place, manifest: Manifest) -> None:
    """From verified and synced files to a finished model."""
    wanted = {file.path for file in manifest.files}
    for path in [p for p in temporary.rglob("*") if p.is_file() and marks not in p.parts]:
        if str(path.relative_to(temporary)) not in wanted:
            path.unlink()  # of an earlier choice, or another attempt
    text = manifest.text()
    _write_synced(temporary / MANIFEST, text)
    shutil.rmtree(temporary / marks, ignore_errors=True)
    for folder in {temporary, *(p for p in temporary.rglob("*") if p.is_dir())}:
        sync_folder(folder)
    temporary.rename(place.final)
    sync_folder(place.model)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    about = {"source": manifest.source, "revision": manifest.revision, "bytes": manifest.bytes, "finished": finished}
    _write_synced(place.final / READY, ready_text(text, about))
    sync_folder(place.final)


def touch(folder: Path) -> None:
    """It was asked for; gc goes by this. On a volume that cannot be written nobody is told."""
    with suppress(OSError):
        os.utime(folder / READY)


def known_place(store: Path, source: Source, mark: str) -> Place | None:
    """Where a revision lies, without asking anybody: it is a commit, or was asked for before."""
    if not isinstance(source, HubSource):
        return None
    model = model_folder(store, source)
    if source.pinned:
        return Place(model=model, name=source.revision + mark)
    try:
        name = Place(model=model, name="").ref(source.revision, mark).read_text().strip()
    except OSError:
        return None
    return Place(model=model, name=name) if name and "/" not in name and not name.startswith(".") else None


def is_store(folder: Path) -> bool:
    return not (folder / "config.json").exists() and any((folder / scheme).is_dir() for scheme in SCHEMES)


def finished_in(store: Path) -> list[Finished]:
    """In the order of their paths."""
    found = []
    for folder in revisions_in(store):
        try:
            found.append(
                Finished(folder=folder, manifest=read_ready(folder), used=(folder / READY).stat().st_mtime)
            )  # fmt: skip
        except (Unready, OSError):
            continue
    return found


def revisions_in(store: Path) -> Iterator[Path]:
    """Finished or damaged, but not those under a temporary name; what lies below one is its own."""
    for scheme in SCHEMES:
        for top, folders, files in os.walk(store / scheme):
            if READY in files or is_revision(Path(top).name):
                folders.clear()
                yield Path(top)
            folders[:] = sorted(name for name in folders if not name.startswith("."))


def _write_synced(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.new")
    with fresh.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
