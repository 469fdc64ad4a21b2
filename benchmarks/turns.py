"""What the benchmarks beside peers share: engines that stop while another is measured, and turns that nobody disturbed.

Each engine is a process with its descendants, a family, that stays. While one is measured the others are
stopped by a signal, and turns go round, so that whatever slows the machine meets all of them. A turn that other
processes disturbed is taken again. Knows no engine and no measure: those are offline.py's and serving.py's, whose options are
the same.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

import machine
from models import MODELS

HERE = Path(__file__).resolve().parent
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "quire-bench"

PROMPT, OUTPUT = 128, 64  # tokens
LENGTH = 256  # of a sequence, at most; a multiple of every engine's block
STARTS = 2  # the first may compile what the second finds
QUIET = 0.05  # share of the machine that others may use
PATIENCE_S = 600.0  # to wait for that
ATTEMPTS = 3  # at an undisturbed turn
GRACE_S = 30.0  # to end

CPUS = sorted(os.sched_getaffinity(0))
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(len(CPUS))}
VLLM_ENVIRONMENT = {
    "OMP_NUM_THREADS": None,  # it binds threads itself, and warns of this variable
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CPUS)),
    "VLLM_NO_USAGE_STATS": "1",
}


def arguments(about: str | None, kind: str, at_once: str, pythons: Mapping[str, Path]) -> argparse.Namespace:
    """`at_once`: what the option is called that says how many there are; `pythons` are the engines' interpreters."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--engines", nargs="+", choices=pythons, default=list(pythons))
    parser.add_argument("--rounds", type=int, default=3)
    most = "at once; default: 1, 32, 128 (tiny), 1, 16 (0.45b)"
    parser.add_argument(f"--{at_once}", type=int, nargs="+", help=most)
    default = HERE / "results" / f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    parser.add_argument("--out", type=Path, default=default, help="the JSON; the plot lies beside it")
    options = parser.parse_args()
    peers = [name for name in options.engines if pythons[name] == PEERS]
    if peers and not PEERS.exists():
        parser.error(f"{', '.join(peers)}: not installed; run benchmarks/peers/setup.sh, or choose with --engines")
    return options


class Family(ABC):
    """A process and its descendants. Stopped from `pause` to `resume`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str | None],  # None: unset
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = None,  # None: the log
    ) -> None:
        self._log = CACHE / "logs" / f"{name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        values = {**os.environ, **ENVIRONMENT, **environment}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                cwd=HERE,
                env={key: value for key, value in values.items() if value is not None},
                stdin=stdin,
                stdout=log if stdout is None else stdout,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for this process, which ends them all
            )

    @abstractmethod
    def first_token(self) -> None:
        """Returns when the engine has made one, however long it has to start before."""

    @property
    def stdin(self) -> IO[str]:
        assert self._process.stdin
        return self._process.stdin

    @property
    def stdout(self) -> IO[str]:
        assert self._process.stdout
        return self._process.stdout

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def lost(self) -> RuntimeError:
        self.close()
        return RuntimeError(f"{self._log.stem} ended; the end of {self._log}:\n{self._log.read_text()[-3000:]}")

    @property
    def members(self) -> list[machine.Process]:
        return machine.family(self._process.pid)

    def pause(self) -> None:
        _signal(self.members, signal.SIGSTOP)

    def resume(self) -> None:
        _signal(self.members, signal.SIGCONT)

    def close(self) -> None:
        """May be called again: what is gone is gone."""
        members = self.members
        self.resume()
        with contextlib.suppress(BrokenPipeError):
            self.ask_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=GRACE_S)
        _signal([member for member in members if member.alive], signal.SIGKILL)

    def ask_to_end(self) -> None:
        self._process.terminate()


def _signal(members: Sequence[machine.Process], number: signal.Signals) -> None:
    for member in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, number)


F = TypeVar("F", bound=Family)


def wait_for_quiet() -> None:
    """Returns when nothing else runs, or patience is at its end."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        others = machine.Others()
        time.sleep(0.5)
        if others.share() <= QUIET:
            return


def undisturbed(running: Family, measure: Callable[[int], dict[str, float]]) -> dict[str, float]:
    """One engine's part of a round: the least disturbed of some attempts, whose number `measure` is told."""
    attempts = []
    for attempt in range(ATTEMPTS):
        wait_for_quiet()
        running.resume()
        others = machine.Others(os.getpid())
        measured = measure(attempt)
        share = others.share()
        running.pause()
        attempts.append({**measured, "others_share": share})
        if share <= QUIET:
            break
    return min(attempts, key=lambda attempt: attempt["others_share"])


def start(
    names: Sequence[str], launch: Callable[[str, str, int], F], model: str, most: int, fleet: contextlib.ExitStack
) -> tuple[dict[str, F], list[dict[str, Any]]]:
    """Every engine, STARTS times: seconds from nothing to the first token. The last ones stay, paused."""
    rows: list[dict[str, Any]] = [{"model": model, "engine": name, "seconds": []} for name in names]
    staying: dict[str, F] = {}
    for attempt in range(STARTS):
        for row in rows:
            wait_for_quiet()
            started = time.monotonic()
            running = launch(row["engine"], model, most)
            fleet.callback(running.close)
            running.first_token()
            row["seconds"].append(time.monotonic() - started)
            print(f"{model:6} {row['engine']:12} first token {row['seconds'][-1]:6.1f} s after its start", flush=True)
            if attempt < STARTS - 1:
                running.close()
                continue
            running.pause()
            staying[row["engine"]] = running
    return staying, rows


def summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def quire_times(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How many times a peer's tokens a second Quire makes, round by round."""
    return summary([our["tokens_per_s"] / their["tokens_per_s"] for our, their in zip(ours, theirs, strict=True)])


def options_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def write(result: dict[str, Any], lines: Sequence[str], out: Path) -> None:
    """The JSON, and a plot of it beside, where matplotlib is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    print("\n".join(["", *lines, f"wrote {out}"]))
    if PEERS.exists():
        subprocess.run([PEERS, HERE / "plot.py", out], check=True)
