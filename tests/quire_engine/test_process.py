"""Two processes: what each does when the other ends, and when it cannot start."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
from fakes.serving import children, free_port, quire, run_quire, serving, ticks

from quire_engine.process.link import HEADER, Link, Work, pack


def test_a_killed_engine_process_is_reported_at_once(tmp_path: Path) -> None:
    """Every open stream gets an error event, those that wait as well, and the API process ends with the code for it."""
    options = ["--kv-cache-gib=0.05", "--max-num-seqs=16"]
    with serving(tmp_path, "serve", "builtin://quire-tiny", *options) as server, contextlib.ExitStack() as stack:
        body = json.dumps(
            {"model": "quire-tiny", "prompt": [5], "max_tokens": 2000, "ignore_eos": True, "stream": True}
        ).encode()
        streams = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)) for _ in range(20)]
        for sock in streams:
            sock.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
        seen = [sock.recv(2048) for sock in streams[:16]] + [b""] * 4
        (engine,) = children(server.process.pid)

        os.kill(engine, signal.SIGKILL)

        for i, sock in enumerate(streams):
            while data := sock.recv(65536):
                seen[i] += data
        assert server.process.wait(10) == 11
        for each in seen:
            assert b'"message":"the engine process was ended by SIGKILL' in each
            assert b"[DONE]" not in each
        assert "ended by SIGKILL, perhaps for want of memory" in server.log.read_text()


def test_a_killed_api_process_takes_the_engine_with_it(tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "builtin://quire-tiny", "--kv-cache-gib=0.05") as server:
        (engine,) = children(server.process.pid)

        server.process.kill()
        server.process.wait()

        deadline = time.monotonic() + 10
        while Path(f"/proc/{engine}").exists() and " Z " not in Path(f"/proc/{engine}/stat").read_text():
            assert time.monotonic() < deadline, "the engine process lives on"
            time.sleep(0.05)


@pytest.mark.parametrize("pause", [0.15, 0.6, 2.0])
def test_sigterm_while_loading_ends_at_once_and_well(tmp_path: Path, pause: float) -> None:
    """As process 1 of a container, too: there the kernel drops signals that have no handler."""
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(quire("serve", "builtin://quire-tiny", f"--uds={tmp_path}/s"), stderr=out)
    time.sleep(pause)
    engines = children(process.pid)
    has_handler = _handles(process.pid, signal.SIGTERM)  # not before Python is up

    process.terminate()

    assert process.wait(4) in ((0,) if has_handler else (0, -signal.SIGTERM))
    assert [e for e in engines if Path(f"/proc/{e}").exists()] == []
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "s").exists()


def test_the_socket_of_a_killed_server_is_taken_over(tmp_path: Path) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(f"{tmp_path}/s")
    left.close()

    done = run_quire("serve", "builtin://quire-tiny", f"--uds={tmp_path}/s", "--kv-cache-gib=4000")

    assert done.returncode == 11, done.stderr


def test_an_idle_engine_uses_no_processor(tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "builtin://quire-tiny", "--kv-cache-gib=0.05") as server:
        processes = [server.process.pid, *children(server.process.pid)]
        time.sleep(0.5)

        before = sum(ticks(pid) for pid in processes)
        time.sleep(2)
        used = sum(ticks(pid) for pid in processes) - before

        assert used <= 4, f"{used} ticks of 10 ms in 2 s"


def _handles(pid: int, number: signal.Signals) -> bool:
    handled = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(handled, 16) >> (number - 1) & 1)


def test_the_api_process_holds_no_torch(tmp_path: Path) -> None:
    with serving(tmp_path, "serve", "builtin://quire-tiny", "--kv-cache-gib=0.05") as server:
        assert "libtorch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["/nowhere"], 10, "quire serve: no model at /nowhere: there is no such folder"),
        (["builtin://llama-9"], 10, "quire serve: builtin://llama-9: no such model ships with this engine"),
        (["builtin://quire-tiny", "--block-size=12"], 12, "quire serve: --block-size: must be 8, 16 or 32"),
        (["builtin://quire-tiny", "--model=x"], 12, "the model is named twice"),
        ([], 12, "quire serve: --model: required"),
        (["builtin://quire-tiny", "--host=nowhere.invalid"], 14, "cannot listen on nowhere.invalid:8000: "),
        (["builtin://quire-tiny", f"--uds=/tmp/{'x' * 120}"], 14, "AF_UNIX path too long; choose another with --uds"),
        (["builtin://quire-tiny", "--max-modle-len=3"], 12, 'unknown flag; did you mean "--max-model-len"?'),
        (["builtin://quire-tiny", "--max-model-len=99999", "--port=0"], 12, "is more than the 2048 tokens"),
        (["builtin://quire-tiny", "--kv-cache-gib=4000", "--port=0"], 11, "GiB that are free"),
    ],
)
def test_what_cannot_start_says_why_in_one_line_and_by_its_code(arguments: list[str], code: int, says: str) -> None:
    done = run_quire("serve", *arguments)

    assert done.returncode == code, done.stderr
    assert says in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_gpu_that_is_not_there_is_named() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")

    done = run_quire("serve", "builtin://quire-tiny", "--device=cuda", "--port=0")

    assert done.returncode == 13
    assert "torch sees no GPU here" in done.stderr


def test_a_port_in_use_is_named_and_nothing_is_started() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()

        done = run_quire("serve", "builtin://quire-tiny", f"--port={port}")

    assert done.returncode == 14
    assert (
        f"cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --host or --port"
        in done.stderr
    )


def test_messages_survive_any_cut_of_the_bytes() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        data = b"".join(pack(Work(aborts=[n])) for n in range(3))  # type: ignore[list-item]

        def dribble() -> None:
            for i in range(len(data)):
                ours.sendall(data[i : i + 1])

        writing = threading.Thread(target=dribble)
        writing.start()
        link, seen = Link(theirs), []
        while len(seen) < 3:
            seen += [message.aborts[0] for message in link.receive(wait=True)]  # type: ignore[union-attr]
        writing.join()

    assert seen == [0, 1, 2]
    assert len(data) > 3 * HEADER.size


def test_a_closed_link_is_an_end_of_file() -> None:
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs, pytest.raises(EOFError):
        Link(theirs).receive(wait=True)
