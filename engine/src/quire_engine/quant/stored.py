"""Tensors as a file has them, and tensors that are made of several of those when they are read.

What is here knows no method of quantization and no file format.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from quire_engine.errors import WeightsFailure
from quire_engine.ops.packed import Kind, Packed

__all__ = ["Coded", "Derived", "Parts", "Scheme", "Stored", "expect", "modules", "part"]


class Stored(Protocol):
    """A tensor that has not been read yet: safetensors' own slices, or a `Derived`."""

    def get_shape(self) -> list[int]: ...

    def get_dtype(self) -> str:
        """As safetensors calls it: F32, BF16, I8, F8_E4M3, ..."""
        ...

    def __getitem__(self, index: Any) -> Tensor:
        """`...`, a number, a slice, or several of them."""
        ...


Parts = Mapping[str, Stored]
Scheme = Callable[[Parts], dict[str, Stored]]  # all stored tensors by name -> the plain ones by name


class Derived:
    """A tensor that `make` computes. A part of it costs as much as all of it."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], Tensor]) -> None:
        self._shape = shape
        self._make = make

    def get_shape(self) -> list[int]:
        return list(self._shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        return self._make()[index]


class Coded:
    """A matrix in few bits, which `make` reads; to who asks for its numbers it is a plain one. `name` is for complaints."""

    def __init__(self, name: str, kind: Kind, shape: tuple[int, int], groups: int, make: Callable[[], Packed]) -> None:
        self.kind, self.shape, self.groups = kind, shape, groups
        self._name = name
        self._make = make

    def packed(self) -> Packed:
        packed = self._make()
        if not bool(packed.scales.isfinite().all()):
            raise WeightsFailure(f"{self._name} has a scale which is no finite number: its file is damaged")
        if packed.kind is Kind.FP8 and bool(((packed.codes & 127) == 127).any()):
            raise WeightsFailure(f"{self._name} has a number which is NaN: its file is damaged")
        return packed

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, index: Any) -> Tensor:
        return self.packed().dense(torch.float32)[index]


def modules(stored: Parts, suffix: str) -> Iterator[str]:
    """Of each tensor with such a name the rest of it: of model.layers.0.mlp.up_proj.qweight all up to the last dot."""
    return (name.removesuffix(suffix) for name in stored if name.endswith(suffix))


def part(plain: dict[str, Stored], name: str) -> Stored:
    """Taken out: what is left are plain tensors, or unknown ones."""
    try:
        return plain.pop(name)
    except KeyError:
        raise WeightsFailure(f"the quantized {name.rpartition('.')[0]} has no tensor {name}") from None


def expect(tensor: Stored, name: str, kinds: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
    """WeightsFailure unless it is of one of these kinds and shapes."""
    shape, kind = tuple(tensor.get_shape()), tensor.get_dtype()
    if kind not in kinds:
        raise WeightsFailure(f"{name} is {kind}, and should be {' or '.join(kinds)}")
    if shape not in shapes:
        raise WeightsFailure(f"{name} is {list(shape)}, and should be {' or '.join(str(list(s)) for s in shapes)}")
