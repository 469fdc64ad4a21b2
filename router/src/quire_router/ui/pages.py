"""The files of the dashboard as answers: read once, looked up by name, with an ETag and a strict policy.

Decides the headers; knows nothing of keys, models or connections. No path is ever opened on behalf of a request: what is
not in the table is a 404.
"""

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import NamedTuple

from quire_router.replies import Refusal, reply

__all__ = ["PREFIX", "Pages"]

PREFIX = "/ui"
_KINDS = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " object-src 'none'; require-trusted-types-for 'script'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # kept, but asked for again: an upgrade shows at once, and costs a 304
}


class _File(NamedTuple):
    body: bytes
    kind: str
    etag: str


class Pages:
    def __init__(self, folder: Traversable | None = None) -> None:
        """Of `folder`, or the package's own."""
        entries = (folder or files(__package__) / "static").iterdir()
        self._files = {f"{PREFIX}/{entry.name}": _read(entry) for entry in entries}
        self._files[f"{PREFIX}/"] = self._files[f"{PREFIX}/index.html"]

    def owns(self, path: str) -> bool:
        return path == PREFIX or path.startswith(f"{PREFIX}/")

    def answer(self, method: bytes, path: str, if_none_match: bytes | None, request_id: bytes) -> bytes:
        """To a path that `owns` says is ours."""
        bodiless = method == b"HEAD"
        if method not in (b"GET", b"HEAD"):
            return Refusal(status=405, message=f"{PREFIX} is only for reading").reply(request_id)
        if path == PREFIX:  # relative, as all addresses of the page are: a proxy may put something before them
            return reply(308, b"", "text/plain", extra={**_HEADERS, "location": "ui/"}, bodiless=bodiless)
        file = self._files.get(path)
        if file is None:
            message = f"{path[:200]!r} is no file of the dashboard, which is at {PREFIX}/"
            return Refusal(status=404, message=message).reply(request_id, bodiless=bodiless)
        extra = {**_HEADERS, "etag": file.etag}
        if _known(if_none_match, file.etag):
            return reply(304, file.body, file.kind, extra=extra, bodiless=True)
        return reply(200, file.body, file.kind, extra=extra, bodiless=bodiless)


def _read(entry: Traversable) -> _File:
    body = entry.read_bytes()
    kind = _KINDS[entry.name[entry.name.rindex(".") :]]
    return _File(body, kind, f'"{hashlib.sha256(body).hexdigest()[:24]}"')


def _known(if_none_match: bytes | None, etag: str) -> bool:
    """A proxy that compresses makes tags weak; for reading that is the same."""
    named = (if_none_match or b"").decode("latin-1").split(",")
    return any(tag.strip() == "*" or tag.strip().removeprefix("W/") == etag for tag in named)
