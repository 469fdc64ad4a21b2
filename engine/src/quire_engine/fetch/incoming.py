"""One file on its way to the disk: which of its pieces are there, under which ETag, and what it hashes to.

The rule that binds its editors: bytes are written before they are recorded, and recorded only in the attempt they
belong to. A file that begins anew gets a new inode, so that a thread which is late writes into the old one.
"""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from quire_engine.fetch.halt import Halt
from quire_engine.fetch.journal import Journal, Known
from quire_engine.fetch.listing import RemoteFile, Target
from quire_engine.fetch.progress import Meter
from quire_engine.fetch.ranges import Ranges

__all__ = ["BUFFER", "Handle", "Incoming", "version_of"]

BUFFER = 1 << 20
AT_ONCE = 16 << 10  # bytes of a write: the kernel takes memory in pieces as large, and large pieces it may have to make


class Handle:
    """An open file that closes when nobody has it any more: some thread may still be writing into an old one."""

    def __init__(self, path: Path, *, create: bool) -> None:
        if create:
            path.unlink(missing_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0)
        self.fd = os.open(path, flags, 0o644)
        self._lock = threading.Lock()

    def write(self, view: memoryview, offset: int) -> None:
        """One thread at a time: the kernel lets no more of them into a file either, and has the others spin."""
        with self._lock:
            while view:
                count = os.pwrite(self.fd, view[:AT_ONCE], offset)
                view, offset = view[count:], offset + count

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def version_of(remote: RemoteFile) -> str:
    """What it takes for bytes on disk to be of the same file."""
    check = f"{remote.check.kind}:{remote.check.hex}" if remote.check else ""
    return f"{remote.size} {check} {remote.etag or ''}"


class Incoming:
    def __init__(self, remote: RemoteFile, path: Path, known: Known | None, journal: Journal, meter: Meter) -> None:
        self.remote = remote
        self.path = path
        self.ranges = known.ranges if known else Ranges()
        self.resumed = known is not None and self.ranges.total > 0
        self.attempt = 0  # of the whole file; what belongs to an older one is dropped
        self.wrong = 0  # attempts that ended with another hash
        self.pin = known.pin if known else None  # origin and ETag
        self.loose = False  # its ETag is not looked at any more: the hash will tell
        self.shortcut: Target | None = None  # where a redirect led; good for an hour or so
        self.streamer: int | None = None  # the thread which takes all of it, because the server sends no ranges
        self.sha256: str | None = None
        self._handle: Handle | None = None
        self._journal = journal
        self._meter = meter
        self.news = threading.Condition()

    @property
    def size(self) -> int:
        return self.remote.size

    def open(self) -> tuple[int, Handle]:
        """The attempt, and the file to write into."""
        with self.news:
            if self._handle is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                if not self.resumed and self.attempt == 0:
                    self._journal.begin(self.remote.path, version_of(self.remote))
                self._handle = Handle(self.path, create=not self.resumed)
            return self.attempt, self._handle

    def gap(self, start: int, end: int) -> tuple[int, int] | None:
        with self.news:
            return self.ranges.gap(start, end)

    def has(self, attempt: int, start: int, end: int) -> bool:
        """These bytes were written. False if the file has begun anew meanwhile."""
        with self.news:
            if attempt != self.attempt:
                return False
            new = self.ranges.add(start, end)
            if new:
                self._journal.has(self.remote.path, start, end)
                self._meter.add(new)
            self.news.notify_all()
            return True

    def agrees(self, attempt: int, origin: str, etag: str | None) -> bool:
        """Whether an answer with this ETag belongs to what is there. The first one that can pin it does."""
        with self.news:
            if self.loose or attempt != self.attempt or not etag or etag.startswith("W/"):
                return True
            if self.pin is None:
                self.pin = origin, etag
                self._journal.pinned(self.remote.path, origin, etag)
            return self.pin[0] != origin or self.pin[1] == etag

    def loosen(self) -> bool:
        """Go on whatever the ETag, and keep what is there. False where there is no hash to judge it in the end."""
        with self.news:
            if self.remote.check is None:
                return False
            self.loose, self.pin = True, None
            return True

    def claim(self, thread: int) -> bool:
        """To be the only one that reads the file, from its first byte to its last."""
        with self.news:
            if self.streamer is None:
                self.streamer = thread
            return self.streamer == thread

    def begin_anew(self, attempt: int) -> bool:
        """Forget all of it; False if somebody did so before."""
        with self.news:
            if attempt != self.attempt:
                return False
            self._meter.add(-self.ranges.total, arrived=False)
            self.attempt += 1
            self.ranges, self.pin, self.shortcut, self.streamer = Ranges(), None, None, None
            self._journal.begin(self.remote.path, version_of(self.remote))
            self._handle = Handle(self.path, create=True)
            self.resumed = False
            self.news.notify_all()
            return True

    def digest(self, halt: Halt) -> tuple[int, bool]:
        """Hash along as the file grows; then the attempt that was hashed, and whether its content is right."""
        view = memoryview(bytearray(BUFFER))
        while True:
            attempt, handle = self.open()
            ours, theirs = hashlib.sha256(), _hasher(self.remote)
            offset = 0
            while offset < self.size and (end := self._grown(attempt, offset, halt)):
                count = os.preadv(handle.fd, [view[: end - offset]], offset)
                if count == 0:
                    return attempt, False  # shorter than the journal has it
                for each in (ours, theirs):
                    if each is not None:
                        each.update(view[:count])
                offset += count
            if offset < self.size:
                continue  # it began anew
            self.sha256 = ours.hexdigest()
            check = self.remote.check
            return attempt, check is None or check.hex == (theirs or ours).hexdigest()

    def _grown(self, attempt: int, offset: int, halt: Halt) -> int:
        """Wait for more than `offset` bytes from the start; at most a buffer. 0: the file began anew."""
        with self.news:
            while attempt == self.attempt:
                available = self.ranges.prefix - offset
                if available >= BUFFER or (available > 0 and offset + available == self.size):
                    return offset + min(available, BUFFER)
                halt.check()
                self.news.wait(0.5)
        return 0

    def write_out(self) -> None:
        """Have the disk take what is there, while more comes: the end has less to wait for."""
        with self.news:
            handle = self._handle
        if handle is not None:
            os.fsync(handle.fd)

    def settle(self) -> None:
        """On the disk, for good."""
        _, handle = self.open()
        os.fsync(handle.fd)
        with self.news:
            self._handle = None
            self.resumed = True  # whoever opens it again finds it


def _hasher(remote: RemoteFile) -> Any:
    """What the source's check needs besides our own sha256."""
    match remote.check.kind if remote.check else "":
        case "git":
            return hashlib.sha1(f"blob {remote.size}\0".encode(), usedforsecurity=False)
        case "md5":
            return hashlib.md5(usedforsecurity=False)
    return None
