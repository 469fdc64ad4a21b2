"""Weights by name, read one tensor at a time.

A model takes what it needs while it is built: the peak is the model and one tensor. A name that is missing, has
another shape, or is left over afterwards is an error, never a guess.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire_engine.errors import WeightsFailure

__all__ = ["Weights"]

DERIVED = (".rotary_emb.inv_freq",)  # older checkpoints keep what follows from config.json


class Weights:
    """The safetensors files of a folder; use as a context."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._files: dict[str, Any] = {}  # tensor name -> open file
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        for path in _files_of(self._folder):
            try:
                file: Any = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise WeightsFailure(f"{path} is damaged or cut short: {error}") from None
            self._files.update(dict.fromkeys(file.keys(), file))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = sorted(name for name in set(self._files) - self._taken if not name.endswith(DERIVED))
        self._files.clear()
        if kind is None and left:
            raise WeightsFailure(
                f"{self._folder} has {len(left)} tensors the model does not know, {left[0]} the first: wrong architecture?"
            )

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, on the device, in the wanted format."""
        if name not in self._files:
            raise WeightsFailure(f"{self._folder} has no tensor {name}")
        tensor: Tensor = self._files[name].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise WeightsFailure(
                f"{name} is {list(tensor.shape)} in {self._folder}, but config.json makes it {list(shape)}"
            )
        self._taken.add(name)
        return tensor.to(device=self._device, dtype=self._dtype)

    def stacked(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Tensor:
        """Several tensors as one, along the first dimension."""
        out = torch.empty((sum(shape[0] for shape in shapes), *shapes[0][1:]), dtype=self._dtype, device=self._device)
        start = 0
        for name, shape in zip(names, shapes, strict=True):
            out[start : start + shape[0]] = self.take(name, shape)
            start += shape[0]
        return out

    def ignore(self, name: str) -> None:
        """Accept a tensor that the model does not read, if it is there."""
        self._taken.add(name)


def _files_of(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise WeightsFailure(f"{index} cannot be read: {error}") from None
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    for file in files:
        if not file.exists():
            raise WeightsFailure(f"no weights in {folder}: {file.name} is missing")
    return files
