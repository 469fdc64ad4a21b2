"""The container: metadata, and where each tensor lies. Nothing here knows what a model is.

    "GGUF", version 2 or 3, number of tensors, number of metadata                      little-endian, u32 u64 u64
    metadata: name, type, value; tensors: name, sizes (the fastest first), type, offset from the first
    padding to a multiple of general.alignment (32), then the tensors

What the file says is believed only within the file: every length is checked before anything is read by it.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_engine.errors import ConfigFailure, WeightsFailure

__all__ = ["TYPES", "Container", "Tensor", "gguf_file", "open_container"]

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# Type of a tensor -> its name, numbers in a block, bytes of a block; of those that are not read only the name.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
}  # fmt: skip
NAMED = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    shape: tuple[int, ...]  # as torch has it: the fastest last
    type: str
    start: int  # in the file
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def gguf_file(place: Path) -> Path | None:
    """The GGUF file that a model is: one that was named, or the only one of a folder without safetensors."""
    if place.suffix == ".gguf" and place.is_file():
        return place
    if not place.is_dir() or any(place.glob("*.safetensors")) or (place / "model.safetensors.index.json").exists():
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:10])
        raise WeightsFailure(f"{place} holds {len(found)} GGUF files; give the path of one: {names}")
    return found[0] if found else None


def open_container(path: Path) -> Container:
    """WeightsFailure if it is damaged or cut short, ConfigFailure if it is of a kind that we do not read."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(path, data).read()
    except (OSError, ValueError, struct.error) as error:
        raise WeightsFailure(f"{path} is damaged or cut short: {error}") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0

    def read(self) -> Container:
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._scalar("I")
        if version not in (2, 3):
            kind = "big-endian GGUF" if version >> 16 else f"GGUF version {version}"
            raise ConfigFailure(f"{self._path}: {kind} is not supported, only versions 2 and 3, little-endian")
        num_tensors, num_metadata = self._scalar("Q"), self._scalar("Q")
        metadata = {}
        for _ in range(num_metadata):
            name = self._string()
            metadata[name] = self._value(self._scalar("I"))
        found = [(self._string(), *self._tensor()) for _ in range(num_tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        tensors = {name: self._placed(name, shape, kind, begin + start) for name, shape, kind, start in found}
        if len(tensors) < len(found):
            raise ValueError("a tensor is there twice")
        return Container(path=self._path, metadata=metadata, tensors=tensors)

    def _tensor(self) -> tuple[tuple[int, ...], int, int]:
        """Shape, type, start."""
        dimensions = self._scalar("I")
        if dimensions > 8:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(reversed([self._scalar("Q") for _ in range(dimensions)]))
        return shape, self._scalar("I"), self._scalar("Q")

    def _placed(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
        if kind not in TYPES:
            known = ", ".join(each for each, _, _ in TYPES.values())
            raise ConfigFailure(
                f"{self._path}: {name} is {NAMED.get(kind, f'of type {kind}')}, which is not supported yet, only {known}"
            )
        type_name, numbers, size = TYPES[kind]
        if not shape or shape[-1] % numbers:
            raise ValueError(f"{name} is {list(shape)}, and {type_name} has blocks of {numbers}")
        length = math.prod(shape) // numbers * size
        if start + length > len(self._data):
            raise ValueError(f"{name} ends at byte {start + length}, and the file has {len(self._data)}")
        return Tensor(shape=shape, type=type_name, start=start, bytes=length)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY:
            raise ValueError(f"metadata of type {kind}")
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner == STRING:
            return [self._string() for _ in range(count)]
        if inner not in SCALARS:
            raise ValueError(f"an array of type {inner}")
        form = SCALARS[inner]
        return list(struct.unpack(f"<{count}{form}", self._bytes(count * struct.calcsize(f"<{form}"))))

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8", "replace")

    def _scalar(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError(f"it ends at byte {len(self._data)}, in the middle of its header")
        self._at += count
        return self._data[self._at - count : self._at]
