"""Connections of a fetch: through a proxy, over TLS with a private authority, and redirects that must not be followed."""

import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from quire_engine.fetch import wire
from quire_engine.fetch.client import Client
from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.listing import Target
from quire_engine.fetch.retry import Policy
from quire_engine.fetch.wire import Broken, Wire

Answering = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextmanager
def server(answer: Answering, certificate: Path | None = None) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self)

        do_CONNECT = do_GET  # noqa: N815  # the base class's way to name them

        def log_message(self, *_: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
        running.socket = context.wrap_socket(running.socket, server_side=True)
    threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{running.server_address[1]}"
    finally:
        running.shutdown()
        running.server_close()


def says(body: bytes, status: int = 200, **headers: str) -> Answering:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    wire._tls.cache_clear()
    yield
    wire._tls.cache_clear()


def read(url: str, **headers: str) -> bytes:
    links = Wire()
    try:
        client = Client(wire=links, halt=Halt(), policy=Policy(attempts=1))
        with client.open(Target(url=url, headers=headers), {}) as answer:
            return answer.read(1000)
    finally:
        links.close()


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_ones_own_is_trusted_when_it_is_named(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with server(says(b"hello"), certificate) as host:
        with pytest.raises(Broken, match="certificate verify failed"):
            read(f"https://{host}/x")
        monkeypatch.setenv(name, str(certificate / "cert.pem"))
        wire._tls.cache_clear()

        assert read(f"https://{host}/x") == b"hello"


def test_a_proxy_is_asked_to_connect_and_sees_no_token(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def tunnel(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked.append((f"{handler.command} {handler.path}", dict(handler.headers)))
        host, _, port = handler.path.partition(":")
        far = socket.create_connection((host, int(port)))
        handler.send_response(200)
        handler.end_headers()
        near = handler.connection
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join(5)
        far.close()
        handler.close_connection = True

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    with server(says(b"hello"), certificate) as host, server(tunnel) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:pass%20word@{proxy}")
        assert read(f"https://{host}/x", Authorization="Bearer token") == b"hello"
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert read(f"https://{host}/x") == b"hello"

    ((line, headers),) = asked
    assert line == f"CONNECT {host}"
    assert headers["Proxy-Authorization"] == "Basic dXNlcjpwYXNzIHdvcmQ="
    assert "Authorization" not in headers


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other side is gone


def test_a_plain_proxy_is_asked_for_the_whole_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def echo(handler: http.server.BaseHTTPRequestHandler) -> None:
        says(handler.path.encode())(handler)

    with server(echo) as proxy:
        monkeypatch.setenv("http_proxy", f"http://{proxy}")

        assert read("http://models.example/a?b=c") == b"http://models.example/a?b=c"


def test_a_redirect_to_what_is_not_encrypted_is_not_followed(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert.pem"))
    moved: Any = says(b"", 302, Location="http://127.0.0.1:1/x?secret")
    with (
        server(moved, certificate) as host,
        pytest.raises(SourceUnreachable, match="which is not encrypted") as failure,
    ):
        read(f"https://{host}/x")

    assert "secret" not in str(failure.value)


def test_redirects_in_circles_end() -> None:
    with server(says(b"", 302, Location="/again")) as host, pytest.raises(SourceUnreachable, match="in circles"):
        read(f"http://{host}/x")


def test_a_kept_connection_that_the_server_closed_is_made_anew() -> None:
    def once(handler: http.server.BaseHTTPRequestHandler) -> None:
        says(b"hello")(handler)
        handler.close_connection = True  # without having said so

    links = Wire()
    with server(once) as host:
        for _ in range(3):
            with links.get(f"http://{host}/x", {}) as answer:
                assert answer.read(100) == b"hello"
    links.close()


@pytest.mark.parametrize("location", ["http://[secret/x", "http://host:secret/x", "ftp://host/x?secret"])
def test_a_redirect_to_no_address_is_named_without_its_text(location: str) -> None:
    with (
        server(says(b"", 302, Location=location)) as host,
        pytest.raises(SourceUnreachable, match="which is no web address") as failure,
    ):
        read(f"http://{host}/x")

    assert "secret" not in str(failure.value)


def test_a_redirect_is_asked_for_in_letters_that_a_request_may_have() -> None:
    """http.client refuses others, and prints the whole address, signature and all."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path == "/x":
            says(b"", 302, Location="/caf\u00c3\u00a9 %2F[1]?X-Amz-Signature=a b&c=%20")(handler)
        else:
            says(handler.path.encode())(handler)

    with server(answer) as host:
        assert read(f"http://{host}/x") == b"/caf%C3%A9%20%2F[1]?X-Amz-Signature=a%20b&c=%20"


@pytest.mark.parametrize(
    "proxy", ["http://user:pass/word@host:3128", "socks5://user:word@host:1080", "https://user:word@host", "http://"]
)
def test_a_proxy_that_cannot_be_used_is_said_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", proxy)

    with pytest.raises(SourceUnreachable, match="the proxy of the environment for http://") as failure:
        read("http://models.example/x")

    assert "word@" not in str(failure.value).replace("password@", "")
