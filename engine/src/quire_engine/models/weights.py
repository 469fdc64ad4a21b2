"""Weights by name, read one tensor at a time.

A model takes what it needs while it is built: the peak is the model and one tensor. A name that is missing, has
another shape, or is left over afterwards is an error, never a guess. Of a tensor that ranks divide only the own part is read;
of a quantized checkpoint a scheme (quant/) makes plain tensors, which are dequantised as they are read, or, where the
kernels take them, matrices in few bits.
"""

import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from quire_engine.errors import WeightsFailure
from quire_engine.files import FLOATS, files_of, slices_of
from quire_engine.gguf.container import gguf_file
from quire_engine.ops.packed import Kind, Packed, packed_bytes, regular
from quire_engine.quant.gguf import stored_tensors
from quire_engine.quant.stored import Coded, Scheme, Stored
from quire_engine.runtime.ranks import Part

__all__ = ["DummyWeights", "Weights", "saved_bytes"]

DERIVED = (".rotary_emb.inv_freq", ".position_ids")  # older checkpoints keep what follows from config.json
SPREAD = {Kind.INT4: 3.0, Kind.INT8: 40.0, Kind.FP8: 64.0}  # deviation of made up numbers, which their scale makes 0.02
RANGE = {Kind.INT4: (-8, 7), Kind.INT8: (-128, 127)}
LAYER = re.compile(r"\blayers\.(\d+)\.")
PLAIN = (
    "embed_tokens.",
    "word_embeddings.",
    ".experts.",
    ".gate.",
    ".router.",
    ".kv_b_proj.",
)  # in names of matrices which no layer takes in few bits


class Weights:
    """The safetensors files of a folder, or a GGUF file; use as a context."""

    def __init__(
        self,
        folder: Path,
        dtype: torch.dtype,
        device: torch.device,
        scheme: Scheme | None = None,
        keeps: Collection[Kind] = (),
    ) -> None:
        """Matrices in few bits stay so if they are of a kind that is kept."""
        self.device = device
        self.given_bytes = 0  # of all that models were given
        self._keeps = keeps
        self._folder = folder
        self._dtype = dtype
        self._scheme = scheme
        self._tensors: dict[str, Stored] = {}
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        stored = _stored(self._folder)
        self._tensors = stored if self._scheme is None else self._scheme(stored)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = sorted(name for name in set(self._tensors) - self._taken if not name.endswith(DERIVED))
        self._tensors.clear()
        if kind is None and left:
            raise WeightsFailure(
                f"{self._folder} has {len(left)} tensors the model does not know, {left[0]} the first: wrong architecture?"
            )

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def either(self, *names: str) -> str:
        """The first of these that is there; if none is, the first, which `take` will then ask for."""
        return next((name for name in names if name in self), names[0])

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
        *,
        part: Part | None = None,
        dim: int = 0,
    ) -> Tensor:
        """The tensor, on the device, in the wanted format: the model's, if none is named. `shape` is that of the file; of
        dimension `dim` only this part is read. A matrix which is taken so is plain: PLAIN has to name it."""
        return next(self._read(name, shape, [()], dtype, part, dim))

    def parts(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
        *,
        part: Part | None = None,
        dim: int = 1,
    ) -> Iterator[Tensor]:
        """[n, ...] as n tensors, each read by itself."""
        return self._read(name, shape, [(index,) for index in range(shape[0])], dtype, part, dim)

    def stacked(
        self,
        names: Sequence[str],
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None = None,
        *,
        parts: Sequence[Part | None] | None = None,
        dim: int = 0,
    ) -> Tensor:
        """Several tensors as one, along the first dimension; of each a part."""
        parts = parts or [None] * len(names)
        if len(names) == 1:
            return self.take(names[0], shapes[0], dtype, part=parts[0], dim=dim)
        sizes = [shape[0] if part is None else part.size for shape, part in zip(shapes, parts, strict=True)]
        out = torch.empty((sum(sizes), *shapes[0][1:]), dtype=dtype or self._dtype, device=self.device)
        start = 0
        for name, shape, size, part in zip(names, shapes, sizes, parts, strict=True):
            out[start : start + size] = self.take(name, shape, dtype, part=part)
            start += size
        return out

    def matrix(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], parts: Sequence[Part | None], dim: int = 0
    ) -> Tensor | Packed:
        """`stacked`, in few bits if all of them are, and alike."""
        return self._packed(names, shapes, parts, dim) or self.stacked(names, shapes, parts=parts, dim=dim)

    def _packed(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], parts: Sequence[Part | None], dim: int
    ) -> Packed | None:
        own: list[Packed] = []
        for name, shape, part in zip(names, shapes, parts, strict=True):
            found = self._tensors.get(name)
            if not isinstance(found, Coded) or found.kind not in self._keeps or (part is not None and not part.size):
                return None
            self._found(name, shape)
            whole = found.packed()
            mine = whole if part is None else whole.part(part, dim)
            if mine is None:
                return None
            own.append(mine)
        packed = Packed.stacked(own)
        if packed is None or not regular(packed.width, packed.scales.shape[1]):
            return None
        self._taken |= set(names)
        self.given_bytes += packed.nbytes
        return packed.to(self.device)

    def ignore(self, name: str) -> None:
        """Accept a tensor that the model does not read, if it is there; all below a name that ends with a dot."""
        self._taken |= {n for n in self._tensors if n == name or (name.endswith(".") and n.startswith(name))}

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        indices: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None,
        part: Part | None,
        dim: int,
    ) -> Iterator[Tensor]:
        """What is at each of the indices, which are those of the first dimensions."""
        found = self._found(name, shape)
        if found.get_dtype() not in FLOATS:
            raise WeightsFailure(
                f"{name} is {found.get_dtype()} in {self._folder}, and only {', '.join(sorted(FLOATS))} can be read"
            )
        self._taken.add(name)
        if part is not None and not part.size:  # a stage without the vocabulary
            empty = torch.empty((*shape[:dim], 0, *shape[dim + 1 :]), dtype=dtype or self._dtype, device=self.device)
            yield from (empty[index] for index in indices)
            return
        for index in indices:
            pieces = [found[(*index, *piece)] for piece in _cut(part, dim - len(index))]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim - len(index))
            own = tensor.to(device=self.device, dtype=dtype or self._dtype)
            self.given_bytes += own.nbytes
            yield own.clone() if own.untyped_storage().nbytes() > own.nbytes else own  # nothing but the part stays

    def _found(self, name: str, shape: tuple[int, ...]) -> Stored:
        if name not in self._tensors:
            raise WeightsFailure(f"{self._folder} has no tensor {name}{self._beside(name)}")
        found = self._tensors[name]
        if tuple(found.get_shape()) != shape:
            raise WeightsFailure(
                f"{name} is {found.get_shape()} in {self._folder}, but config.json makes it {list(shape)}"
            )
        return found

    def _beside(self, name: str) -> str:
        """What there is of the same module: of a quantized checkpoint that does not say so."""
        module = f"{name.rpartition('.')[0]}."
        there = sorted(n for n in self._tensors if n.startswith(module))[:4]
        return f", but {', '.join(there)}: is config.json without its quantization_config?" if there else ""


class DummyWeights(Weights):
    """The same for measurements without a checkpoint: no file is read, every name is there, its numbers random.

    Matrices and biases are normal with a deviation of 0.02, the weights of norms 1; equal from one start to the next.
    Matrices of layers are of a kind, and in groups of so many, if that is given and kept.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        device: torch.device,
        form: tuple[Kind, int] | None = None,
        keeps: Collection[Kind] = (),
    ) -> None:
        super().__init__(Path("/nowhere"), dtype, device, keeps=keeps)
        self._random = torch.Generator(device).manual_seed(0)
        self._form = form

    def __enter__(self) -> Self:
        return self

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        indices: Sequence[tuple[int, ...]],
        dtype: torch.dtype | None,
        part: Part | None,
        dim: int,
    ) -> Iterator[Tensor]:
        own = shape if part is None else (*shape[:dim], part.size, *shape[dim + 1 :])
        for index in indices:
            size = own[len(index) :]
            tensor = torch.empty(size, dtype=dtype or self._dtype, device=self.device)
            is_norm = len(shape) == 1 and not name.endswith("bias")
            self.given_bytes += tensor.nbytes
            yield tensor.fill_(1.0) if is_norm else tensor.normal_(0.0, 0.02, generator=self._random)

    def _packed(
        self, names: Sequence[str], shapes: Sequence[tuple[int, int]], parts: Sequence[Part | None], dim: int
    ) -> Packed | None:
        if self._form is None or self._form[0] not in self._keeps or names[0].startswith("lm_head."):
            return None
        kind, group = self._form
        sizes = [
            list(shape) if part is None else [part.size if d == dim else shape[d] for d in (0, 1)]
            for shape, part in zip(shapes, parts, strict=True)
        ]
        height, width = sum(size[0] for size in sizes), sizes[0][1]
        groups = 1 if group == -1 or width % group else width // group
        if not regular(width, groups):
            return None
        numbers = torch.empty(height, width, device=self.device).normal_(0.0, SPREAD[kind], generator=self._random)
        codes = (
            numbers.to(torch.float8_e4m3fn) if kind is Kind.FP8 else numbers.round().clamp(*RANGE[kind]).to(torch.int8)
        )
        scales = torch.full((height, groups), 0.02 / SPREAD[kind], dtype=torch.float16, device=self.device)
        zeros = (
            None if kind is Kind.FP8 else torch.zeros_like(scales, dtype=torch.int8)
        )  # all methods of integers have some
        packed = Packed.of(kind, codes, scales, zeros, rounds=kind is Kind.FP8)
        self.given_bytes += packed.nbytes
        return packed


def saved_bytes(folder: Path, dtype: torch.dtype, scheme: Scheme, keeps: Collection[Kind], layers: int) -> int:
    """How much less than plain a model of so many layers takes, for what stays in few bits. Nothing is read but names and
    shapes."""
    coded = [
        (tensor, packed_bytes(tensor.kind, tensor.shape, tensor.groups))
        for name, tensor in scheme(_stored(folder)).items()
        if isinstance(tensor, Coded) and tensor.kind in keeps and not any(part in name for part in PLAIN)
        if (layer := LAYER.search(name)) is None or int(layer[1]) < layers  # one beyond stays in the file
    ]
    return sum(
        math.prod(tensor.shape) * dtype.itemsize - size
        for tensor, size in coded
        if regular(tensor.shape[1], tensor.groups)
    )


def _cut(part: Part | None, dim: int) -> list[tuple[Any, ...]]:
    """How to index a tensor for each range of a part of dimension `dim`."""
    if part is None or part.is_whole:
        return [(...,)]
    return [(*[slice(None)] * dim, slice(start, stop)) for start, stop in part.ranges]


def _stored(folder: Path) -> dict[str, Stored]:
    """By the names in the files."""
    file = gguf_file(folder)
    if file is not None:
        return stored_tensors(file)
    stored: dict[str, Stored] = {}
    for path in files_of(folder):
        stored.update(slices_of(path))
    return stored
