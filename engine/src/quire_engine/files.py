"""The files of a checkpoint in safetensors, and what can be known of them without reading a tensor."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quire_engine.errors import WeightsFailure

__all__ = ["FLOATS", "files_of", "slices_of", "stored_dtype"]

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors calls them, and torch


def files_of(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise WeightsFailure(f"{index} cannot be read: {error}") from None
    else:
        names = ["model.safetensors"]
    files = [folder / name for name in names]
    for file in files:
        if not file.exists():
            raise WeightsFailure(f"no weights in {folder}: {file.name} is missing")
    return files


def slices_of(path: Path, framework: str = "pt") -> dict[str, Any]:
    """The tensors of a file by name, none of them read: safetensors' own slices. Only `pt` needs torch."""
    try:
        opened: Any = safe_open(path, framework=framework)
        names: list[str] = opened.keys()
        return {name: opened.get_slice(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise WeightsFailure(f"{path} is damaged or cut short: {error}") from None


def stored_dtype(folder: Path) -> str | None:
    """The format of the first tensor that has a usual one; None where there is no such file yet."""
    with suppress(WeightsFailure):  # whoever reads them says what is wrong
        for path in files_of(folder):
            for tensor in slices_of(path, "np").values():
                if (dtype := FLOATS.get(tensor.get_dtype())) is not None:
                    return dtype
    return None
