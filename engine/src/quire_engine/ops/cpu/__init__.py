"""The kernels for CPUs, in C: `native_ops`, of the same table as the reference.

A result never depends on the batch: each number is summed in one fixed order, whatever stands beside it, in however
many chunks its sequence came and on however many threads (source/tile.h, source/attention.c).

This file is the way from tensors to addresses. At a token a step it would be called about ten times a layer, and the
kernels take no longer than the way to them: hence what is remembered here, and the tape.
"""

import ctypes
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_engine.grammars.binding import address_of, entrance
from quire_engine.ops import Activation, AttentionForm, Forward, LayerCache, Ops, Walker
from quire_engine.ops.cpu.library import (
    BatchStruct,
    FormStruct,
    GrammarsStruct,
    MatrixStruct,
    NoLibrary,
    WalkStruct,
    open_library,
)
from quire_engine.ops.cpu.tape import Memory, Recorder, Tape
from quire_engine.ops.drawing import draw
from quire_engine.ops.reference import expert_by_expert, penalise, route, score
from quire_engine.runtime.batch import ForwardBatch
from quire_engine.runtime.invariance import Invariance

__all__ = ["NoLibrary", "PackedMatrix", "native_ops"]

_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2, Activation.GPT_OSS: 3}  # rows.c


def native_ops(dtype: torch.dtype, processes: int = 1) -> Ops:
    """For activations and weights of this format, in one of so many processes on these cores; NoLibrary says in a line
    why there are none."""
    kernels = _Kernels(dtype, processes)
    return Ops(
        pack=kernels.pack,
        linear=kernels.linear,
        embed=kernels.embed,
        pack_experts=kernels.pack_experts,
        route=route,
        mix=kernels.mix,
        per_head=kernels.per_head,
        rms_norm=kernels.rms_norm,
        add_rms_norm=kernels.add_rms_norm,
        layer_norm=kernels.layer_norm,
        activate=kernels.activate,
        gate=kernels.gate,
        store_kv=kernels.store_kv,
        attention=kernels.attention,
        best=kernels.best,
        rule_out=kernels.rule_out,
        walker=kernels.walker,
        penalise=penalise,
        draw=draw,
        score=score,
        recorded=kernels.recorded,
        finds_values_in_keys=False,  # they lie the other way round
        invariance=Invariance(),  # rows always do (decision 9)
    )


class PackedMatrix:
    """A weight [height, width] in the order in which it is read (source/linear.c)."""

    __slots__ = ("_data", "_struct", "address", "height", "width")

    def __init__(self, data: Tensor, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._data = data
        self._struct = MatrixStruct(data.data_ptr(), height, width)
        self.address = ctypes.addressof(self._struct)


class _Walker:
    """Other cores walk, while this one goes on. What they are told of lies where it always did."""

    def __init__(self, library: ctypes.CDLL, slots: int, words: int) -> None:
        self.masks, self.seconds = np.zeros((slots, words), np.int32), np.zeros(slots)
        self._library = library
        self._matchers: list[Any] = [None] * slots
        self._addresses, self._slots, self._tokens = np.zeros((3, slots), np.int64)
        self._grammars = GrammarsStruct()  # once there is one
        arrays = (self._addresses, self.masks, self.seconds, self._slots, self._tokens)
        self._job = WalkStruct(ctypes.addressof(self._grammars), *(each.ctypes.data for each in arrays), words)
        self._at = ctypes.addressof(self._job)
        weakref.finalize(self, _end, library, self._job, (*arrays, self._grammars), self._matchers)

    def put(self, slot: int, matcher: Any) -> None:
        self.end()
        if matcher is not None and not self._grammars.call:
            for name, value in entrance().items():
                setattr(self._grammars, name, value)
        self._matchers[slot], self._addresses[slot] = matcher, 0 if matcher is None else address_of(matcher)

    def begin(self, slots: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self.end()
        count = len(slots)
        self._slots[:count], self._tokens[:count] = slots, tokens
        self._job.count = count
        self._library.begin_walk(self._at)

    def end(self) -> bool:
        return bool(self._library.end_walk(self._at))


def _end(library: ctypes.CDLL, job: WalkStruct, *kept: Any) -> None:
    """What is under way needs all of this, though nobody needs it."""
    library.end_walk(ctypes.addressof(job))


class _Kernels:
    def __init__(self, dtype: torch.dtype, processes: int) -> None:
        self._dtype = dtype
        self._library = open_library(str(dtype).removeprefix("torch."), processes)
        self._to: Any = self._library  # what calls go to: it, or a recorder before it
        self._new: Callable[..., Tensor] = _new  # where results go
        self._forms: dict[AttentionForm, FormStruct] = {}
        self._batch: ForwardBatch | None = None  # the last one, which is that of the layer before
        self._batch_struct = BatchStruct()  # of it, always at the same address

    def pack(self, weight: Tensor) -> PackedMatrix:
        height, width = weight.shape
        weight = self._ours(weight)
        data = torch.empty(self._library.packed_size(height, width) // weight.itemsize, dtype=self._dtype)
        matrix = PackedMatrix(data, height, width)
        self._library.pack(matrix.address, weight.data_ptr())
        return matrix

    def linear(self, x: Tensor, weight: PackedMatrix, bias: Tensor | None = None, *, wide: bool = False) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        if width != weight.width:
            raise ValueError(f"x has {width} columns, the weight {weight.width}")
        y = self._new(rows, weight.height, dtype=torch.float32 if wide else self._dtype)
        bias_at = None if bias is None else bias.data_ptr()
        self._to.linear(weight.address, x.data_ptr(), bias_at, y.data_ptr(), rows, wide)
        return y

    def embed(self, ids: Tensor, table: PackedMatrix) -> Tensor:
        rows = ids.numel()
        y = self._new(rows, table.width, dtype=self._dtype)
        ids = ids.contiguous()
        if (done := self._to.embed(table.address, ids.data_ptr(), y.data_ptr(), rows)) < rows:
            raise IndexError(f"id {ids[done]} of a table with {table.height} rows")
        return y

    def pack_experts(self, weights: Iterator[Tensor], count: int) -> list[PackedMatrix]:
        return [self.pack(weight) for weight in weights]

    def mix(
        self,
        x: Tensor,
        routed: tuple[Tensor, Tensor],
        gate_up: list[PackedMatrix],
        down: list[PackedMatrix],
        activation: Activation,
        biases: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        def expert(rows: Tensor, number: int) -> Tensor:
            first, second = (None, None) if biases is None else (each[number] for each in biases)
            return self.linear(self.gate(self.linear(rows, gate_up[number], first), activation), down[number], second)

        return expert_by_expert(expert, x, routed, len(gate_up))

    def per_head(self, x: Tensor, weights: list[PackedMatrix]) -> Tensor:
        return torch.stack([self.linear(x[:, head], weight) for head, weight in enumerate(weights)], dim=1)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = self._new(rows, width, dtype=self._dtype)
        self._to.rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        x, residual = self._ours(x), self._ours(residual)
        rows, width = x.shape
        self._to.add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), rows, width, epsilon)
        return x, residual

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = self._new(rows, width, dtype=self._dtype)
        self._to.layer_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = self._new(rows, width, dtype=self._dtype)
        self._to.activate(x.data_ptr(), y.data_ptr(), rows, width, _ACTIVATIONS[activation])
        return y

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate_up = self._ours(gate_up)
        rows, width = gate_up.shape
        y = self._new(rows, width // 2, dtype=self._dtype)
        self._to.gate(gate_up.data_ptr(), y.data_ptr(), rows, width // 2, _ACTIVATIONS[activation])
        return y

    def store_kv(self, qkv: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
        qkv = self._ours(qkv)
        keys, values = cache
        q = self._new(qkv.shape[0], form.heads, form.head_dim, dtype=self._dtype)
        self._to.store_kv(
            self._form_at(form), self._batch_at(batch), qkv.data_ptr(), keys.data_ptr(), values.data_ptr(),
            keys.shape[2], q.data_ptr(),
        )  # fmt: skip
        return q

    def attention(self, query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
        query = self._ours(query)
        keys, values = cache
        out = self._new(len(query), form.heads, form.value_dim, dtype=self._dtype)
        self._to.attention(
            self._form_at(form), self._batch_at(batch), query.data_ptr(), keys.data_ptr(), values.data_ptr(),
            keys.shape[2], out.data_ptr(),
        )  # fmt: skip
        return out

    def best(self, logits: Tensor) -> Tensor:
        if logits.dtype is not torch.float32:
            raise TypeError(f"expected {torch.float32}, not {logits.dtype}")
        logits = logits.contiguous()
        rows, width = logits.shape
        y = torch.empty(rows, dtype=torch.int64)
        self._library.best(logits.data_ptr(), y.data_ptr(), rows, width)
        return y

    def rule_out(self, logits: Tensor, rows: Tensor, allowed: Tensor) -> None:
        if logits.dtype is not torch.float32 or not logits.is_contiguous():
            raise TypeError(f"expected contiguous {torch.float32}, not {logits.dtype}")
        width, words = logits.shape[1], allowed.shape[1]
        if 32 * words < width:
            raise ValueError(f"{words} words of bits for {width} tokens")
        self._library.rule_out(logits.data_ptr(), rows.data_ptr(), allowed.data_ptr(), len(rows), width, words)

    def walker(self, slots: int, words: int) -> Walker:
        return _Walker(self._library, slots, words)

    def recorded(self, forward: Forward, max_rows: int) -> Forward:
        return Tape(forward, max_rows, self._library, self._recording, self._describe)

    @contextmanager
    def _recording(self, recorder: Recorder, memory: Memory) -> Iterator[None]:
        self._to, self._new = recorder, memory.take
        try:
            yield
        finally:
            self._to, self._new = self._library, _new

    def _ours(self, x: Tensor) -> Tensor:
        """As C reads it."""
        if x.dtype is not self._dtype:
            raise TypeError(f"expected {self._dtype}, not {x.dtype}")
        return x.contiguous()

    def _form_at(self, form: AttentionForm) -> int:
        struct = self._forms.get(form)
        if struct is None:
            struct = self._forms[form] = FormStruct(
                heads=form.heads,
                kv_heads=form.kv_heads,
                dim=form.head_dim,
                causal=form.causal,
                window=form.window or 0,
                rotary_dim=0 if form.rotary is None else form.rotary.shape[1],
                latent=form.latent or 0,
                scale=form.scale,
                softcap=form.softcap or 0.0,
                epsilon=form.epsilon,
                rotary=_address(form.rotary),
                q_norm=_address(form.q_norm),
                k_norm=_address(form.k_norm),
                slopes=_address(form.slopes),
                sinks=_address(form.sinks),
            )
        return ctypes.addressof(struct)

    def _batch_at(self, batch: ForwardBatch) -> int:
        if batch is not self._batch:
            self._describe(batch)
        return ctypes.addressof(self._batch_struct)

    def _describe(self, batch: ForwardBatch) -> None:
        self._batch, struct = batch, self._batch_struct
        struct.positions, struct.places = batch.positions.data_ptr(), batch.places.data_ptr()
        struct.query_start, struct.context_len = batch.query_start.data_ptr(), batch.context_len.data_ptr()
        struct.block_table, struct.table_width = batch.block_tables.data_ptr(), batch.block_tables.stride(0)
        struct.tokens, struct.chunks = batch.positions.numel(), batch.context_len.numel()


def _new(*sizes: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(sizes, dtype=dtype)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
