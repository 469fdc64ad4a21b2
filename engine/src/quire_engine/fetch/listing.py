"""What every source becomes: an immutable revision and its files. Everything after this is common to all of them.

Names come from a server, so none is trusted: one that could leave the folder ends the fetch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from quire_engine.fetch.errors import WeightsCorrupt

__all__ = ["RESERVED", "Check", "Listing", "RemoteFile", "Target", "check_name"]

RESERVED = ("manifest.json", "READY.json")  # ours, at the top of a model's folder
LONGEST_NAME = 240  # bytes of one part of a path; most file systems end at 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a file's bytes must hash to, as the source says it."""

    kind: str  # sha256; git: the sha1 of git's blob; md5
    hex: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where to ask for a file. The headers are for this host alone: they may hold a token."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    path: str
    size: int
    check: Check | None = None
    etag: str | None = None  # what If-Match pins, where the source promises that it stays
    target: Callable[[], Target] = field(repr=False)  # made anew for every request, since signatures expire


def _unchanged(files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    return tuple(files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    revision: str
    files: tuple[RemoteFile, ...]
    pin: Callable[[Sequence[RemoteFile]], tuple[RemoteFile, ...]] = field(default=_unchanged, repr=False)
    """Look up the checks of the files that were chosen, where that costs a request each."""


def check_name(path: str) -> str:
    """The path; WeightsCorrupt if it could mean anything but a file below its folder."""
    parts = path.split("/")
    bad = (
        "\\" in path
        or any(part in ("", ".", "..") or len(part.encode(errors="replace")) > LONGEST_NAME for part in parts)
        or any(not c.isprintable() for c in path)
        or len(path) > 1024
    )
    if bad:
        readable = "".join(c if c.isprintable() else "?" for c in path[:80])
        raise WeightsCorrupt(
            f"the source lists a file {readable!r}, a name that must not be written: nothing was fetched"
        )
    return path
