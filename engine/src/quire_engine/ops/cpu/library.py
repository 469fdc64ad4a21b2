"""Finds the library of kernels for this CPU and a format of numbers, or compiles it, and declares its functions.

A wheel brings one for every instruction set (hatch_build.py). From a source tree the library is compiled when it is
first needed, and kept in the user's cache; where nothing can be kept, in a temporary folder for as long as it takes to
load it. The functions themselves are in source/*.c.
"""

import ctypes
import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import c_float, c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch

from quire_engine.ops.cpu.compile import AMX, CompileFailure, Target, compile_library, library_name, targets

__all__ = [
    "PARAMETERS",
    "THREADS",
    "BatchStruct",
    "FormStruct",
    "GrammarsStruct",
    "MatrixStruct",
    "NoLibrary",
    "WalkStruct",
    "open_library",
    "usable_targets",
]

BROUGHT = Path(__file__).parent / "libraries"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quire"


def _threads() -> int:
    """As many as torch would take, and no more than the processors that the container may use."""
    wanted = torch.get_num_threads()
    with suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = map(int, Path("/sys/fs/cgroup/cpu.max").read_text().split())
        wanted = min(wanted, max(1, quota // period))
    return wanted


THREADS = _threads()  # when this is imported: the engine then leaves one to torch, whose own would spin beside ours


class NoLibrary(Exception):
    """Why the native kernels are not to be had, in a line."""


class FormStruct(ctypes.Structure):  # cache.h
    _fields_ = (
        *((name, c_long) for name in ("heads", "kv_heads", "dim", "causal", "window", "rotary_dim", "latent")),
        *((name, c_float) for name in ("scale", "softcap", "epsilon")),
        *((name, c_void_p) for name in ("rotary", "q_norm", "k_norm", "slopes", "sinks")),
    )


class BatchStruct(ctypes.Structure):  # cache.h
    _fields_ = (
        *((name, c_void_p) for name in ("positions", "places", "query_start", "context_len", "block_table")),
        *((name, c_long) for name in ("tokens", "chunks", "table_width")),
    )


class GrammarsStruct(ctypes.Structure):  # walk.c
    _fields_ = (*((name, c_void_p) for name in ("call", "accept", "has_ended", "fill")), ("kind", c_long))


class WalkStruct(ctypes.Structure):  # walk.c
    _fields_ = (
        *((name, c_void_p) for name in ("grammars", "matchers", "masks", "seconds", "slots", "tokens")),
        *((name, c_long) for name in ("words", "count", "left", "trouble")),
    )


class MatrixStruct(ctypes.Structure):  # matrix.h
    _fields_ = (("panels", c_void_p), ("out", c_long), ("in", c_long))


PARAMETERS: dict[str, list[Any]] = {
    "set_threads": [c_int],
    "packed_size": [c_long, c_long],
    "pack": [c_void_p, c_void_p],
    "linear": [c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_int],
    "embed": [c_void_p, c_void_p, c_void_p, c_long],
    "rms_norm": [c_void_p, c_void_p, c_void_p, c_long, c_long, c_float],
    "add_rms_norm": [c_void_p, c_void_p, c_void_p, c_long, c_long, c_float],
    "layer_norm": [c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_long, c_float],
    "activate": [c_void_p, c_void_p, c_long, c_long, c_int],
    "gate": [c_void_p, c_void_p, c_long, c_long, c_int],
    "store_kv": [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_void_p],
    "attention": [c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_long, c_void_p],
    "best": [c_void_p, c_void_p, c_long, c_long],
    "rule_out": [c_void_p, c_void_p, c_void_p, c_long, c_long, c_long],
    "begin_walk": [c_void_p],
    "end_walk": [c_void_p],
    "replay": [c_void_p, c_long, c_long],
}
RESULTS: dict[str, Any] = {"packed_size": c_long, "embed": c_long, "end_walk": c_long, "replay": c_long}


def usable_targets(number_format: str) -> list[Target]:
    """What this CPU can run, best first."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:  # not Linux: the plain instruction set is left
        flags = set()
    usable = [target for target in targets(number_format) if target.needs <= flags]
    return [target for target in usable if target != AMX or _may_use_amx()]


@functools.cache
def _may_use_amx() -> bool:
    """Linux has a process ask first (arch_prctl, ARCH_REQ_XCOMP_PERM of the tiles' data), because each thread's state
    grows by 8 KiB."""
    return bool(ctypes.CDLL(None).syscall(c_long(158), c_long(0x1023), c_long(18)) == 0)


def open_library(number_format: str, processes: int = 1) -> ctypes.CDLL:
    """The best that this CPU can run. So many processes share its cores."""
    try:
        library = _load(number_format)
    except (CompileFailure, OSError) as error:
        raise NoLibrary(str(error)) from error
    for name, parameters in PARAMETERS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = parameters, RESULTS.get(name)
    library.set_threads(max(1, THREADS // processes))
    return library


def _load(number_format: str) -> ctypes.CDLL:
    failures = []
    for target in usable_targets(number_format):
        name = library_name(number_format, target)
        for folder in (BROUGHT, CACHE.expanduser()):
            if (folder / name).exists():
                return ctypes.CDLL(str(folder / name))
        try:
            with _folder() as folder:
                compile_library(number_format, target, folder / name)
                return ctypes.CDLL(str(folder / name))  # stays loaded if the folder goes
        except CompileFailure as failure:  # an old compiler may not know the newest instructions
            failures.append(failure)
    raise failures[0]


@contextmanager
def _folder() -> Iterator[Path]:
    """The cache, or one that is ours alone, so that nobody else can put a library there."""
    cache = CACHE.expanduser()
    with suppress(OSError, RuntimeError):
        cache.mkdir(parents=True, exist_ok=True)
    if os.access(cache, os.W_OK):
        yield cache
        return
    with tempfile.TemporaryDirectory(prefix="quire-") as folder:
        yield Path(folder)
