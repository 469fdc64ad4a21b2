"""The device: what it is, how fast it reads and multiplies, and how long a piece of work takes on it."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from quire_engine.runtime.roofline import Limits

__all__ = ["Device"]


@dataclass(frozen=True, slots=True)
class Device:
    kind: str  # cuda, or cpu to try all this out
    size: int  # of the matrices that are multiplied; what is read is 64 times as many numbers as one has

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name() if self.kind == "cuda" else "cpu"

    def synchronize(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], object], repeat: int = 20) -> float:
        """Of one call, the median, after a warm-up; by the host's clock, which is waited for."""
        times = []
        for _ in range(repeat + 3):
            self.synchronize()
            started = time.perf_counter()
            work()
            self.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[3:])

    def limits(self) -> dict[str, Any]:
        """On random data, for zeros flatter: kernels draw less power on them. Many calls at once, for a launch takes time."""
        times = 8
        source = torch.randn(64 * self.size * self.size // 8, device=self.kind, dtype=torch.bfloat16)
        copy = torch.empty_like(source)
        a, b = (torch.randn(self.size, self.size, device=self.kind, dtype=torch.bfloat16) for _ in range(2))

        def rate(amount: float, work: Callable[[], object]) -> float:
            return times * amount / self.seconds(lambda: [work() for _ in range(times)])

        return {
            "read_bytes_per_s": rate(source.nbytes, lambda: source.view(torch.float32).amax()),
            "copy_bytes_per_s": rate(2 * source.nbytes, lambda: copy.copy_(source)),
            "flop_per_s": rate(2 * self.size**3, lambda: a @ b),
        }

    def roof(self, measured: dict[str, Any]) -> Limits:
        """What everything is divided by: the faster of reading and copying, for a reduction may be held up by more than memory."""
        read = max(measured["read_bytes_per_s"], measured["copy_bytes_per_s"])
        return Limits(read_bytes_per_s=read, flop_per_s=measured["flop_per_s"], name=self.name)
