"""The door of the API: who may come in, how much he may carry, and what is inside.

A request is *accepted* when it passes here, before its body is looked at, and is inside until the last byte of its
answer was handed over. Draining waits for those, and only those.

    no valid key   401      a foreign page 403      the body stays away   408      too large a body   413
    queue full     429      loading, draining, stalled   503
"""

import asyncio
import hashlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.errors import ConfigFailure
from quire_engine.server import errors

__all__ = ["CLIENT_LEFT", "PREPARED", "SEND_MORE", "Door", "Keys", "Visit", "same_site"]

log = logging.getLogger("quire.requests")

CLIENT_LEFT = 499
SEND_MORE = "quire_send_more"
PREPARED = "quire_prepared"
MOST_DISCARDED = 64 << 20  # bytes
PATIENCE_S = 20.0  # with a body of which nothing comes; with one that is not wanted:
LITTLE_PATIENCE_S = 1.0
OPEN_TO_ALL = frozenset(
    {"/livez", "/readyz", "/health", "/metrics", "/load", "/version"}
)  # probes and scrapers have no key
COMMENT = re.compile(r"(^|\s)#.*")
USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Keys:
    """What callers must know. Only digests are kept, and compared."""

    def __init__(self, keys: Iterable[str]) -> None:
        listed = list(keys)
        if "" in (key.strip() for key in listed):
            raise ConfigFailure("--api-key is empty: leave it out, or give a key")
        self._digests = {_digest(key) for key in listed}

    @classmethod
    def read(cls, given: Iterable[str], file: str | None) -> "Keys":
        keys = list(given)
        if file is not None:
            try:
                lines = [COMMENT.sub("", line).strip() for line in Path(file).read_text().splitlines()]
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigFailure(f"--api-key-file {file} cannot be read: {error}") from None
            if not any(lines):
                raise ConfigFailure(f"--api-key-file {file} has no key: put one on each line")
            keys += filter(None, lines)
        return cls(keys)

    def admit(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        return not self._digests or (scheme.lower() == "bearer" and _digest(key.strip()) in self._digests)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class Door:
    """ASGI middleware before the routes."""

    def __init__(
        self,
        app: ASGIApp,
        why_closed: Callable[[], str | None],
        why_full: Callable[[], str | None],
        *,
        keys: Keys,
        origins: Collection[str],
        max_body_bytes: int,
        on_answer: Callable[["Visit"], None],
    ) -> None:
        """`why_closed` and `why_full` say why nobody may come in now, or None."""
        self._app = app
        self._why_closed = why_closed
        self._why_full = why_full
        self._keys = keys
        self._origins = origins
        self._max_body_bytes = max_body_bytes
        self._on_answer = on_answer
        self.inside = 0
        self.preparing = 0  # of them, those that the engine has not been given yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        visit = Visit(scope, send)
        try:
            await self._let_in(visit, receive)
        finally:
            self._on_answer(visit)

    async def _let_in(self, visit: "Visit", receive: Receive) -> None:
        scope, headers = visit.scope, visit.headers
        if not same_site(headers, self._origins):
            return await visit.refuse(403, "permission_error", "this page's origin may not call: see --allowed-origins")
        if scope["path"] not in OPEN_TO_ALL and scope["method"] != "OPTIONS" and not self._keys.admit(headers):
            reason = "no valid API key: send one as `Authorization: Bearer KEY`"
            return await visit.refuse(401, "authentication_error", reason, {"WWW-Authenticate": "Bearer"})
        if scope["method"] != "POST" or scope["path"].startswith("/admin/"):
            return await self._app(scope, receive, visit.send)
        if closed := self._why_closed():
            return await visit.refuse(503, "service_unavailable_error", closed, errors.RETRY_AFTER)
        if full := self._why_full():
            return await visit.refuse(429, "rate_limit_error", full, errors.RETRY_AFTER)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            await _discard(receive)  # many clients look for an answer only when they have sent all
            return await visit.refuse(413, "invalid_request_error", self._too_large(), {"Connection": "close"})
        self.inside += 1
        self.preparing += 1
        scope[PREPARED] = prepared = self._preparation()
        try:
            await self._app(scope, self._bounded(receive), visit.send)
        finally:
            prepared()
            self.inside -= 1

    def _preparation(self) -> Callable[[], None]:
        """What is called when one is prepared: it counts once."""
        under_way = True

        def prepared() -> None:
            nonlocal under_way
            self.preparing -= under_way
            under_way = False

        return prepared

    def _too_large(self) -> str:
        return f"the body is larger than {self._max_body_bytes / 2**20:g} MiB, the most that is taken"

    def _bounded(self, receive: Receive) -> Receive:
        """For bodies that do not say how long they are, and those that do not come: a drain would wait for them."""
        read, complete = 0, False

        async def bounded() -> Message:
            nonlocal read, complete
            try:
                message = await (receive() if complete else asyncio.wait_for(receive(), PATIENCE_S))
            except TimeoutError:
                raise HTTPException(
                    408, f"nothing came of the body for {PATIENCE_S:g} s", {"Connection": "close"}
                ) from None
            complete = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise HTTPException(413, self._too_large())
            return message

        return bounded


async def _discard(receive: Receive) -> None:
    """What comes of a body, within reason."""
    read, more = 0, True
    while more and read < MOST_DISCARDED:
        try:
            message = await asyncio.wait_for(receive(), LITTLE_PATIENCE_S)
        except TimeoutError:
            return
        read += len(message.get("body", b""))
        more = message.get("more_body", False)


def same_site(headers: Mapping[bytes, bytes], origins: Collection[str]) -> bool:
    """Browsers let any page send simple requests anywhere, and say whose page it is. Programs say nothing."""
    origin = headers.get(b"origin", b"").decode("latin-1")
    host = headers.get(b"host", b"").decode("latin-1")
    return not origin or origin in origins or "*" in origins or urlsplit(origin).netloc == host


class Visit:
    """One request: its id, and what became of it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id: bytes = given if USABLE_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        self.started = time.monotonic()
        self.status = CLIENT_LEFT  # until the last byte of an answer was sent
        self._status = 0
        self._send = send
        scope["request_id"] = self.id.decode()
        scope[SEND_MORE] = send  # as `send` does with what is neither the first nor the last of an answer

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.id)]
            self._status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.status = self._status

    async def refuse(self, status: int, kind: str, reason: str, headers: Mapping[str, str] | None = None) -> None:
        answer = JSONResponse(errors.body(reason, kind, status), status, headers)
        await answer(self.scope, _nothing, self.send)

    @property
    def handler(self) -> str:
        """The path of the route that answered."""
        return getattr(self.scope.get("route"), "path", "none")

    def log(self) -> None:
        """Without query and text; a path may have anything in it."""
        log.info(
            "%s %s",
            self.scope["method"],
            json.dumps(self.scope["path"])[1:-1],
            extra={
                "status": self.status,
                "seconds": round(time.monotonic() - self.started, 4),
                "request_id": self.id.decode(),
            },
        )


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
