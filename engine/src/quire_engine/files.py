"""The files of a checkpoint in safetensors, and what can be known of them without reading a tensor."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quire_engine.errors import WeightsFailure

__all__ = ["FLOATS", "files_of", "stored_dtype"]

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors calls them, and torch


def files_of(folder: Path) -> list[Path]:
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


def stored_dtype(folder: Path) -> str | None:
    """The format of the first tensor that has a usual one; None where there is no such file yet."""
    try:
        for path in files_of(folder):
            opened: Any = safe_open(path, framework="np")
            names: list[str] = opened.keys()
            for name in names:
                if (dtype := FLOATS.get(opened.get_slice(name).get_dtype())) is not None:
                    return dtype
    except (WeightsFailure, SafetensorError, OSError):
        pass  # whoever reads them says what is wrong
    return None
