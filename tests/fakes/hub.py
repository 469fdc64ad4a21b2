"""A hub and its CDN, as two real HTTP servers: the hub's API as huggingface_hub knows it, with faults on demand.

Small files are answered by the hub itself, LFS files by a redirect to the CDN, whose address is another origin.
"""

import hashlib
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

__all__ = ["Fault", "Hub", "Repo", "Seen", "hub"]

COMMIT = "a" * 40
SECRET = "X-Amz-Signature=do-not-log-me"


@dataclass
class Fault:
    """What happens to the next `times` requests whose path holds `where`."""

    where: str
    times: int = 1
    status: int | None = None  # answered instead
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of the body; then the connection is closed
    wrong: bool = False  # one byte of the body is another
    slow_s: float = 0.0  # before each 64 KiB
    etag: str | None = None  # in place of the true one
    no_ranges: bool = False  # Range is ignored


@dataclass(frozen=True)
class Seen:
    server: str  # hub or cdn
    method: str
    path: str
    range: str | None
    token: str | None
    if_match: str | None


@dataclass
class Repo:
    files: dict[str, bytes | Path]
    lfs: tuple[str, ...] = (".safetensors", ".bin", ".gguf")
    refs: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None  # who wants to see it needs this one
    gated: bool = False

    def data(self, path: str) -> bytes:
        content = self.files[path]
        return content if isinstance(content, bytes) else content.read_bytes()

    def size(self, path: str) -> int:
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def is_lfs(self, path: str) -> bool:
        return path.endswith(self.lfs)


class Hub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.page = 1000  # entries of a tree at a time
        self.sent = 0  # bytes of files' bodies
        self.send_rate: float | None = None  # bytes a second of each connection
        self.url = self.cdn_url = ""
        self._lock = threading.Lock()
        self._hashes: dict[tuple[str, str], str] = {}

    def oid(self, repo: str, path: str) -> str:
        """sha256 of an LFS file, git's sha1 of another."""
        key = repo, path
        if key not in self._hashes:
            data = self.repos[repo].data(path)
            plain = (
                hashlib.sha256(data) if self.repos[repo].is_lfs(path) else hashlib.sha1(b"blob %d\0" % len(data) + data)
            )
            self._hashes[key] = plain.hexdigest()
        return self._hashes[key]

    def note(self, seen: Seen) -> Fault:
        with self._lock:
            self.seen.append(seen)
            for fault in self.faults:
                if fault.times > 0 and fault.where in seen.path:
                    fault.times -= 1
                    return fault
        return Fault("")

    def count(self, sent: int) -> None:
        with self._lock:
            self.sent += sent


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: Hub
    role: str
    _counted = 0

    def setup(self) -> None:
        super().setup()
        # What counts as sent has then nearly arrived: the rest of it would wait here, and not at the client.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        told = self.headers.get
        fault = self.hub.note(
            Seen(self.role, self.command, path, told("Range"), told("Authorization"), told("If-Match"))
        )
        if fault.status is not None:
            self._send(fault.status, b"", fault.headers)
        elif self.role == "cdn":
            _, repo, name, file = path.split("/", 3)
            self._file(f"{repo}/{name}", file, fault)
        elif path.startswith("/api/models/"):
            self._api(path.removeprefix("/api/models/"))
        else:
            self._resolve(path, fault)

    def _repo(self, name: str) -> Repo | None:
        """None: it was refused."""
        repo = self.hub.repos.get(name)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None or (repo.token and not repo.gated and token != repo.token):
            status = 404 if token else 401
            self._send(status, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        if repo.gated and token != repo.token:
            self._send(403 if token else 401, b'{"error":"gated"}', {"X-Error-Code": "GatedRepo"})
            return None
        return repo

    def _commit(self, repo: Repo, revision: str) -> str | None:
        commit = repo.refs.get(revision) or (revision if revision in repo.refs.values() else None)
        if commit is None:
            self._send(404, b'{"error":"Invalid rev"}', {"X-Error-Code": "RevisionNotFound"})
        return commit

    def _api(self, rest: str) -> None:
        org, name, verb, *more = rest.split("/") + [""] * 2
        repo = self._repo(f"{org}/{name}")
        if repo is None:
            return
        revision = "/".join(more).strip("/") if verb == "revision" else more[0]
        commit = self._commit(repo, revision or "main")
        if commit is None:
            return
        if verb == "tree":
            self._tree(f"{org}/{name}", repo, commit)
            return
        siblings = [{"rfilename": path} for path in repo.files]
        self._json(
            {"_id": "1", "id": f"{org}/{name}", "sha": commit, "siblings": siblings, "private": False, "tags": []}
        )

    def _tree(self, name: str, repo: Repo, commit: str) -> None:
        entries = [self._entry(name, repo, path) for path in repo.files]
        start = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
        end = start + self.hub.page
        link = {}
        if end < len(entries):
            link = {"Link": f'<{self.hub.url}/api/models/{name}/tree/{commit}?recursive=true&cursor={end}>; rel="next"'}
        self._json(entries[start:end], link)

    def _entry(self, name: str, repo: Repo, path: str) -> dict[str, Any]:
        size, oid = repo.size(path), self.hub.oid(name, path)
        if repo.is_lfs(path):
            return {
                "type": "file", "oid": "b" * 40, "size": size, "path": path,
                "lfs": {"oid": oid, "size": size, "pointerSize": 134},
            }  # fmt: skip
        return {"type": "file", "oid": oid, "size": size, "path": path}

    def _resolve(self, path: str, fault: Fault) -> None:
        org, name, _, revision, file = path.strip("/").split("/", 4)
        repo = self._repo(f"{org}/{name}")
        if repo is None:
            return
        commit = self._commit(repo, revision)
        if commit is None:
            return
        if file not in repo.files:
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
            return
        oid = self.hub.oid(f"{org}/{name}", file)
        if repo.is_lfs(file):
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-Etag": f'"{oid}"',
                "X-Linked-Size": str(repo.size(file)),
                "Location": f"{self.hub.cdn_url}/{org}/{name}/{quote(file)}?{SECRET}",
            }
            self._send(302, b"", headers)
        else:
            self._file(f"{org}/{name}", file, fault, {"X-Repo-Commit": commit})

    def _file(self, repo: str, path: str, fault: Fault, more: dict[str, str] | None = None) -> None:
        content = self.hub.repos[repo].files[path]
        size = self.hub.repos[repo].size(path)
        etag = f'"{fault.etag or self.hub.oid(repo, path)}"'
        wanted = self.headers.get("If-Match")
        if wanted is not None and wanted != etag:
            self._send(412, b"", {})
            return
        start, end, status = 0, size, 200
        told = self.headers.get("Range")
        if told and not fault.no_ranges:
            first, _, last = told.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last) + 1 if last else size, size), 206
            if start >= size:
                self._send(416, b"", {"Content-Range": f"bytes */{size}"})
                return
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        for name, value in (more or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self._body(content, start, end, fault)

    def _body(self, content: bytes | Path, start: int, end: int, fault: Fault) -> None:
        stop = end if fault.cut_after is None else min(end, start + fault.cut_after)
        self._counted, acknowledged = 0, _acknowledged(self.connection)
        try:
            if isinstance(content, Path) and not fault.wrong and not fault.slow_s:
                self._from_disk(content, start, stop)
            else:
                data = bytearray((content if isinstance(content, bytes) else content.read_bytes())[start:stop])
                if fault.wrong and data:
                    data[len(data) // 2] ^= 1
                for at in range(0, len(data), 1 << 16):
                    time.sleep(fault.slow_s)
                    self._pace(at)
                    self.wfile.write(data[at : at + (1 << 16)])
                    self._count(len(data[at : at + (1 << 16)]))
        except ConnectionError:  # what was in the system's buffers still has not been fetched
            self.hub.count(min(0, _acknowledged(self.connection) - acknowledged - self._counted))
        if stop < end:
            self.close_connection = True

    def _from_disk(self, path: Path, start: int, stop: int) -> None:
        fd = os.open(path, os.O_RDONLY)
        began = start
        try:
            while start < stop:
                step = min(stop - start, 1 << 20 if self.hub.send_rate is None else 1 << 16)
                sent = os.sendfile(self.connection.fileno(), fd, start, step)
                self._count(sent)
                start += sent
                self._pace(sent if start - began else 0)
        finally:
            os.close(fd)

    def _count(self, sent: int) -> None:
        self._counted += sent
        self.hub.count(sent)

    def _pace(self, sent: int) -> None:
        if self.hub.send_rate:
            time.sleep(min(sent, 1 << 16) / self.hub.send_rate)

    def _json(self, told: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _acknowledged(connection: socket.socket) -> int:
    """Bytes that the other side has received: tcpi_bytes_acked of linux/tcp.h."""
    return int(struct.unpack_from("Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128), 120)[0])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        pass  # a client that was killed


Address = tuple[str, int]

HERE: tuple[Address, Address] = (("127.0.0.1", 0), ("127.0.0.2", 0))  # of hub and CDN: clients compare hosts, no ports


@contextmanager
def hub(addresses: tuple[Address, Address] = HERE, urls: tuple[str, str] | None = None) -> Iterator[Hub]:
    """Both servers, until the context is left; `urls` is what clients call them."""
    control = Hub()
    servers = []
    for role, address in zip(("hub", "cdn"), addresses, strict=True):
        handler = type("Handler", (_Handler,), {"hub": control, "role": role})
        server = _Server(address, handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
    control.url, control.cdn_url = urls or ("http://{}:{}".format(*server.server_address) for server in servers)
    try:
        yield control
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
