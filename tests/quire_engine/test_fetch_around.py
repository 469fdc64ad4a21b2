"""What is around a fetch: signals, addresses, the environment, the terminal. Real processes, and servers that misbehave."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from fakes.serving import quire


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
