"""A forward pass as the list of its kernel calls, recorded once and replayed by one call of C (source/tape.c).

With few rows a step spends more time between kernels than in them: in Python, and with caches that Python has taken. But
a pass makes the same calls each time, at the same addresses; only the number of rows and what the batch says differ.

That holds for what is kernels and views alone. A pass that computes anything else, as one with experts does, is noticed
while it is recorded, and runs as it is from then on.
"""

import ctypes
import math
import weakref
from collections.abc import Callable
from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quire_engine.ops import Forward
from quire_engine.ops.cpu.library import PARAMETERS
from quire_engine.runtime.batch import ForwardBatch

__all__ = ["Memory", "Recorder", "Tape"]

KERNELS = (  # tape.c; its number of rows is the parameter with this number
    ("linear", 4),
    ("embed", 3),
    ("rms_norm", 3),
    ("add_rms_norm", 3),
    ("layer_norm", 4),
    ("activate", 2),
    ("gate", 2),
    ("store_kv", None),
    ("attention", None),
)
VIEWS = {
    torch.ops.aten.flatten.using_ints,
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.lift_fresh.default,
}


LINE = 64  # bytes of the processor's cache, where buffers begin

Buffer = NDArray[np.uint8]


class CallStruct(ctypes.Structure):  # tape.c
    _fields_ = (("kernel", c_long), ("at", c_void_p * 6), ("number", c_long * 2), ("epsilon", c_float))


class Recorder:
    """Stands where the library does: calls it, and writes down what was called."""

    def __init__(self, library: ctypes.CDLL, rows: int) -> None:
        self._library = library
        self._rows = rows
        self.calls: list[CallStruct] = []
        self.has_other_rows = False  # than those of the batch: in a replay nobody would know how many
        for number, (name, rows_at) in enumerate(KERNELS):
            setattr(self, name, self._noting(name, number, rows_at))

    def _noting(self, name: str, number: int, rows_at: int | None) -> Callable[..., Any]:
        kernel, kinds = getattr(self._library, name), PARAMETERS[name]

        def call(*arguments: Any) -> Any:
            note = CallStruct(kernel=number)
            addresses = [value for value, kind in zip(arguments, kinds, strict=True) if kind is c_void_p]
            note.at[: len(addresses)] = addresses
            numbers = [
                value
                for index, (value, kind) in enumerate(zip(arguments, kinds, strict=True))
                if kind in (c_long, c_int) and index != rows_at
            ]
            note.number[: len(numbers)] = numbers
            if kinds[-1] is c_float:
                note.epsilon = arguments[-1]
            self.has_other_rows |= rows_at is not None and arguments[rows_at] != self._rows
            self.calls.append(note)
            return kernel(*arguments)

        return call


class Memory:
    """Buffers for so many rows. One that nothing refers to any more is given out again: in the recording, and so at the
    same call of every replay."""

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._free: dict[int, list[Buffer]] = {}  # by size
        self._all: dict[int, Buffer] = {}  # by address

    def take(self, rows: int, *sizes: int, dtype: torch.dtype) -> Tensor:
        """[rows, *sizes]"""
        if rows > self._max_rows:  # not those of the batch: there will be no replay
            return torch.empty(rows, *sizes, dtype=dtype)
        row = math.prod(sizes) * dtype.itemsize
        free = self._free.setdefault(self._max_rows * row, [])
        buffer = free.pop() if free else self._make(self._max_rows * row)
        part = buffer[: rows * row]  # lives as long as any tensor that has its memory
        weakref.finalize(part, free.append, buffer)
        return torch.from_numpy(part).view(dtype).view(rows, *sizes)

    def with_all_rows(self, taken: Tensor) -> Tensor:
        """What was taken, with as many rows as there is room for. It is lent for ever."""
        buffer = self._all[taken.data_ptr()]
        return torch.from_numpy(buffer).view(taken.dtype).view(self._max_rows, *taken.shape[1:])

    def _make(self, size: int) -> Buffer:
        memory = np.empty(size + LINE, np.uint8)
        start = -memory.ctypes.data % LINE
        buffer = memory[start : start + size]
        self._all[buffer.ctypes.data] = buffer
        return buffer


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices what is computed by torch itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.computed = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """torch would import its compiler to keep it away from this class: a second of every start."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.computed |= func not in VIEWS or out.data_ptr() != args[0].data_ptr()
        return out


class Tape:
    """A forward pass over one cache. What it returns is overwritten by the next one."""

    def __init__(
        self,
        forward: Forward,
        max_rows: int,
        library: ctypes.CDLL,
        record: Callable[[Recorder, Memory], Any],
        describe: Callable[[ForwardBatch], None],
    ) -> None:
        self._forward = forward
        self._max_rows = max_rows
        self._library = library
        self._record_with = record
        self._describe = describe
        self._cache: object = None
        self._calls: ctypes.Array[CallStruct] | None = None
        self._tokens = torch.zeros(max_rows, dtype=torch.int64)
        self._positions = torch.zeros(max_rows, dtype=torch.int64)
        self._hidden = torch.empty(0)

    def __call__(self, batch: ForwardBatch, cache: Any) -> Tensor:
        rows = batch.tokens.numel()
        if rows > self._max_rows or (self._cache is not None and (cache is not self._cache or self._calls is None)):
            return self._forward(batch, cache)
        self._tokens[:rows] = batch.tokens
        self._positions[:rows] = batch.positions
        if self._calls is None:
            return self._record(replace(batch, tokens=self._tokens[:rows], positions=self._positions[:rows]), cache)
        self._describe(batch)
        if (done := self._library.replay(self._calls, len(self._calls), rows)) < len(self._calls):
            raise IndexError(f"call {done} of a forward pass was given an id that is none")
        return self._hidden[:rows]

    def _record(self, batch: ForwardBatch, cache: Any) -> Tensor:
        self._cache = cache
        recorder, memory = Recorder(self._library, batch.tokens.numel()), Memory(self._max_rows)
        with self._record_with(recorder, memory), _Watch() as watch:
            hidden = self._forward(batch, cache)
        if not watch.computed and not recorder.has_other_rows:
            self._calls = (CallStruct * len(recorder.calls))(*recorder.calls)
            self._memory, self._hidden = memory, memory.with_all_rows(hidden)
        return hidden
