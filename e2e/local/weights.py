"""Weights under kill -9 at full size: 500 MB, twenty points, and eight processes on one folder."""

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes.fetching import at, killed_after, owner, run_fetch, settle, start_fetch
from fakes.hub import Hub, Repo, hub

from quire_engine.errors import WeightsFailure
from quire_engine.fetch.local import verify_folder
from quire_engine.locate import locate_model

SIZE = 500_000_000
POINTS = 20


@contextmanager
def _world() -> Iterator[tuple[Hub, Path]]:
    with tempfile.TemporaryDirectory() as name, hub() as running:
        folder = Path(name)
        block = random.Random(0).randbytes(1_000_000 - 8)
        with (folder / "content").open("wb") as file:
            for number in range(SIZE // 1_000_000):
                file.write(number.to_bytes(8, "little") + block)
        running.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": folder / "content"})
        running.oid("org/model", "model.safetensors")
        yield running, folder / "store"


def downloads_survive_being_killed() -> None:
    """500 MB killed at 20 random points: refused until whole, resumed with at most 10 % fetched again"""
    points = random.Random(7)
    with _world() as (running, store):
        folder, again = at(store, "org/model"), []
        for _ in range(POINTS):
            before = running.sent
            killed_after(running, int(SIZE * points.uniform(0, 1)), "org/model", str(store))
            for left in [store, folder, *folder.parent.glob(".tmp-*")]:
                if left.exists() and not (folder / "READY.json").exists():
                    _refuses(left)
            done = run_fetch(running, "org/model", str(store), "--quiet")
            assert done.returncode == 0, done.stderr
            assert verify_folder(folder, hashes=True).hashed
            settle(running)
            again.append((running.sent - before - SIZE) / SIZE)
            shutil.rmtree(store)
    print(f"   fetched again: {max(again):.1%} at most, {sum(again) / POINTS:.1%} on average")
    assert max(again) <= 0.1, again


def many_fetch_once() -> None:
    """8 processes fetch 500 MB into one folder, the writer is killed: one takes over, one download's worth of bytes"""
    with _world() as (running, store):
        running.send_rate = 30e6
        processes = {p.pid: p for p in (start_fetch(running, "org/model", str(store), "--quiet") for _ in range(8))}
        while running.sent < SIZE // 2:
            time.sleep(0.05)
        writer = owner(store)
        assert writer in processes, writer
        os.kill(writer, signal.SIGKILL)
        processes.pop(writer).communicate()
        running.send_rate = None
        ended = [(process.communicate(timeout=120), process.returncode) for process in processes.values()]
        assert [code for _, code in ended] == [0] * 7, ended
        assert verify_folder(at(store, "org/model"), hashes=True).hashed
        settle(running)
        print(f"   {running.sent / SIZE:.2f} downloads' worth of bytes")
        assert running.sent <= SIZE * 1.1


def _refuses(folder: Path) -> None:
    try:
        locate_model(str(folder))
    except WeightsFailure:
        return
    raise AssertionError(f"{folder} would be loaded, and is not whole")


STAGES = (downloads_survive_being_killed, many_fetch_once)
