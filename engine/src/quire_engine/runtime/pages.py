"""Memory of the host for the KV cache: zeros in large pages, which the system gives while the engine starts, and after.

A system gives a page when it is touched, and clears it first: seconds, for a large cache. Nobody has to wait for that. A
thread asks for the pages in the order in which blocks are taken, those of the first blocks of every layer first; who
touches a page before that has it at once. How much there is was planned: it will be there.
"""

import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["in_order", "zeros"]

LARGE = 1 << 21  # bytes of a large page
SMALL = 32 << 20  # bytes that are not worth a thread
POPULATE_WRITE = 23  # of madvise, Linux 5.14; `mmap` does not name it yet


def zeros(size: tuple[int, ...], dtype: torch.dtype, *, areas: int) -> Tensor:
    """`areas`, of equal size, are filled at the same time: the first dimensions of `size` count them."""
    count = torch.Size(size).numel() * dtype.itemsize
    if count < LARGE or sys.platform != "linux":
        return torch.zeros(size, dtype=dtype)
    memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Blocks lie anywhere, and small pages are walked to one by one: attention took up to twice as long. A system that has
    # no large pages, or does not give them, loses nothing.
    memory.madvise(mmap.MADV_HUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=dtype)
    if count >= SMALL:
        arguments = (weakref.ref(memory), tensor.data_ptr(), in_order(count, areas))
        threading.Thread(target=_ask, args=arguments, name="pages", daemon=True).start()
    return tensor.view(size)


def in_order(count: int, areas: int) -> Iterator[tuple[int, int]]:
    """Where to ask, and for how many bytes: a large page of every area, then the next one of each."""
    area = count // areas
    for at in range(0, area, LARGE):
        for first in range(0, count, area):
            start = (first + at) // mmap.PAGESIZE * mmap.PAGESIZE
            yield start, min(first + at + LARGE, first + area) - start


def _ask(memory: "weakref.ref[mmap.mmap]", start: int, stretches: Iterator[tuple[int, int]]) -> None:
    """Until all is there, or nobody wants it any more."""
    madvise = ctypes.CDLL(None).madvise  # mmap's own keeps the interpreter's lock
    for at, count in stretches:
        if (alive := memory()) is None or madvise(ctypes.c_void_p(start + at), ctypes.c_size_t(count), POPULATE_WRITE):
            return  # an older system: pages come when they are touched
        del alive
