"""The results file, part by part, and what it says in lines."""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["Report", "head", "verdict"]


class Report:
    """The file: parts come one by one, each with its seconds, or with why it has none."""

    def __init__(self, path: Path, head: dict[str, Any], budget_s: float) -> None:
        self._path = path
        self._ends = time.monotonic() + budget_s
        self.found: dict[str, Any] = {**head, "parts": {}}

    @property
    def seconds_left(self) -> float:
        return self._ends - time.monotonic()

    def part(self, name: str, takes_s: float, work: Callable[[], Any]) -> Any:
        """Its result; None if there is no time, or if it fails: the others are worth having all the same."""
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        entry: dict[str, Any]
        if self.seconds_left < takes_s:
            entry = {"left_out": f"it may take {takes_s:.0f} s, and {max(0.0, self.seconds_left):.0f} are left"}
        else:
            try:
                entry = {"result": work()}
            except Exception as error:
                entry = {"error": f"{type(error).__name__}: {error}"[:2000]}
        entry["seconds"] = round(time.monotonic() - started, 2)
        self.found["parts"][name] = entry
        self._path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(f"{name}: {json.dumps(entry)[:300]}", flush=True)
        return entry.get("result")

    def failed(self) -> list[str]:
        return [name for name, entry in self.found["parts"].items() if "error" in entry]


def head(name: str, smoke: bool) -> dict[str, Any]:
    import torch

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    versions = {package: of(package) for package in ("torch", "triton", "transformers", "numpy")}
    return {
        "what": "limits of the device, parity, and the engine beside its roofline",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["e2e/gpu/run.py", *sys.argv[1:]]),
        "device": name,
        "smoke": smoke,
        "versions": {**versions, "python": platform.python_version(), "cuda": torch.version.cuda},
    }


def verdict(report: Report, path: Path) -> int:
    """What was found, in lines; 1 if anything failed or is wrong."""
    parts = {name: entry["result"] for name, entry in report.found["parts"].items() if "result" in entry}
    faults = [f"{name} failed" for name in report.failed()]
    faults += [f"kernel {name} is off" for name, each in parts.get("kernels", {}).items() if not each["ok"]]
    faults += [
        f"tokens of {name} differ" for name, each in parts.get("tokens", {}).items() if each["equal"] < each["of"]
    ]
    for name, found in parts.items():
        if isinstance(found, dict) and "ratio" in found:
            print(f"{name:24s} {found['tokens_per_s']:12,.0f} tok/s {found['ratio']:8.1%} of the roofline")
    print(f"{path}: " + ("; ".join(faults) if faults else "nothing failed, nothing is wrong"))
    return 1 if faults else 0
