"""Brings the files of a listing into a folder: several files, and several pieces of one, at a time.

Workers take pieces off one queue and write them where they belong. Large files are hashed by other threads, which follow
what is there from the first byte on; small ones by the worker that wrote them. What is wrong once is fetched again,
what is wrong twice ends the fetch.
"""

import errno
import itertools
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quire_engine.fetch.client import Client, origin
from quire_engine.fetch.errors import (
    FetchFailure,
    InsufficientStorage,
    Interrupted,
    ModelAccessDenied,
    ModelNotFound,
    WeightsCorrupt,
)
from quire_engine.fetch.incoming import BUFFER, Incoming, version_of
from quire_engine.fetch.journal import Journal, Known
from quire_engine.fetch.listing import RemoteFile, Target
from quire_engine.fetch.machine import boot_id
from quire_engine.fetch.manifest import ManifestFile
from quire_engine.fetch.progress import Meter, human
from quire_engine.fetch.wire import Answer, Broken

__all__ = ["MARKS", "transfer"]

MARKS = ".quire"  # our own folder within an unfinished download
PIECE = 32 << 20
PER_FILE = 4  # pieces at a time: a kill wastes what is on its way of each, some MiB
HASHERS = 2
NICE = 10  # of those who receive
MOST_ANEW = 3  # times that a file may change while it is read


@dataclass(frozen=True, slots=True)
class Piece:
    file: Incoming
    start: int
    end: int


class _Changed(Exception):
    """The server has another file than the one that was begun."""


def transfer(
    files: Sequence[RemoteFile], folder: Path, *, client: Client, meter: Meter, connections: int
) -> tuple[ManifestFile, ...]:
    """All of them, verified and on the disk. Whatever is right in the folder already is kept."""
    _check_tree(files)
    journal = Journal(folder / MARKS, boot_id())
    try:
        incoming = [_begun(file, folder, journal, meter) for file in files]
        _check_room(folder, incoming)
        meter.expect(sum(f.size for f in files), sum(each.ranges.total for each in incoming))
        _Transfer(incoming, client, connections).run()
    finally:
        journal.close()
    return tuple(ManifestFile(path=i.remote.path, size=i.size, sha256=str(i.sha256)) for i in incoming)


def _check_tree(files: Sequence[RemoteFile]) -> None:
    names = {file.path for file in files}
    for name in names:
        parents = itertools.accumulate(name.split("/")[:-1], lambda a, b: f"{a}/{b}")
        clash = next((parent for parent in parents if parent in names), None)
        if clash or len(names) != len(files):
            raise WeightsCorrupt(f"the source lists {clash or 'a name'} twice, as a file and as a folder or file")


def _begun(remote: RemoteFile, folder: Path, journal: Journal, meter: Meter) -> Incoming:
    """With what is certain of it on the disk."""
    path = folder / remote.path
    known = journal.known.get(remote.path)
    try:
        size = path.stat().st_size
    except OSError:
        return Incoming(remote, path, None, journal, meter)
    if known is None and size == remote.size and remote.check is not None:
        known = Known(version_of(remote))  # brought by somebody else: its hash will tell
        known.ranges.add(0, size)
        journal.begin(remote.path, known.version)
        journal.has(remote.path, 0, size)
    usable = (
        known is not None
        and known.version == version_of(remote)
        and all(end <= min(size, remote.size) for _, end in known.ranges)
        and (journal.same_boot or remote.check is not None)
    )
    return Incoming(remote, path, known if usable else None, journal, meter)


def _check_room(folder: Path, incoming: Sequence[Incoming]) -> None:
    """Before the first byte: does the rest fit?"""
    needed = sum(each.size - each.ranges.total for each in incoming)
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise InsufficientStorage(
            f"{human(needed)} are still to come, and {folder} has room for {human(free)}: "
            f"make {human(needed - free)} free (`quire fetch gc`), or use another folder"
        )


class _Transfer:
    def __init__(self, files: Sequence[Incoming], client: Client, connections: int) -> None:
        self._client = client
        self._halt = client.halt
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._left = len(files)
        self._connections = connections
        # The small ones first: they have the configuration, and what is wrong with a source shows early.
        ordered = sorted(files, key=lambda file: (file.size > PIECE, file.remote.path))
        self._pieces = deque(piece for file in ordered for piece in _pieces(file))
        self._busy = Counter[int]()  # by file: workers at its pieces
        self._large = deque(file for file in ordered if file.size > PIECE)

    def run(self) -> None:
        many = min(self._connections, max(1, len(self._pieces)))
        threads = [threading.Thread(target=self._guard, args=(self._work,), daemon=True) for _ in range(many)]
        threads += [
            threading.Thread(target=self._guard, args=(self._hash_large,), daemon=True)
            for _ in range(min(HASHERS, len(self._large)))
        ]
        for thread in threads:
            thread.start()
        try:
            with self._changed:
                while self._left and not self._halt.stopped:
                    self._changed.wait(0.2)
        except BaseException:  # Ctrl-C, where the signals are not ours
            self._halt.stop(Interrupted("interrupted; what arrived is kept"))
            self._client.wire.shut()
            raise
        if self._left:
            self._client.wire.shut()
        for thread in threads:
            thread.join(5)
        self._halt.check()

    def _guard(self, work: Callable[[], None]) -> None:
        """What ends one thread ends all."""
        try:
            work()
        except FetchFailure as failure:
            self._halt.stop(failure)
        except OSError as error:
            self._halt.stop(_of_the_disk(error))
        except BaseException as error:
            self._halt.stop(WeightsCorrupt(f"the fetch itself failed: {type(error).__name__}: {error}"))
            raise
        finally:
            self._client.wire.close()
            with self._changed:
                self._changed.notify_all()

    def _work(self) -> None:
        _give_way()
        buffer = memoryview(bytearray(BUFFER))
        while (piece := self._take()) is not None:
            self._bring(piece, buffer)
            self._give_back(piece)
            if piece.file.size <= PIECE:
                self._judge(piece.file)
            else:
                piece.file.write_out()

    def _take(self) -> Piece | None:
        with self._changed:
            while self._left and not self._halt.stopped:
                for index, piece in enumerate(self._pieces):
                    if self._busy[id(piece.file)] < PER_FILE:
                        del self._pieces[index]
                        self._busy[id(piece.file)] += 1
                        return piece
                self._changed.wait(0.2)  # a piece ends, or a hash that turns out wrong puts some back
        return None

    def _give_back(self, piece: Piece) -> None:
        with self._changed:
            self._busy[id(piece.file)] -= 1
            self._changed.notify_all()

    def _hash_large(self) -> None:
        while True:
            with self._lock:
                if not self._large:
                    return
                file = self._large.popleft()
            self._judge(file)

    def _judge(self, file: Incoming) -> None:
        """Hash it; when it is wrong, fetch it once more."""
        while True:
            attempt, right = file.digest(self._halt)
            if right:
                file.settle()
                with self._changed:
                    self._left -= 1
                    self._changed.notify_all()
                return
            file.wrong += not file.resumed  # what was left by an earlier run is not this server's fault
            if file.wrong > 1:
                raise WeightsCorrupt(
                    f"{file.remote.path} arrived twice with another content than the source says it has "
                    f"({file.remote.check.kind if file.remote.check else 'size'}): the source, or what is before it, is damaged"
                )
            file.begin_anew(attempt)
            with self._changed:
                self._pieces.extendleft(reversed(_pieces(file)))
                self._changed.notify_all()
            if file.size <= PIECE:
                return  # the piece's next worker judges it

    def _bring(self, piece: Piece, buffer: memoryview) -> None:
        """Until nothing of it is missing. Attempts are counted from the last byte that came."""
        file, tries, anew = piece.file, 0, 0
        if file.size == 0:
            file.open()
        me = threading.get_ident()
        while (gap := file.gap(*((0, file.size) if file.streamer == me else (piece.start, piece.end)))) is not None:
            self._halt.check()
            if file.streamer not in (None, me):
                return  # that one brings all of it
            status, after, words = None, None, ""
            attempt, _ = file.open()
            try:
                status, after, words = self._stream(file, *gap, buffer)
            except Broken as broken:
                words = str(broken)
            except _Changed:
                anew += file.begin_anew(attempt)
                if anew > MOST_ANEW:
                    raise WeightsCorrupt(f"{file.remote.path} keeps changing at its source while it is read") from None
                self._put_back(file, piece)
                continue
            if words:
                tries = tries + 1 if file.gap(*gap) == gap else 1
                self._client.rest(tries, status, after, words)

    def _put_back(self, file: Incoming, mine: Piece) -> None:
        """The other pieces of a file that begins anew; who is at one of them fills it, and finds nothing to do after."""
        with self._changed:
            queued = {piece.start for piece in self._pieces if piece.file is file}
            again = [p for p in _pieces(file) if p.start != mine.start and p.start not in queued]
            self._pieces.extendleft(reversed(again))
            self._changed.notify_all()

    def _stream(self, file: Incoming, start: int, end: int, buffer: memoryview) -> tuple[int | None, str | None, str]:
        """One request. The status, Retry-After and words of an answer that has no bytes for us; nothing when all came."""
        attempt, handle = file.open()
        ranged = start > 0 or end < file.size
        with self._open(file, start, end, ranged) as answer:
            if answer.status == 412:
                raise self._moved(file)
            if answer.status == 416:
                raise _Changed
            if answer.status not in (200, 206):
                return self._refused(file, answer)
            if not file.agrees(attempt, origin(answer.url), answer.headers.get("ETag")):
                raise self._moved(file)
            if answer.status == 206:
                self._check_range(file, answer, start, end)
            elif ranged or answer.headers.get("Content-Length") not in (None, str(file.size)):
                if answer.headers.get("Content-Length") not in (None, str(file.size)):
                    raise Broken(
                        f"{file.remote.path} should have {file.size:,} bytes, "
                        f"and the server has {answer.headers['Content-Length']}"
                    )
                if not file.claim(threading.get_ident()):
                    return None, None, ""
                start, end = 0, file.size
            while start < end:
                self._halt.check()
                count = answer.read_into(buffer[: min(BUFFER, end - start)])
                if count == 0:
                    raise Broken(f"{file.remote.path} was cut after {start:,} of {file.size:,} bytes")
                handle.write(buffer[:count], start)
                if not file.has(attempt, start, start + count):
                    return None, None, ""
                start += count
        return None, None, ""

    def _open(self, file: Incoming, start: int, end: int, ranged: bool) -> Answer:
        """At the address a redirect gave us before, if it still holds; else at the source's own."""
        headers = {"Range": f"bytes={start}-{end - 1}"} if ranged else {}
        pins = {file.pin[0]: file.pin[1]} if file.pin else {}
        if file.shortcut is not None:
            answer = self._client.open(file.shortcut, headers, pins)
            if answer.status in (200, 206, 412, 416, 429) or answer.status >= 500:
                return answer
            with answer:
                file.shortcut = None  # its signature has expired
        target = file.remote.target()
        if file.remote.etag is not None:
            pins = {origin(target.url): file.remote.etag}
        answer = self._client.open(target, headers, pins)
        if answer.status in (200, 206) and origin(answer.url) != origin(target.url):
            file.shortcut = Target(url=answer.url)
        return answer

    def _moved(self, file: Incoming) -> Exception:
        """What was listed under this ETag is no longer there; or one copy of many has its own, as servers make them of times."""
        if file.remote.etag is not None:
            return WeightsCorrupt(
                f"{file.remote.path} changed at its source since it was listed; run it again to take what is there now"
            )
        if file.loosen():
            return Broken(f"{file.remote.path} has another ETag than it had before")
        return _Changed()

    def _refused(self, file: Incoming, answer: Answer) -> tuple[int, str | None, str]:
        words = f"{file.remote.path}: HTTP {answer.status} from {origin(answer.url)}"
        if answer.status in (401, 403):
            raise ModelAccessDenied(f"{words}: it is listed, but may not be read with what was given")
        if answer.status in (404, 410):
            raise ModelNotFound(f"{words}: it is listed, but not there")
        return answer.status, answer.headers.get("Retry-After"), words

    def _check_range(self, file: Incoming, answer: Answer, start: int, end: int) -> None:
        told = answer.headers.get("Content-Range", "")
        if told.replace(" ", "") not in (f"bytes{start}-{end - 1}/{file.size}", f"bytes{start}-{end - 1}/*"):
            if told.endswith(f"/{file.size}"):
                raise Broken(f"{file.remote.path}: asked for bytes {start}-{end - 1}, and got {told[:60]!r}")
            raise _Changed


def _pieces(file: Incoming) -> list[Piece]:
    return [Piece(file, s, min(s + PIECE, file.size)) for s in range(0, max(file.size, 1), PIECE)]


def _give_way() -> None:
    """Of the threads of this process the hashers come first: the last byte's hash is what everybody waits for, and where
    cores are few its hasher would be the one that falls behind."""
    if sys.platform == "linux":  # where it is for this thread alone
        os.nice(NICE)


def _of_the_disk(error: OSError) -> FetchFailure:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return InsufficientStorage(
            f"the disk is full: {error.strerror}; what arrived is kept, make room and run it again"
        )
    return InsufficientStorage(f"cannot write {error.filename or 'the file'}: {error.strerror}")
