"""The kernels for CPUs, in C: `native_ops`, of the same table as the reference.

A result never depends on the batch: each number is summed in one fixed order, whatever stands beside it, in however
many chunks its sequence came and on however many threads (source/tile.h, source/attention.c).

This file is the way from tensors to addresses. At a token a step it is called about ten times a layer, and the kernels
take no longer than the way to them: hence what is remembered here, and no view that can be avoided.
"""

import ctypes

import torch
from torch import Tensor

from quire_engine.ops import Activation, AttentionForm, LayerCache, Ops
from quire_engine.ops.cpu.library import BatchStruct, FormStruct, MatrixStruct, NoLibrary, open_library
from quire_engine.runtime.batch import ForwardBatch

__all__ = ["NoLibrary", "PackedMatrix", "native_ops"]

_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU: 1, Activation.GELU_TANH: 2}  # rows.c


def native_ops(dtype: torch.dtype) -> Ops:
    """For activations and weights of this format; NoLibrary says in a line why there are none."""
    kernels = _Kernels(dtype)
    return Ops(
        pack=kernels.pack,
        linear=kernels.linear,
        embed=kernels.embed,
        rms_norm=kernels.rms_norm,
        add_rms_norm=kernels.add_rms_norm,
        layer_norm=kernels.layer_norm,
        activate=kernels.activate,
        gate=kernels.gate,
        store_kv=kernels.store_kv,
        attention=kernels.attention,
    )


class PackedMatrix:
    """A weight [height, width] in the order in which it is read (source/linear.c)."""

    __slots__ = ("_data", "_struct", "address", "height", "width")

    def __init__(self, data: Tensor, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._data = data
        self._struct = MatrixStruct(data.data_ptr(), height, width)
        self.address = ctypes.addressof(self._struct)


class _Kernels:
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._library = library = open_library(str(dtype).removeprefix("torch."))
        self._linear, self._embed = library.linear, library.embed
        self._rms_norm, self._add_rms_norm = library.rms_norm, library.add_rms_norm
        self._layer_norm = library.layer_norm
        self._activate, self._gate = library.activate, library.gate
        self._store_kv, self._attention = library.store_kv, library.attention
        self._forms: dict[AttentionForm, FormStruct] = {}
        self._batch: ForwardBatch | None = None  # the last one, which is that of the layer before
        self._batch_struct = BatchStruct()

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
        y = torch.empty(rows, weight.height, dtype=torch.float32 if wide else self._dtype)
        bias_at = None if bias is None else bias.data_ptr()
        self._linear(weight.address, x.data_ptr(), bias_at, y.data_ptr(), rows, wide)
        return y

    def embed(self, ids: Tensor, table: PackedMatrix) -> Tensor:
        rows = ids.numel()
        y = torch.empty(rows, table.width, dtype=self._dtype)
        ids = ids.contiguous()
        if (done := self._embed(table.address, ids.data_ptr(), y.data_ptr(), rows)) < rows:
            raise IndexError(f"id {ids[done]} of a table with {table.height} rows")
        return y

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = torch.empty_like(x)
        self._rms_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        x, residual = self._ours(x), self._ours(residual)
        rows, width = x.shape
        self._add_rms_norm(x.data_ptr(), residual.data_ptr(), weight.data_ptr(), rows, width, epsilon)
        return x, residual

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = torch.empty_like(x)
        self._layer_norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), y.data_ptr(), rows, width, epsilon)
        return y

    def activate(self, x: Tensor, activation: Activation) -> Tensor:
        x = self._ours(x)
        rows, width = x.shape
        y = torch.empty_like(x)
        self._activate(x.data_ptr(), y.data_ptr(), rows, width, _ACTIVATIONS[activation])
        return y

    def gate(self, gate_up: Tensor, activation: Activation) -> Tensor:
        gate_up = self._ours(gate_up)
        rows, width = gate_up.shape
        y = torch.empty(rows, width // 2, dtype=self._dtype)
        self._gate(gate_up.data_ptr(), y.data_ptr(), rows, width // 2, _ACTIVATIONS[activation])
        return y

    def store_kv(self, qkv: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
        qkv = self._ours(qkv)
        keys, values = cache
        q = torch.empty(qkv.shape[0], form.heads, form.head_dim, dtype=self._dtype)
        self._store_kv(
            self._form_at(form), self._batch_at(batch), qkv.data_ptr(), keys.data_ptr(), values.data_ptr(),
            keys.shape[2], q.data_ptr(),
        )  # fmt: skip
        return q

    def attention(self, query: Tensor, form: AttentionForm, cache: LayerCache, batch: ForwardBatch) -> Tensor:
        query = self._ours(query)
        keys, values = cache
        out = torch.empty_like(query)
        self._attention(
            self._form_at(form), self._batch_at(batch), query.data_ptr(), keys.data_ptr(), values.data_ptr(),
            keys.shape[2], out.data_ptr(),
        )  # fmt: skip
        return out

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
                scale=form.scale,
                softcap=form.softcap or 0.0,
                epsilon=form.epsilon,
                rotary=_address(form.rotary),
                q_norm=_address(form.q_norm),
                k_norm=_address(form.k_norm),
            )
        return ctypes.addressof(struct)

    def _batch_at(self, batch: ForwardBatch) -> int:
        if batch is not self._batch:
            self._batch = batch
            self._batch_struct = BatchStruct(
                positions=_address(batch.positions),
                places=_address(batch.places),
                query_start=_address(batch.query_start),
                context_len=_address(batch.context_len),
                block_table=_address(batch.block_tables),
                tokens=batch.positions.numel(),
                chunks=batch.context_len.numel(),
                table_width=batch.block_tables.stride(0),
            )
        return ctypes.addressof(self._batch_struct)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
