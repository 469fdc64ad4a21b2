"""kill -9 at whatever moment: what is left is refused, and the next fetch goes on. Real processes, one real server."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.fetching import at, killed_after, noise, owner, run_fetch, settle, start_fetch
from fakes.hub import Fault, Hub, Repo, hub

from quire_engine.errors import WeightsFailure
from quire_engine.fetch.local import verify_folder
from quire_engine.locate import locate_model

SIZE = 80 << 20


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("content") / "model.safetensors"
    block = noise(1 << 20, 5)
    with path.open("wb") as file:
        for number in range(SIZE >> 20):
            file.write(number.to_bytes(8, "little") + block[8:])
    return path


@pytest.fixture
def fake(content: Path) -> Iterator[Hub]:
    with hub() as running:
        small = {f"vocab-{n}.json": noise(2000, n) for n in range(20)}
        running.repos["org/model"] = Repo({"config.json": b"{}", **small, "model.safetensors": content})
        running.oid("org/model", "model.safetensors")
        yield running


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_download_goes_on_and_is_never_loaded_before_its_end(fake: Hub, tmp_path: Path, seed: int) -> None:
    point = int(SIZE * random.Random(seed).uniform(0.05, 1.0))
    folder = at(tmp_path, "org/model")

    first = killed_after(fake, point, "org/model", str(tmp_path))
    for left in [*folder.parent.glob(".tmp-*"), folder]:
        if left.exists() and not (folder / "READY.json").exists():
            with pytest.raises(WeightsFailure, match="quire fetch hf://org/model@"):
                locate_model(str(left))
    with pytest.raises(WeightsFailure, match="no finished model"):
        locate_model(str(tmp_path))
    second = run_fetch(fake, "org/model", str(tmp_path), "--quiet")

    assert second.returncode == 0, second.stderr
    assert verify_folder(folder, hashes=True).bytes > SIZE
    # In flight at each of 8 connections: a buffer of ours, and what the kernel had taken for it.
    assert fake.sent - SIZE < 8 * (4 << 20), f"{first:,} bytes before the kill, {fake.sent - first:,} after"


def test_a_kill_between_any_two_steps_of_publishing_is_taken_up(fake: Hub, tmp_path: Path) -> None:
    """What those moments leave on the disk, made by hand; nothing is fetched again."""
    folder = at(tmp_path, "org/model")
    assert run_fetch(fake, "org/model", str(tmp_path), "--quiet").returncode == 0
    sent = fake.sent
    (folder / "READY.json").rename(folder / ".READY.json.new")
    assert run_fetch(fake, "org/model", str(tmp_path), "--quiet").returncode == 0
    (folder / "READY.json").unlink()
    folder.rename(folder.with_name(f".tmp-{folder.name}-1"))

    done = run_fetch(fake, "org/model", str(tmp_path), "--quiet")

    assert done.returncode == 0, done.stderr
    assert verify_folder(folder, hashes=True).hashed
    assert fake.sent == sent


def test_eight_processes_fetch_once_and_one_takes_over_from_a_killed_writer(fake: Hub, tmp_path: Path) -> None:
    fake.send_rate = 20e6
    processes = [start_fetch(fake, "org/model", str(tmp_path), "--quiet") for _ in range(8)]
    by_pid = {process.pid: process for process in processes}
    while fake.sent < SIZE // 4:
        time.sleep(0.01)
    writer = owner(tmp_path)
    assert writer in by_pid
    os.kill(writer, signal.SIGKILL)
    by_pid[writer].communicate()
    while owner(tmp_path) in (writer, None):
        time.sleep(0.01)
    fake.send_rate = None
    others = [process for pid, process in by_pid.items() if pid != writer]
    outputs = [process.communicate(timeout=60) for process in others]
    settle(fake)

    assert [process.returncode for process in others] == [0] * 7, outputs
    assert {out.splitlines()[-1] for out, _ in outputs} == {str(at(tmp_path, "org/model"))}
    assert verify_folder(at(tmp_path, "org/model"), hashes=True).hashed
    assert fake.sent < SIZE * 1.5


def test_a_writer_that_sleeps_too_long_does_no_harm(fake: Hub, tmp_path: Path) -> None:
    """Its lock is taken over while it is stopped; when it wakes it sees that, and ends."""
    from quire_engine.fetch.lock import Lock

    fake.faults.append(Fault("org/model/model", times=9, slow_s=0.05))
    process = start_fetch(fake, "org/model", str(tmp_path), "--quiet")
    while fake.sent < 1 << 20:
        time.sleep(0.01)
    process.send_signal(signal.SIGSTOP)
    path = at(tmp_path, "org/model").parent / f".lock-{'a' * 40}.2"
    lock = Lock(path, lambda: (0, 0), lambda: None)
    process.send_signal(signal.SIGCONT)
    _, err = process.communicate(timeout=20)
    held = lock.held
    lock.release()

    assert process.returncode == 25, err
    assert "another process took over" in err
    assert held
    fake.faults.clear()
    assert run_fetch(fake, "org/model", str(tmp_path), "--quiet").returncode == 0
    assert verify_folder(at(tmp_path, "org/model"), hashes=True).hashed
