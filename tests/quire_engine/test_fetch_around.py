"""What is around a fetch: signals, addresses, the environment, the terminal. Real processes, and servers that misbehave."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.fetching import at, environment, fetch_here
from fakes.hub import Repo, hub
from fakes.serving import free_port, quire

from quire_api.errors import InvalidInput
from quire_engine.arrive import arrive
from quire_engine.errors import WeightsFailure
from quire_engine.fetch import cli
from quire_engine.fetch.errors import SourceUnreachable
from quire_engine.locate import default_store


@pytest.fixture
def endless() -> Iterator[tuple[str, threading.Event]]:
    """A server that sends a byte now and then, and never the last; and whether it was asked."""
    ended, asked = threading.Event(), threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            asked.set()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
            while not ended.wait(0.1):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    def serve(listening: socket.socket) -> None:
        while True:
            try:
                threading.Thread(target=drip, args=(listening.accept()[0],), daemon=True).start()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, args=(listening,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        ended.set()
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", [["hf://org/model", "/nowhere/store"], ["resolve", "hf://org/model"]])
def test_a_signal_ends_the_wait_for_a_server_that_never_ends(
    endless: tuple[str, threading.Event], number: signal.Signals, verb: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = endless
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    process = subprocess.Popen(quire("fetch", *verb), stderr=subprocess.PIPE, text=True)
    assert asked.wait(30)
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()

    assert process.returncode == 25, err
    assert err.splitlines()[-1].startswith(f"quire fetch: Interrupted: {number.name}")


def test_a_second_signal_does_not_wait_for_order() -> None:
    """As when a thread hangs in a file system that is gone."""
    script = (
        "import time\nfrom quire_engine.fetch.cli import _signals\nfrom quire_engine.fetch.halt import Halt\n"
        "with _signals(Halt()):\n    print('up', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        before = process.poll()
        process.send_signal(signal.SIGINT)

        assert (before, process.wait(20)) == (None, 25)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "https://", "http://host:port", "http://[::1", "ftp://host"])
def test_an_endpoint_that_is_no_address_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(SourceUnreachable, match=r"HF_ENDPOINT is .*, which is no web address"):
        fetch_here("hf://org/model", tmp_path)

    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint.replace("https://", "https"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(SourceUnreachable, match="s3://bucket/x: "):
        fetch_here("s3://bucket/x", tmp_path)


def test_a_user_without_a_home_can_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's user often is a number that no file knows."""
    for name in ("HOME", "HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(SourceUnreachable, match="cannot be reached"):
        fetch_here("hf://org/model", tmp_path)
    with pytest.raises(WeightsFailure, match="there is no home to keep models in: give --download-dir"):
        default_store()


def test_a_process_without_standard_error_fetches(tmp_path: Path) -> None:
    with hub() as fake:
        fake.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": b"x"})
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *quire("fetch", "org/model", str(tmp_path))]
        done = subprocess.run(command, env=environment(fake), stdout=subprocess.PIPE, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, f"{at(tmp_path, 'org/model')}\n")


def test_a_status_file_that_cannot_be_is_said_before_anything_is_asked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--status-file: .*/none/x cannot be written: No such file"):
        cli.fetch(["hf://org/model", str(tmp_path), "--status-file", str(tmp_path / "none" / "x")])


def test_an_engine_fetches_the_files_that_it_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub() as fake:
        fake.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": b"x", "half.safetensors": b"y"})
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

        folder = arrive("org/model", str(tmp_path), ("half*",)).folder

    assert {path.name for path in folder.iterdir()} >= {"config.json", "half.safetensors"}
    assert not (folder / "model.safetensors").exists()
