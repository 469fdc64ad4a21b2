"""What the engine does in this process: built from a shape, driven without HTTP, measured against the roofline.

Numbers are medians of several runs, by the host's clock: what counts is tokens that have come, not kernels that ran.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from quire_api import EngineConfig
from quire_engine.build import BuiltEngine, build_engine
from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.engine import Engine
from quire_engine.ops import Ops
from quire_engine.runtime.roofline import Limits, step_seconds

__all__ = ["Loads", "build", "kind_of"]

BUDGET = 8192  # tokens of a step
AT_LEAST = 6  # tokens that each has written before anything is measured: the step's size is recorded by then
NUMBERS = count()  # of requests: none is asked twice


def build(folder: Path | str, device: str, dtype: str, ops: Ops | None = None, **options: Any) -> BuiltEngine:
    config = EngineConfig(
        **{"model": str(folder), "device": device, "dtype": dtype, "load_format": "dummy", "enable_prefix_caching": False,
           "max_num_batched_tokens": BUDGET,
           **options}
    )  # fmt: skip
    return build_engine(config, ops=ops, with_tokenizer=False)


@dataclass(frozen=True, slots=True)
class Loads:
    built: BuiltEngine
    roof: Limits

    def add(self, prompt: int, output: int) -> RequestId:
        number = RequestId(next(NUMBERS))
        vocabulary = self.built.spec.shape.vocabulary
        ids = tuple((7 * i + 31 * number) % (vocabulary - 3) + 3 for i in range(prompt))
        params = TokenParams(max_tokens=output, min_tokens=output, temperature=0.0)
        self.built.engine.add(Request(id=number, prompt=ids, params=params))
        return number

    def finish(self) -> int:
        """Tokens that came until nothing is left."""
        made = 0
        while self.built.engine.has_work:
            made += sum(token >= 0 for token in self.built.engine.step().tokens)
        return made

    @contextmanager
    def writing(self, batch: int, context: int, steps: int) -> Iterator[None]:
        """So many sequences, each behind so many tokens, all of which write: for so many steps at least."""
        room = self.built.spec.trained_len - context
        ids = [self.add(context, min(room, steps + 4 * AT_LEAST + batch * context // BUDGET)) for _ in range(batch)]
        made = dict.fromkeys(ids, 0)
        engine = self.built.engine
        while min(made.values()) < AT_LEAST and engine.has_work:
            for number, token in zip(*_news(engine), strict=True):
                made[number] += token >= 0
        yield
        for number in ids:
            engine.abort(number)
        self.finish()

    def decode(self, batch: int, context: int, steps: int) -> dict[str, Any]:
        """Seconds of a step when so many sequences write, each behind so many tokens."""
        times, tokens = [], 0
        with self.writing(batch, context, steps):
            begun = before = time.perf_counter()
            for _ in range(steps):
                tokens += sum(token >= 0 for token in _news(self.built.engine)[1])
                now = time.perf_counter()
                times.append(now - before)
                before = now
        seconds = (before - begun) / max(1, tokens) * batch  # of a step in which all write
        least = self._least([(context + AT_LEAST + steps // 2, 1, True)] * batch)
        return {
            "what": "decode", "batch": batch, "context": context, "step_s": seconds, "median_step_s": statistics.median(times),
            "tokens_per_s": batch / seconds, "roofline_tokens_per_s": batch / least, "ratio": least / seconds,
        }  # fmt: skip

    def prefill(self, length: int, repeat: int) -> dict[str, Any]:
        """Seconds to the first token of a prompt alone."""

        def once() -> float:
            self.add(length, 1)
            started = time.perf_counter()
            self.finish()
            return time.perf_counter() - started

        seconds = statistics.median([once() for _ in range(repeat + 2)][2:])
        least = self._least([(0, length, True)])
        return {
            "what": "prefill", "length": length, "step_s": seconds, "tokens_per_s": length / seconds,
            "roofline_tokens_per_s": length / least, "ratio": least / seconds,
        }  # fmt: skip

    def mixed(self, users: int, prompt: int, output: int) -> dict[str, Any]:
        """All at once; the roofline reads every prompt and then writes all answers together."""
        for _ in range(users):
            self.add(prompt, output)
        started = time.perf_counter()
        made = self.finish()
        seconds = time.perf_counter() - started
        least = self._least([(0, prompt, True)] * users)
        stride = max(1, output // 50)
        for done in range(0, output - 1, stride):
            least += self._least([(prompt + done, 1, True)] * users) * min(stride, output - 1 - done)
        return {
            "what": "mixed", "users": users, "prompt": prompt, "output": output, "seconds": seconds,
            "tokens_per_s": made / seconds, "roofline_tokens_per_s": users * output / least, "ratio": least / seconds,
        }  # fmt: skip

    def where_time_goes(self, batch: int, context: int, steps: int) -> dict[str, float]:
        """Shares of the time of a step: kernels by kind, and the rest, in which the device does nothing."""
        on_gpu = self.built.device.type == "cuda"
        kinds = [torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU]
        with self.writing(batch, context, steps), torch.profiler.profile(activities=kinds) as profile:
            started = time.perf_counter()
            for _ in range(steps):
                self.built.engine.step()
            if on_gpu:
                torch.cuda.synchronize()
            wall = time.perf_counter() - started
        spent: dict[str, float] = {}
        for event in profile.key_averages():
            micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kind = kind_of(event.key)
            spent[kind] = spent.get(kind, 0.0) + micros / 1e6 / wall
        return {**spent, "nothing runs": max(0.0, 1 - sum(spent.values()))}

    def _least(self, chunks: Sequence[tuple[int, int, bool]]) -> float:
        return step_seconds(self.built.spec.shape, self.built.dtype, chunks, self.roof)


def _news(engine: Engine) -> tuple[list[RequestId], list[int]]:
    events = engine.step()
    return events.ids, events.tokens


KINDS: dict[str, tuple[str, ...]] = {  # words in a kernel's name, and how ours begin; the first kind that has one is its
    "attention": ("_decode", "_merge", "_prefill"),
    "sampling": ("_best", "_draw", "_score", "_penalise", "_rule_out", "softmax", "topk", "sort"),
    "experts": ("_route", "_count", "_list", "_sum"),
    "products": (
        "gemm", "gemv", "cutlass", "nvjet", "splitk", "mm", "linear", "_product", "_add_up", "_multiply", "_round", "_rescale",
    ),
    "copies": ("memcpy", "memset", "copy", "fill", "index"),
}  # fmt: skip


def kind_of(kernel: str) -> str:
    """Of a kernel, by its name."""
    name = kernel.lower()
    for kind, words in KINDS.items():
        if any(name.startswith(word) if word[0] == "_" else word in name for word in words):
            return kind
    return "between products"
