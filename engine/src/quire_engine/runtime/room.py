"""Is there room for a model on this machine, divided as it is asked for? Before a weight is read."""

from dataclasses import replace
from math import gcd

import torch

from quire_api.footprint import ModelShape
from quire_engine.errors import MemoryFailure
from quire_engine.runtime.machine import free_bytes
from quire_engine.runtime.ranks import check_division
from quire_engine.runtime.sizing import share_of

__all__ = ["check_room", "free_for_each"]

DEQUANTISING = 8  # bytes for each number of a tensor, while it is read: a rank makes all of it, and keeps its part


def check_room(
    shape: ModelShape,
    dtype: str,
    device: torch.device,
    *,
    tensor: int,
    stages: int,
    here: int,
    dequantised: bool,
    saved: int = 0,
) -> None:
    """ConfigFailure if the model cannot be divided so, MemoryFailure if it is too large; `here` are the ranks
    of this machine. So many bytes of the plain model are `saved`, for what stays in few bits."""
    check_division(
        tensor=tensor,
        stages=stages,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        intermediate=gcd(*shape.widths),
        vocabulary=shape.vocabulary,
        layers=shape.layers,
    )
    share = replace(share_of(shape, tensor, stages), vocabulary=-(-shape.vocabulary // tensor))
    need, free = share.weight_bytes(dtype) - saved // (tensor * stages), free_for_each(device, here)
    if dequantised and device.type == "cpu":
        need += DEQUANTISING * shape.hidden * max(shape.vocabulary, *shape.widths)
    if need > free:
        plain = f" once they are dequantised to {dtype}" if dequantised and not saved else ""
        raise MemoryFailure(
            f"the weights need {need / 2**30:.1f} GiB{plain}, and {free / 2**30:.1f} GiB are free on {device}"
        )


def free_for_each(device: torch.device, ranks: int) -> int:
    """On a CPU all ranks have the same memory."""
    return free_bytes(device) // (ranks if device.type == "cpu" else 1)
