"""Forward passes recorded as CUDA graphs: what `recorded` of the table means on a GPU (decision 24).

A step in which every sequence writes one token launches some hundred kernels of a few microseconds each; from Python that
takes longer than they do. Such steps are recorded bucket by bucket (runtime/buckets.py), each when it comes for the
second time: the first token waits for none of them. All others run as they are, and so do those of a request that wants
the same bits in any batch.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from quire_engine.ops import Forward
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.buckets import Bucket, bucket_of
from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.padding import PaddedBatch, has_single_tokens

__all__ = ["Capture", "CudaCapture", "Graphs", "recorded_by"]

log = logging.getLogger("quire.engine")

UNRECORDABLE = ("synchroniz", "captur")  # in what torch says of a pass that waits for the device, or is no graph


class Capture(Protocol):
    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record what `run` launches. Returns what launches it again, and where its result is then; RuntimeError if it
        cannot be recorded, or memory is out."""
        ...


def recorded_by(invariance: Invariance) -> Callable[[Forward, int], Forward]:
    def recorded(forward: Forward, max_rows: int) -> Forward:
        """Steps have as few rows as buckets: that a pass may have `max_rows` says nothing here."""
        return Graphs(forward, CudaCapture(), invariance)

    return recorded


@dataclass(frozen=True, slots=True)
class _Recording:
    inputs: PaddedBatch
    replay: Callable[[], None]
    hidden: Tensor  # [rows of the bucket, hidden]


class Graphs:
    """A forward pass over one cache. What it returns may be overwritten by the next one."""

    def __init__(self, forward: Forward, capture: Capture, invariance: Invariance) -> None:
        self._forward = forward
        self._capture = capture
        self._invariance = invariance
        self._cache: Any = None
        self._seen: set[Bucket] = set()
        self._recordings: dict[Bucket, _Recording] = {}
        self._refused: set[Bucket] = set()

    def __call__(self, batch: ForwardBatch, cache: Any) -> Tensor:
        bucket = bucket_of(len(batch.tokens), batch.longest_single) if has_single_tokens(batch) else None
        self._cache = self._cache or cache
        if bucket is None or bucket in self._refused or cache is not self._cache or self._invariance.asked:
            return self._forward(batch, cache)
        recording = self._recordings.get(bucket)
        if recording is None:
            if bucket not in self._seen:  # it may be the only one of its size
                self._seen.add(bucket)
                return self._forward(batch, cache)
            recording = self._record(bucket, batch)
            if recording is None:
                return self._forward(batch, cache)
        recording.inputs.load(batch)
        recording.replay()
        return recording.hidden[: len(batch.tokens)]

    def _record(self, bucket: Bucket, batch: ForwardBatch) -> _Recording | None:
        """A capture runs the pass once before: on this step, so that what it writes to the cache is right."""
        cache = self._cache
        inputs = PaddedBatch(bucket, cache.block_size, cache.nobodys_block, batch.tokens.device)
        inputs.load(batch)
        try:
            replay, hidden = self._capture(lambda: self._forward(inputs.batch, cache))
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not any(word in str(error) for word in UNRECORDABLE):
                raise
            self._refused.add(bucket)
            log.warning(
                "steps of %d sequences and %d tokens of context are not recorded, and take longer: %s",
                *(bucket.rows, bucket.context, str(error).splitlines()[0]),
            )
            return None
        recording = self._recordings[bucket] = _Recording(inputs, replay, hidden)
        return recording


class CudaCapture:
    """One pool of memory for all graphs: they run one after the other, so that each may overwrite what another has left."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        torch.cuda.set_sync_debug_mode("error")  # who waits for the device is no graph
        try:
            with torch.cuda.stream(self._stream):
                run()  # kernels are compiled, and libraries take their memory, before anything is recorded
        finally:
            torch.cuda.set_sync_debug_mode("default")
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden = run()
        return graph.replay, hidden
