"""From the C in source/ to a shared library, for one format of numbers and one instruction set.

Imports the standard library only: the build of a wheel (hatch_build.py) runs this before anything is installed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["AMX", "FORMATS", "CompileFailure", "Target", "compile_library", "library_name", "targets"]

FORMATS = ("float32", "bfloat16", "float16")
SOURCE = Path(__file__).parent / "source"
OPTIONS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")


class CompileFailure(Exception):
    """Why there is no library, in a line."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    needs: frozenset[str] = frozenset()  # flags of /proc/cpuinfo

    @property
    def options(self) -> tuple[str, ...]:
        """avx512_bf16 in cpuinfo is avx512bf16 to compilers, amx_bf16 is amx-bf16."""
        names = (flag.replace("amx_", "amx-").replace("_", "") for flag in self.needs)
        return tuple(sorted("-m" + name for name in names))


PLAIN = Target(f"{platform.machine()}-plain")
AVX2 = Target("x86_64-avx2", frozenset({"avx2", "fma", "f16c"}))
AVX512 = Target("x86_64-avx512", AVX2.needs | {"avx512f", "avx512bw", "avx512vl", "avx512dq"})
AVX512_BF16 = Target("x86_64-avx512bf16", AVX512.needs | {"avx512_bf16"})
AMX = Target("x86_64-amx", AVX512_BF16.needs | {"amx_tile", "amx_bf16"})


def targets(number_format: str) -> tuple[Target, ...]:
    """Of this kind of machine, best first. The last one runs on all of them."""
    if platform.machine() != "x86_64":
        return (PLAIN,)
    return (AMX, AVX512_BF16, AVX512, AVX2, PLAIN) if number_format == "bfloat16" else (AVX512, AVX2, PLAIN)


def library_name(number_format: str, target: Target) -> str:
    """With a hash of what goes into it: a library of other sources has another name."""
    digest = hashlib.sha256(" ".join(OPTIONS + target.options).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return f"{number_format}-{target.name}-{digest.hexdigest()[:16]}.so"


def compile_library(number_format: str, target: Target, path: Path) -> None:
    """Takes some two seconds. The file appears whole or not at all, whoever else is at it."""
    unfinished = path.with_suffix(f".{os.getpid()}")
    sources = [str(source) for source in sorted(SOURCE.glob("*.c"))]
    command = [*_compiler(), *OPTIONS, *target.options, f"-DELEMENT_{number_format}", "-o", str(unfinished), *sources]
    try:
        subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        unfinished.replace(path)
    except subprocess.CalledProcessError as error:
        message = next((line for line in error.stderr.splitlines() if "error" in line), "no message")
        raise CompileFailure(f"{command[0]} failed: {message}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileFailure(f"{command[0]} failed: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def _compiler() -> list[str]:
    for command in (shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]):
        if command and shutil.which(command[0]):
            return command
    raise CompileFailure("there is no C compiler: none in $CC, no cc, gcc or clang")
