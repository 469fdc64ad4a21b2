"""HTTP connections: kept open, a set for each thread, through the proxies of the environment.

One request, one answer: no redirect is followed here, nothing is tried again but a kept connection that the server
had closed meanwhile. Bodies are read into the caller's buffer, without the interpreter's lock.
"""

import http.client
import os
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from typing import Self
from urllib.parse import quote, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]  # not in the stubs

from quire_engine.fetch.errors import SourceUnreachable, shown
from quire_engine.fetch.source import is_web_address

__all__ = ["URL", "Answer", "Broken", "Wire"]

CONNECT_S = 10.0
SILENCE_S = 30.0  # without a byte: the connection is dead, whatever it says
URL = "%/?:@!$&'()*+,;=~[]"  # what stands in a path and a query as it is
SMALL = 1 << 16  # an unread rest of at most this is read, to keep the connection


class Broken(Exception):
    """No answer, or not all of it. Trying again may help."""


@cache
def _tls() -> ssl.SSLContext:
    """The system's authorities, or those of $SSL_CERT_FILE (OpenSSL's own) or $REQUESTS_CA_BUNDLE."""
    context = ssl.create_default_context()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    if bundle and not os.environ.get("SSL_CERT_FILE"):
        if os.path.isdir(bundle):
            context.load_verify_locations(capath=bundle)
        else:
            context.load_verify_locations(cafile=bundle)
    return context


class Answer:
    """Status and headers; the body as it is read. Use as a context: leaving early costs the connection."""

    def __init__(self, url: str, response: http.client.HTTPResponse, drop: "_Drop") -> None:
        self.url = url
        self.status = response.status
        self.headers = response.headers
        self._response = response
        self._drop = drop

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        left = self._response.length
        if kind is None and not self._response.isclosed() and left is not None and left <= SMALL:
            try:
                self._response.read()
            except (OSError, http.client.HTTPException):
                self._drop()
        if not self._response.isclosed():
            self._drop()
            self._response.close()  # it may be the last to hold the socket

    def read_into(self, view: memoryview) -> int:
        """0 at the end."""
        try:
            return self._response.readinto(view)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{shown(self.url)} was cut: {_word(error)}") from None

    def read(self, limit: int) -> bytes:
        """All of the body; Broken if it is longer than `limit`, or cut."""
        try:
            data = self._response.read(limit + 1)
            whole = self._response.length in (None, 0)
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{shown(self.url)} was cut: {_word(error)}") from None
        if len(data) > limit:
            raise Broken(f"{shown(self.url)} answers with more than {limit:,} bytes")
        if not whole:
            raise Broken(f"{shown(self.url)} was cut after {len(data):,} bytes")
        return data


class _Drop:
    """Forgets one connection."""

    def __init__(self, wire: "Wire", key: tuple[str, str]) -> None:
        self._wire, self._key = wire, key

    def __call__(self) -> None:
        self._wire.drop(self._key)


class Wire:
    """To be shared: each thread has connections of its own."""

    def __init__(self) -> None:
        self._own = threading.local()
        self._all: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = False

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc)
        kept = self._connections().get(key)
        if kept is not None:
            try:
                return self._ask(kept, key, url, headers)
            except Broken:
                self.drop(key)  # the server may close what idles; a new connection tells whether it is well
        try:
            return self._ask(self._connect(key), key, url, headers)
        except Broken:
            self.drop(key)
            raise

    def drop(self, key: tuple[str, str]) -> None:
        connection = self._connections().pop(key, None)
        if connection is not None:
            with self._lock:
                self._all.discard(connection)
            connection.close()

    def shut(self) -> None:
        """Wake every thread that waits for bytes: its read ends, and no new connection is made."""
        with self._lock:
            self._closed = True
            connections = list(self._all)
        for connection in connections:
            sock = connection.sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # it was closed meanwhile

    def close(self) -> None:
        """This thread's connections."""
        for key in list(self._connections()):
            self.drop(key)

    def _connections(self) -> dict[tuple[str, str], http.client.HTTPConnection]:
        if not hasattr(self._own, "kept"):
            self._own.kept = {}
        kept: dict[tuple[str, str], http.client.HTTPConnection] = self._own.kept
        return kept

    def _ask(
        self, connection: http.client.HTTPConnection, key: tuple[str, str], url: str, headers: Mapping[str, str]
    ) -> Answer:
        parts = urlsplit(url)
        # A redirect, or a user, may give what no request line can hold; http.client would print all of it.
        path = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=URL)
        own = {"Accept-Encoding": "identity", "User-Agent": "quire"}
        proxy = _proxy_of(*key) if key[0] == "http" else None
        if proxy:  # is asked for the whole address
            path = f"{key[0]}://{key[1].rpartition('@')[2]}{path}"
            own |= _proxy_headers(proxy)
        try:
            connection.request("GET", path, headers={**own, **headers})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Broken(f"{shown(url)} does not answer: {_word(error)}") from None
        return Answer(url, response, _Drop(self, key))

    def _connect(self, key: tuple[str, str]) -> http.client.HTTPConnection:
        scheme, netloc = key
        target = urlsplit(f"{scheme}://{netloc}")
        host, port = target.hostname or "", target.port
        proxy = _proxy_of(scheme, netloc)
        via = urlsplit(proxy) if proxy else None
        to = ((via.hostname or "") if via else host, (via.port or 80) if via else port)
        connection = (
            http.client.HTTPSConnection(*to, timeout=CONNECT_S, context=_tls())
            if scheme == "https"
            else http.client.HTTPConnection(*to, timeout=CONNECT_S)
        )
        if via and scheme == "https":
            connection.set_tunnel(host, port, _proxy_headers(proxy or ""))
        with self._lock:
            if self._closed:
                raise Broken("interrupted")
            self._all.add(connection)
        self._connections()[key] = connection
        try:
            connection.connect()
            connection.timeout = SILENCE_S  # of the connections that take this one's place when the server closes it
            connection.sock.settimeout(SILENCE_S)
        except (OSError, http.client.HTTPException) as error:
            through = f" through the proxy {via.hostname}:{via.port}" if via else ""
            raise Broken(
                f"{scheme}://{host}{f':{port}' if port else ''} cannot be reached{through}: {_word(error)}"
            ) from None
        return connection


def _proxy_of(scheme: str, netloc: str) -> str | None:
    """From HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, unless NO_PROXY names the host. Its address may hold a password."""
    proxies = getproxies_environment()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass_environment(netloc, proxies):
        return None
    address = proxy if "://" in proxy else f"http://{proxy}"
    if not address.startswith("http://") or not is_web_address(address):
        raise SourceUnreachable(
            f"the proxy of the environment for {scheme}:// cannot be used: write http://[user:password@]host:port, "
            "special letters of user and password as %XX; or name the host in NO_PROXY"
        )
    return address


def _proxy_headers(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return {"Proxy-Authorization": "Basic " + b64encode(pair).decode()}


def _word(error: Exception) -> str:
    """Why, in a few words, on one line."""
    text = str(error) or type(error).__name__
    return "no answer in time" if isinstance(error, TimeoutError) else text.splitlines()[0][:200]
