"""What `quire fetch resolve` says: the revision, its bytes, and the numbers of the footprint, in under 4 KB.

It becomes the termination message of a Job, from which the operator pins the revision and checks the fit.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from quire_api.footprint import DTYPE_BYTES, ModelShape, stated_dtype

__all__ = ["LARGEST", "footprint", "summary_line"]

LARGEST = 4000  # bytes; Kubernetes keeps 4,096


def footprint(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """From the text of config.json; why not, in a word or two, where its sizes are not to be had."""
    if config is None:
        return {"footprint": "no config.json"}
    architectures = config.get("architectures")
    named = str(architectures[0])[:100] if isinstance(architectures, list) and architectures else "not named"
    inner = config.get("text_config") if config.get("model_type") == "gemma3" else None
    sizes = inner if isinstance(inner, dict) else config
    dtype = stated_dtype(sizes) or "float32"
    longest = sizes.get("max_position_embeddings") or sizes.get("n_positions")
    try:
        shape = ModelShape.from_config(sizes)
        return {
            "architecture": named,
            "dtype": dtype,
            "quantization": _method(config),
            "weightBytes": shape.weight_bytes(dtype),
            "kvBytesPerToken": shape.kv_bytes_per_token(dtype),
            "parameters": shape.parameters,
            "layers": shape.layers,
            "maxModelLen": longest if isinstance(longest, int) else None,
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError):
        known = "architecture not known" if dtype in DTYPE_BYTES else f"dtype {dtype[:30]} not known"
        return {"architecture": named, "footprint": known}


def _method(config: Mapping[str, Any]) -> str:
    told = config.get("quantization_config") or config.get("compression_config")
    return str(told.get("quant_method") or "not named")[:32] if isinstance(told, Mapping) else ""


def summary_line(source: str, revision: str, files: Sequence[int], config: Mapping[str, Any] | None) -> str:
    """`files` are their sizes."""
    told = {"revision": revision, "bytes": sum(files), "files": len(files), **footprint(config)}
    room = LARGEST - len(json.dumps(told)) - len('{"source":"",')
    while len(json.dumps(source)) - 2 > room:  # a letter may take six bytes, or twelve
        source = source[: min(len(source) - 1, room)]
    return json.dumps({"source": source, **told}, separators=(",", ":"))
