#!/usr/bin/env python3
"""How fast weights arrive on loopback: one large file beside curl, many files beside huggingface_hub, and the start.

The server is tests/fakes/hub.py in a process of its own. Every round runs all contenders one after the other, each into an
empty folder on the same disk. `quire fetch` verifies sha256 and syncs to the disk in its time; curl does neither, and on
a slow disk only "curl and sync" compares like with like; snapshot_download does neither. JSON goes to benchmarks/results/.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from machine import Others, describe

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from fakes.hub import Repo, hub  # noqa: E402  # after the path above

RESULTS = Path(__file__).resolve().parent / "results"
SNAPSHOT = """
import sys, time
from huggingface_hub import snapshot_download
from huggingface_hub.utils import disable_progress_bars
disable_progress_bars()
started = time.perf_counter()
snapshot_download("org/many", local_dir=sys.argv[1])
print(time.perf_counter() - started)
"""
BRING = """
import sys, time
from pathlib import Path
from quire_engine.fetch.bring import Fetch, bring
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.progress import Meter
from quire_engine.fetch.source import parse_source
started = time.perf_counter()
bring(Fetch(source=parse_source("org/many"), store=Path(sys.argv[1])), Meter(), Halt())
print(time.perf_counter() - started)
"""


def serve(folder: Path) -> None:
    """Until standard input ends."""
    with hub() as running:
        running.repos["org/large"] = Repo({"config.json": b"{}", "model.safetensors": folder / "large"})
        many: dict[str, bytes | Path] = {f"model-{path.name}.safetensors": path for path in sorted(folder.glob("0*"))}
        running.repos["org/many"] = Repo({"config.json": b"{}", **many})
        for name, repo in running.repos.items():
            for path in repo.files:
                running.oid(name, path)
        print(running.url, flush=True)
        sys.stdin.read()


@contextmanager
def serving(folder: Path):  # type: ignore[no-untyped-def]
    command = [sys.executable, __file__, "--serve", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().strip()
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()


def wall(command: list[str], environment: dict[str, str]) -> float:
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def inside(script: str, into: Path, environment: dict[str, str]) -> float:
    """Seconds of the call itself, in a fresh process."""
    os.sync()
    done = subprocess.run(
        [sys.executable, "-c", script, str(into)], env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large-mib", type=int, default=1024)
    parser.add_argument("--many", type=int, default=200, help="files of --many-kib")
    parser.add_argument("--many-kib", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder of the system otherwise")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments)
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M")
    (RESULTS / f"fetch-{stamp}.json").write_text(json.dumps(result, indent=1) + "\n")
    show(result)
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    content, out = folder / "content", folder / "out"
    content.mkdir()
    with (content / "large").open("wb") as file:
        for _ in range(arguments.large_mib):
            file.write(os.urandom(1 << 20))
    for number in range(arguments.many):
        (content / f"0{number:05d}").write_bytes(os.urandom(arguments.many_kib << 10))
    others = Others(os.getpid())
    seconds: dict[str, list[float]] = {}
    with serving(content) as url:
        environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"}
        environment.pop("HF_HUB_OFFLINE", None)
        quire = [sys.executable, "-m", "quire_api", "fetch"]
        large = f"{url}/org/large/resolve/main/model.safetensors"
        contenders: dict[str, Callable[[], float]] = {
            "large, curl": lambda: wall(["curl", "-sSfL", "-o", str(out / "file"), large], environment),
            "large, curl and sync": lambda: wall(
                ["sh", "-c", f"curl -sSfL -o '{out}/file' {large} && sync '{out}/file'"], environment
            ),
            "large, quire fetch": lambda: wall([*quire, "org/large", str(out)], environment),
            "many, snapshot_download": lambda: inside(SNAPSHOT, out, environment),
            "many, quire fetch": lambda: inside(BRING, out, environment),
            "start, quire fetch --help": lambda: wall([*quire, "--help"], environment),
        }
        for _ in range(arguments.rounds):
            for name, run in contenders.items():
                out.mkdir()
                seconds.setdefault(name, []).append(run())
                shutil.rmtree(out)
    return {
        "machine": describe(),
        "others": round(others.share(), 2),
        "large_bytes": arguments.large_mib << 20,
        "many": {"files": arguments.many, "bytes": arguments.many * arguments.many_kib << 10},
        "seconds": {name: [round(each, 3) for each in times] for name, times in seconds.items()},
    }


def show(result: dict[str, object]) -> None:
    seconds: dict[str, list[float]] = result["seconds"]  # type: ignore[assignment]
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    for name, value in middle.items():
        print(f"{name:28} {value:7.3f} s   {' '.join(f'{each:.2f}' for each in seconds[name])}")
    large, synced, many = (
        middle["large, curl"] / middle["large, quire fetch"],
        middle["large, curl and sync"] / middle["large, quire fetch"],
        middle["many, snapshot_download"] / middle["many, quire fetch"],
    )
    print(
        f"\nlarge: {large:.2f} of curl's rate (to reach: 0.70), {synced:.2f} where curl's file is on the disk, too; {int(str(result['large_bytes'])) / middle['large, quire fetch'] / 1e6:.0f} MB/s"
    )
    print(f"many: {many:.2f} times snapshot_download's rate (to reach: 1.50)")
    print(f"others took {result['others']:.0%} of the machine meanwhile")


if __name__ == "__main__":
    sys.exit(main())
