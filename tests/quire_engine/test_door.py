"""Who may come in, and what comes of it: keys, limits, TLS, administration, health. Real processes, real sockets."""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes.serving import Running, children, free_port, quire, run_quire, serving
from fastapi import FastAPI
from starlette.types import Message

from quire_engine import cli
from quire_engine.errors import EXIT_HUNG
from quire_engine.locate import locate_model
from quire_engine.server import door, errors

pytestmark = pytest.mark.xdist_group("door")

TINY = "builtin://quire-tiny"
HELLO = {"model": "quire-tiny", "prompt": "Hello", "max_tokens": 4}
LONG = {**HELLO, "max_tokens": 1800, "ignore_eos": True, "stream": True}


def call(
    port: int, method: str, path: str, body: Any = None, timeout: float = 30, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        link.request(method, path, data, {"content-type": "application/json", **headers})
        answer = link.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        link.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, int]]:
    """A server with keys, limits and an admin port."""
    folder, admin = tmp_path_factory.mktemp("door"), free_port()
    keys = folder / "keys"
    keys.write_text("# ours\nalpha\nbeta  # of the other team\n\n")
    options = [
        TINY, "--kv-cache-gib=0.05", "--max-num-seqs=2", "--max-num-queued-reqs=2", "--max-output-tokens=1500",
        f"--api-key-file={keys}", "--api-key", "gamma", f"--admin-port={admin}", "--max-body-mib=0.5",
        "--allowed-origins", "https://chat.example.com", "--log-format=json", "--enable-log-requests",
    ]  # fmt: skip
    with serving(folder, "serve", *options) as running:
        yield running, admin


@pytest.mark.parametrize("key", ["alpha", "beta", "gamma"])
def test_any_of_the_keys_opens(guarded: tuple[Running, int], key: str) -> None:
    status, _, _ = call(guarded[0].port, "POST", "/v1/completions", HELLO, Authorization=f"Bearer {key}")

    assert status == 200


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer delta"}, {"Authorization": "alpha"}])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/completions"), ("GET", "/v1/models"), ("POST", "/tokenize")]
)
def test_without_a_key_nothing_opens(
    guarded: tuple[Running, int], method: str, path: str, header: dict[str, str]
) -> None:
    status, headers, data = call(guarded[0].port, method, path, HELLO if method == "POST" else None, **header)

    assert (status, headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(data)["error"]["type"] == "authentication_error"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/load", "/version"])
def test_probes_and_scrapers_need_no_key(guarded: tuple[Running, int], path: str) -> None:
    assert call(guarded[0].port, "GET", path)[0] == 200


def test_keys_are_not_in_the_list_of_processes_of_the_engine(guarded: tuple[Running, int]) -> None:
    (engine,) = children(guarded[0].process.pid)

    assert b"gamma" not in Path(f"/proc/{engine}/cmdline").read_bytes()


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_bound_is_413(guarded: tuple[Running, int], chunked: bool) -> None:
    body = json.dumps({**HELLO, "prompt": "x" * 600_000}).encode()
    link = http.client.HTTPConnection("127.0.0.1", guarded[0].port, timeout=30)
    headers = {"Authorization": "Bearer alpha", "content-type": "application/json"}

    if chunked:
        pieces = (body[at : at + 65536] for at in range(0, len(body), 65536))
        link.request("POST", "/v1/completions", pieces, headers, encode_chunked=True)
    else:
        link.request("POST", "/v1/completions", body, headers)
    answer = link.getresponse()

    assert answer.status == 413
    assert "0.5 MiB" in json.loads(answer.read())["error"]["message"]
    link.close()


def test_a_request_id_comes_back_and_an_odd_one_is_replaced(guarded: tuple[Running, int]) -> None:
    def id_of(given: str) -> str:
        headers = {"Authorization": "Bearer alpha", "X-Request-Id": given}
        return call(guarded[0].port, "POST", "/v1/completions", HELLO, **headers)[1]["x-request-id"]

    assert id_of("mine-1") == id_of("mine-1") == "mine-1"
    assert id_of("not mine") != "not mine"
    assert id_of("x" * 300) != "x" * 300
    line = next(line for line in guarded[0].log.read_text().splitlines() if '"request_id": "mine-1"' in line)
    logged = json.loads(line)
    assert (logged["message"], logged["status"], logged["level"]) == ("POST /v1/completions", 200, "info")
    assert "Hello" not in guarded[0].log.read_text()  # no text of a prompt


def test_a_page_of_an_allowed_origin_may_call(guarded: tuple[Running, int]) -> None:
    def allowed(origin: str) -> str | None:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        return call(guarded[0].port, "OPTIONS", "/v1/completions", **headers)[1].get("access-control-allow-origin")

    assert allowed("https://chat.example.com") == "https://chat.example.com"
    assert allowed("https://else.example.com") is None


@pytest.mark.parametrize("origin", ["https://evil.example.com", "null"])
def test_a_foreign_page_gets_in_nowhere(guarded: tuple[Running, int], origin: str) -> None:
    """Browsers send simple requests of any page to anywhere, and say whose page it is."""
    server, admin = guarded
    headers = {"Origin": origin, "Authorization": "Bearer alpha", "content-type": "text/plain"}

    assert call(server.port, "POST", "/v1/completions", HELLO, **headers)[0] == 403
    assert call(admin, "POST", "/admin/drain", **headers)[0] == 403
    assert call(server.port, "GET", "/readyz")[0] == 200


def test_a_refusal_can_be_read_by_an_allowed_page(guarded: tuple[Running, int]) -> None:
    status, headers, _ = call(guarded[0].port, "POST", "/v1/completions", HELLO, Origin="https://chat.example.com")

    assert (status, headers["access-control-allow-origin"]) == (401, "https://chat.example.com")


def test_a_path_writes_no_line_of_its_own_into_the_log(guarded: tuple[Running, int]) -> None:
    call(guarded[0].port, "GET", "/a%0aforged", Authorization="Bearer alpha")

    assert not [line for line in guarded[0].log.read_text().splitlines() if line.startswith("forged")]


def test_answers_are_counted_by_path_and_kind(guarded: tuple[Running, int]) -> None:
    call(guarded[0].port, "GET", "/nowhere/at/all", Authorization="Bearer alpha")

    text = call(guarded[0].port, "GET", "/metrics")[2].decode()
    assert 'http_requests_total{handler="none",method="GET",status="4xx"}' in text
    assert 'http_requests_total{handler="/v1/completions",method="POST",status="2xx"}' in text


def test_a_full_queue_is_429_and_nobody_else_notices(guarded: tuple[Running, int]) -> None:
    """Two run, two wait; what comes beyond is told to come again, and what was accepted is finished."""
    server, admin = guarded
    body = {**HELLO, "max_tokens": 1500, "ignore_eos": True}
    before = rejections(server.port)

    def ask(_: int) -> int:
        return call(server.port, "POST", "/v1/completions", body, timeout=100, Authorization="Bearer alpha")[0]

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, i) for i in range(4)]
        deadline = time.monotonic() + 20
        while json.loads(call(admin, "GET", "/load")[2])["waiting"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        status, headers, data = call(server.port, "POST", "/v1/completions", HELLO, Authorization="Bearer alpha")
        assert (status, json.loads(data)["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["retry-after"]) > 0
        assert [future.result() for future in asked] == [200] * 4
    assert rejections(server.port) == before + 1


def test_sequences_that_cannot_wait_beside_those_that_do_are_429(guarded: tuple[Running, int]) -> None:
    """How many a request asks for is known only when it has been read: two run, one waits, and two more may."""
    server, admin = guarded
    body = {**HELLO, "max_tokens": 1000, "ignore_eos": True}

    def ask(n: int) -> int:
        return call(
            server.port, "POST", "/v1/completions", {**body, "n": n}, timeout=100, Authorization="Bearer alpha"
        )[0]

    with ThreadPoolExecutor(1) as pool:
        three = pool.submit(ask, 3)
        deadline = time.monotonic() + 20
        while json.loads(call(admin, "GET", "/load")[2])["waiting"] < 1:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        refused = ask(2)
        assert (refused, three.result()) == (429, 200)


def rejections(port: int) -> float:
    lines = call(port, "GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:admission_rejections_total{"))


def test_an_answer_is_no_longer_than_the_server_allows(guarded: tuple[Running, int]) -> None:
    body = {**HELLO, "max_tokens": 1900, "ignore_eos": True}

    _, _, data = call(guarded[0].port, "POST", "/v1/completions", body, timeout=100, Authorization="Bearer alpha")

    done = json.loads(data)
    assert (done["usage"]["completion_tokens"], done["choices"][0]["finish_reason"]) == (1500, "length")


def test_draining_by_the_admin_port_takes_nothing_new_and_can_be_taken_back(guarded: tuple[Running, int]) -> None:
    server, admin = guarded

    call(admin, "POST", "/admin/drain")
    refused = call(server.port, "POST", "/v1/completions", HELLO, Authorization="Bearer alpha")
    state = json.loads(call(admin, "GET", "/admin/state")[2])
    ready = call(server.port, "GET", "/readyz")[0]
    alive = call(server.port, "GET", "/livez")[0]
    call(admin, "POST", "/admin/resume")
    taken = call(server.port, "POST", "/v1/completions", HELLO, Authorization="Bearer alpha")

    assert (refused[0], "retry-after" in refused[1]) == (503, True)
    assert (state["draining"], state["ready"], state["inside"]) == (True, False, 0)
    assert (ready, alive, taken[0]) == (503, 200, 200)
    assert call(server.port, "POST", "/admin/drain", Authorization="Bearer alpha")[0] == 404  # not on this port


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--api-key-file=/nowhere"], "--api-key-file /nowhere cannot be read"),
        (["--api-key="], "--api-key is empty"),
        (["--ssl-keyfile=/nowhere"], "without --ssl-certfile"),
        (["--data-parallel-size=2"], "2 is not supported yet, only 1"),
        (["--ssl-certfile=/nowhere"], "cannot be used"),
        (["--tool-call-parser=hermess"], 'did you mean "hermes"?'),
        (["--reasoning-parser=qwen4"], 'did you mean "qwen3"?'),
        (["--chat-template=/nowhere"], "neither Jinja nor a file"),
        (["--chat-template={% if %}"], "not valid Jinja"),
        (["--num-scheduler-steps=4", "--max-num-sequences=4"], "--max-num-sequences: unknown flag"),
    ],
)
def test_mistakes_in_flags_are_named_before_anything_is_loaded(options: list[str], says: str) -> None:
    done = run_quire("serve", TINY, *options)

    assert done.returncode == 12
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["hot", -1, True])
def test_defaults_of_a_checkpoint_that_no_request_could_have_are_named_at_start(tmp_path: Path, value: Any) -> None:
    folder = tmp_path / "model"
    shutil.copytree(locate_model(TINY), folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": value, "top_k": 50.0, "top_p": None}))

    done = run_quire("serve", str(folder))

    assert done.returncode == 12
    assert "generation_config.json: temperature" in done.stderr
    assert "--generation-config vllm" in done.stderr


def test_https_by_our_certificate(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    argv = [
        "serve",
        TINY,
        "--kv-cache-gib=0.02",
        f"--ssl-certfile={tmp_path}/cert.pem",
        f"--ssl-keyfile={tmp_path}/key.pem",
    ]
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    def ready() -> bool:
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        try:
            link.request("GET", "/readyz")
            return link.getresponse().status == 200
        except OSError:
            return False
        finally:
            link.close()

    process = subprocess.Popen(quire(*argv, f"--port={port}"))
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        stranger = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=ssl.create_default_context())
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.request("GET", "/readyz")
    finally:
        process.terminate()
        assert process.wait(20) == 0


def test_a_body_that_stays_away_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain waits for all that was accepted: half a request must not hold it up."""
    monkeypatch.setattr(door, "PATIENCE_S", 0.01)
    app, sent = FastAPI(), []
    errors.install(app)

    @app.post("/")
    async def post(body: dict[str, Any]) -> None: ...

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    closed = door.Door(
        app, lambda: None, lambda: None, keys=door.Keys([]), max_body_bytes=9, origins=(), on_answer=lambda visit: None
    )
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "http_version": "1.1"}
    asyncio.run(closed(scope, receive, send))

    assert (sent[0]["status"], closed.inside) == (408, 0)
    assert json.loads(sent[1]["body"])["error"]["code"] == 408


# ---------------------------------------------------------------------- health


@pytest.mark.parametrize("busy", [False, True])
def test_an_engine_that_hangs_is_found_out_and_ended(tmp_path: Path, busy: bool) -> None:
    with serving(tmp_path, "serve", TINY, "--kv-cache-gib=0.05") as server:
        (engine,) = children(server.process.pid)
        seen = bytearray()
        reader = threading.Thread(target=_read_stream, args=(server.port, seen))
        if busy:
            reader.start()
            while not seen:
                time.sleep(0.01)

        os.kill(engine, signal.SIGSTOP)
        stopped = time.monotonic()

        while server.process.poll() is None:
            try:
                if call(server.port, "GET", "/livez", timeout=2)[0] != 200:
                    break
            except OSError:
                break
            assert time.monotonic() - stopped < 7, "nobody noticed"
            time.sleep(0.1)
        assert server.process.wait(5) == EXIT_HUNG
        assert "has not answered for" in server.log.read_text()
        assert not Path(f"/proc/{engine}").exists()
        if busy:
            reader.join(5)
            assert b"has not answered for" in seen
            assert b"[DONE]" not in seen


def _read_stream(port: int, into: bytearray) -> None:
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))
        while data := sock.recv(65536):
            into += data


def test_whoever_stops_all_of_it_and_lets_it_go_on_has_no_hung_engine(tmp_path: Path) -> None:
    """A laptop that slept: both processes were away."""
    with serving(tmp_path, "serve", TINY, "--kv-cache-gib=0.05") as server:
        processes = [server.process.pid, *children(server.process.pid)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)

        time.sleep(8)
        for pid in reversed(processes):
            os.kill(pid, signal.SIGCONT)

        time.sleep(3)
        assert call(server.port, "POST", "/v1/completions", HELLO)[0] == 200


def test_the_reason_of_an_end_is_left_where_kubernetes_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    word = tmp_path / "termination-log"
    word.touch()
    monkeypatch.setattr(cli, "TERMINATION_LOG", word)

    code = cli.serve([str(tmp_path / "nothing")])

    assert code == 10
    assert "no model at" in word.read_text()
