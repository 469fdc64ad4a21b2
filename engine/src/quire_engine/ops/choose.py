"""Which table of kernels this machine gets."""

import logging
from dataclasses import replace

import torch

from quire_engine.ops import Ops
from quire_engine.ops.cpu import NoLibrary, native_ops
from quire_engine.ops.reference import reference_ops

__all__ = ["best_ops"]

log = logging.getLogger("quire.engine")


def best_ops(device: torch.device, dtype: torch.dtype, processes: int) -> Ops:
    """The native kernels where they are, and where this machine can build them; else plain torch, which is slow. So many
    processes share the cores."""
    if device.type == "cpu":
        try:
            ops = native_ops(dtype, processes)
            torch.set_num_threads(1)  # two pools of threads on the same cores would hold each other up
            return ops
        except NoLibrary as reason:
            log.warning("no native CPU kernels (%s): plain torch computes, several times slower", reason)
            torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    if device.type == "cuda":
        try:
            from quire_engine.ops.triton import triton_ops  # half a second that a CPU need not wait for

            ops = triton_ops()
            ops.best(torch.zeros(1, 1, device=device))  # it needs a C compiler, Python's headers, a folder to write to
            return ops
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            log.warning("no Triton (%s): plain torch computes, several times slower", why)
    # With weights in few bits it would dequantise for every product; a small cache is not what a slow engine lacks.
    return replace(reference_ops(), keeps=frozenset(), caches_fp8=False)
