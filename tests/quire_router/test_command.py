"""`quire router` as a process: files read again, TLS, signals, bad input; and before a real engine."""

import asyncio
import http.client
import io
import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes.apiserver import ApiServer
from fakes.engines import engines
from fakes.resources import good
from fakes.serving import Running, free_port, quire, run_quire, serving

from quire_api.errors import InvalidInput
from quire_router.cli import router as router_command
from quire_router.keys import hash_of


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def config(path: Path, models: dict[str, list[str]]) -> Path:
    path.write_text(json.dumps({"models": [{"name": name, "backends": backends} for name, backends in models.items()]}))
    return path


def models(router: Running, key: str = "") -> list[str]:
    link = http.client.HTTPConnection("127.0.0.1", router.port, timeout=10)
    link.request("GET", "/v1/models", headers={"authorization": f"Bearer {key}"})
    answer = json.loads(link.getresponse().read())
    link.close()
    return [model["id"] for model in answer.get("data", [])]


def test_files_are_read_again_while_it_runs(tmp_path: Path) -> None:
    file, keys = config(tmp_path / "router.yaml", {"a": []}), tmp_path / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"name": "one", "sha256": hash_of("first")}]}))
    with serving(tmp_path, "router", f"--config={file}", f"--keys-file={keys}") as router:
        assert models(router, "first") == ["a"]

        config(file, {"a": [], "b": []})
        keys.write_text(json.dumps({"keys": [{"name": "two", "sha256": hash_of("second")}]}))
        eventually(lambda: models(router, "second") == ["a", "b"])
        assert models(router, "first") == []

        file.write_text("models: [")
        eventually(lambda: "what was read before stays" in router.log.read_text())
        assert models(router, "second") == ["a", "b"]
        metrics = router.request("GET", "/metrics")[2].decode()
        assert 'quire_router_reload_failures_total{file="router.yaml"} 1.0' in metrics
        assert router.stop() == 0


def certify(folder: Path) -> tuple[Path, Path]:
    """A certificate of its own, and the key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    name = "subjectAltName=DNS:localhost"
    command = [*make.split(), "-addext", name, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def trusts(port: int, cert: Path) -> bool:
    link = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=str(cert)))
    try:
        link.request("GET", "/livez")
        return link.getresponse().read() == b"ok"
    except ssl.SSLCertVerificationError:
        return False
    finally:
        link.close()


def test_it_serves_tls_and_takes_a_certificate_that_was_renewed(tmp_path: Path) -> None:
    cert, key = certify(tmp_path)
    (tmp_path / "new").mkdir()
    renewed, its_key = certify(tmp_path / "new")
    with engines(1, events=3) as (engine,):
        port = free_port()
        arguments = [
            f"--backend=m={engine.address}",
            f"--port={port}",
            f"--tls-cert-file={cert}",
            f"--tls-key-file={key}",
        ]
        process = subprocess.Popen(quire("router", *arguments), stderr=subprocess.PIPE)
        try:
            assert process.stderr is not None
            assert b"https://" in process.stderr.readline()
            link = http.client.HTTPSConnection("localhost", port, context=ssl.create_default_context(cafile=str(cert)))
            for _ in range(2):
                link.request("POST", "/v1/completions", json.dumps({"model": "m", "stream": True}))
                assert link.getresponse().read().endswith(b"data: [DONE]\n\n")
            link.close()
            limits = Path(f"/proc/{process.pid}/limits").read_text().partition("Max open files")[2].split()
            assert limits[0] == limits[1]

            cert.write_bytes(renewed.read_bytes())  # which the old key does not fit: the pair that was stays
            assert b"what was read before stays" in process.stderr.readline()
            key.write_bytes(its_key.read_bytes())
            eventually(lambda: trusts(port, renewed))
        finally:
            process.terminate()
            assert process.wait(10) == 0
            assert process.stderr is not None
            process.stderr.close()


@pytest.mark.parametrize("second", [False, True])
def test_a_signal_lets_open_answers_end_and_a_second_one_does_not(second: bool, tmp_path: Path) -> None:
    with (
        engines(1, events=10, delay=0.2 if second else 0.05) as (engine,),
        serving(tmp_path, "router", f"--backend=m={engine.address}") as router,
    ):
        link = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
        link.request("POST", "/v1/completions", json.dumps({"model": "m", "stream": True}))
        answer = link.getresponse()

        router.process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(0.3)
            router.process.send_signal(signal.SIGTERM)

        text = answer.read()
        link.close()
        assert text.endswith(b"data: [DONE]\n\n") != second
        assert (b"the router is shutting down" in text) == second
        assert router.process.wait(10) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "name the engines: by --config FILE, by --backend MODEL=HOST:PORT, once or more, or by --kubernetes"),
        (["--backend=m=a:1", "--kubernetes"], "name the engines: by --config FILE"),
        (["--backend=m=a:1", "--namespace=x"], "--namespace goes with --kubernetes"),
        (["--backend=m"], "--backend: m is not MODEL=HOST:PORT or MODEL=/path/of/socket"),
        (["--backend=m=a:b"], "--backend: m=a:b is not MODEL=HOST:PORT or MODEL=/path/of/socket"),
        (["--config=/nowhere"], "/nowhere: cannot be read"),
        (["--backend=m=a:1", "--keys-file=/nowhere"], "/nowhere: cannot be read"),
        (["--backend=m=a:1", "--tls-cert-file=/nowhere"], "--tls-cert-file and --tls-key-file go together"),
        (["--backend=m=a:1", "--tls-cert-file=/nowhere", "--tls-key-file=/nowhere"], "No such file"),
        (["--backned=m=a:1"], 'did you mean "--backend"?'),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        router_command(arguments)

    assert problem in str(caught.value)


def test_without_a_cluster_kubernetes_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")

    done = run_quire("router", "--kubernetes")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("quire router: --kubernetes: no cluster to ask: ")
    assert "Traceback" not in done.stderr


def test_a_cluster_is_followed_and_a_second_port_is_for_those_who_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = free_port()

    async def main() -> None:
        api = ApiServer()
        await api.start()
        try:
            await api.put("llmdeployments", good())
            monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
            await asyncio.to_thread(look)
        finally:
            await api.stop()

    def look() -> None:
        with serving(tmp_path, "router", "--kubernetes", f"--internal-port={inside}") as router:
            assert models(router) == ["quire-tiny"]
            assert Running(router.process, inside, router.log).request("GET", "/demand")[2] == b'{"demand": {}}'
            assert router.stop() == 0
            assert "Traceback" not in router.log.read_text()
            assert "Unclosed" not in router.log.read_text()

    asyncio.run(main())


def test_a_key_is_hashed_as_it_is_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("secret\n"))

    assert router_command(["hash-key"]) == 0
    assert capsys.readouterr().out == f"{hash_of('secret')}\n"


def test_a_real_engine_answers_through_it_as_by_itself(tmp_path: Path) -> None:
    """Held while the engine loads; drained, it takes nothing; killed in mid-stream, the stream says so."""
    engine_port, admin = free_port(), free_port()
    command = ["serve", "builtin://quire-tiny", f"--port={engine_port}", f"--admin-port={admin}", "--kv-cache-gib=0.05"]
    with (tmp_path / "engine.log").open("wb") as log:
        engine = subprocess.Popen(quire(*command), stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        with serving(tmp_path, "router", f"--backend=quire-tiny=127.0.0.1:{engine_port}") as router:
            alone = Running(engine, engine_port, tmp_path / "engine.log")
            ask: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}

            status, through = router.post("/v1/completions", **ask)

            assert status == 200, through
            assert through["choices"] == alone.post("/v1/completions", **ask)[1]["choices"]
            state = json.loads(router.request("GET", "/state")[2])["models"][0]
            assert (state["ready"], state["last_minute"]["tokens"]) == (1, 12)

            link = http.client.HTTPConnection("127.0.0.1", router.port, timeout=20)
            body = {"model": "quire-tiny", "prompt": "a", "max_tokens": 2000, "ignore_eos": True, "stream": True}
            link.request("POST", "/v1/completions", json.dumps(body))
            answer = link.getresponse()
            assert answer.readline().startswith(b"data: {")
            engine.kill()
            rest = answer.read()
            link.close()
            assert b'"error"' in rest.split(b"\n\n")[-2]
    finally:
        engine.kill()
        engine.wait()
