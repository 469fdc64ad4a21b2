"""The door of the API: who may come in, how much he may carry, and what is inside.

A request is *accepted* when it passes here, before its body is looked at, and is inside until the last byte of its
answer was handed over. Draining waits for those, and only those.

    no valid key   401      the body stays away   408      too large a body   413
    queue full     429      loading, draining, stalled   503
"""

import asyncio
import hashlib
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_engine.errors import ConfigFailure
from quire_engine.server import errors

__all__ = ["Door", "Keys"]

log = logging.getLogger("quire.requests")

RETRY_AFTER_S = "2"
MOST_DISCARDED = 64 << 20  # bytes
PATIENCE_S = 20.0  # with a body of which nothing comes; with one that is not wanted:
LITTLE_PATIENCE_S = 1.0
OPEN_TO_ALL = frozenset({"/livez", "/readyz", "/health", "/metrics", "/version"})  # probes and scrapers have no key
USABLE_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Keys:
    """What callers must know. Only digests are kept, and compared."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = {_digest(key) for key in keys}

    @classmethod
    def read(cls, given: Iterable[str], file: str | None) -> "Keys":
        keys = list(given)
        if file is not None:
            try:
                lines = [line.split("#")[0].strip() for line in Path(file).read_text().splitlines()]
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
    """ASGI middleware before the routes that need the engine."""

    def __init__(
        self,
        app: ASGIApp,
        why_closed: Callable[[], str | None],
        why_full: Callable[[], str | None],
        *,
        keys: Keys,
        max_body_bytes: int,
        log_requests: bool,
    ) -> None:
        """`why_closed` and `why_full` say why nobody may come in now, or None."""
        self._app = app
        self._why_closed = why_closed
        self._why_full = why_full
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._log_requests = log_requests
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given if USABLE_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        send = _naming(request_id, send)
        if self._log_requests:
            send = _logging(scope, request_id, send)
        if scope["path"] not in OPEN_TO_ALL and scope["method"] != "OPTIONS" and not self._keys.admit(headers):
            refusal = errors.body(
                "no valid API key: send one as `Authorization: Bearer KEY`", "authentication_error", 401
            )
            return await JSONResponse(refusal, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        if scope["method"] != "POST" or scope["path"].startswith("/admin/"):
            return await self._app(scope, receive, send)
        if reason := self._why_closed():
            refusal = errors.body(reason, "service_unavailable_error", 503)
            return await JSONResponse(refusal, 503, {"Retry-After": RETRY_AFTER_S})(scope, receive, send)
        if reason := self._why_full():
            refusal = errors.body(reason, "rate_limit_error", 429)
            return await JSONResponse(refusal, 429, {"Retry-After": RETRY_AFTER_S})(scope, receive, send)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_body_bytes:
            await _discard(receive)  # many clients look for an answer only when they have sent all
            refusal = errors.body(self._too_large(), "invalid_request_error", 413)
            return await JSONResponse(refusal, 413, {"Connection": "close"})(scope, receive, send)
        self.inside += 1
        try:
            return await self._app(scope, self._bounded(receive), send)
        finally:
            self.inside -= 1

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


def _naming(request_id: bytes, send: Send) -> Send:
    async def naming(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
        await send(message)

    return naming


def _logging(scope: Scope, request_id: bytes, send: Send) -> Send:
    started, status = time.monotonic(), 0

    async def logged(message: Message) -> None:
        nonlocal status
        await send(message)
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            log.info(
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "status": status,
                    "seconds": round(time.monotonic() - started, 4),
                    "request_id": request_id.decode(),
                },
            )

    return logged
