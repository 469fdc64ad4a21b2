"""Compiles each kernel that a step launches, for GPUs that are not there: `python -m fakes.compiling SM DTYPE`.

The kernels are called with tensors on the CPU, and their launch is caught: what would have run is compiled instead. One
line of JSON for each: its name, the shared memory it takes, and how much it spills.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from fakes.attending import ATTENTION_FORMS, batch_of, empty_cache
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from quire_engine.ops import Activation
from quire_engine.ops.triton import triton_ops

TYPES = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages")


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Compiler:
    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.capability = capability
        self.seen: set[str] = set()

    def compile(self, kernel: JITFunction[Any], *arguments: Any, **named: Any) -> None:
        named = {name: value for name, value in named.items() if name not in ("grid", "warmup")}
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | named
        constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr}
        signature = {p.name: "constexpr" if p.is_constexpr else type_of(given[p.name]) for p in kernel.params}
        attributes = {}
        for index, parameter in enumerate(kernel.params):  # as a launch does: what is 1, or a multiple of 16, is known
            name, value = parameter.name, given[parameter.name]
            if signature[name] == "i32" and parameter.do_not_specialize:
                continue
            if signature[name] == "i32" and value == 1:
                signature[name], constants[name] = "constexpr", 1
            elif signature[name].startswith("*") or (signature[name] == "i32" and value % 16 == 0):
                attributes[(index,)] = [["tt.divisibility", 16]]
        key = f"{kernel.__name__} {signature} {constants} {attributes}"
        if key in self.seen:
            return
        self.seen.add(key)
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, attributes), target=self.target, options=options
        )
        spilled = self.spilled(compiled.asm["ptx"])
        print(
            json.dumps({"kernel": kernel.__name__, "shared": compiled.metadata.shared, "spilled": spilled}), flush=True
        )

    def spilled(self, ptx: str) -> int:
        """Bytes, by the assembler's own word."""
        suffix = "a" if self.capability >= 90 else ""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.ptx"
            source.write_text(ptx)
            done = subprocess.run(
                [get_ptxas(self.capability).path, "-v", f"--gpu-name=sm_{self.capability}{suffix}", str(source), "-o", f"{folder}/out"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        return sum(int(count) for count in re.findall(r"(\d+) bytes spill stores", done.stderr))


def main() -> None:
    compiler, dtype = Compiler(int(sys.argv[1])), getattr(torch, sys.argv[2])
    JITFunction.run = lambda kernel, *arguments, **named: compiler.compile(kernel, *arguments, **named)
    ops = triton_ops()
    for width in (256, 8192):
        x, weight = torch.zeros(4, width, dtype=dtype), torch.ones(width)
        ops.rms_norm(x, weight, 1e-5)
        ops.add_rms_norm(x, x, weight, 1e-5)
        ops.layer_norm(x, weight, weight, 1e-5)
    for activation in Activation:
        ops.activate(x, activation)
        ops.gate(x, activation)
    ops.best(torch.zeros(3, 5000))
    for name in ("wide group", "odd", "128", "256", "window", "soft cap"):
        form = ATTENTION_FORMS[name]
        heads = form.heads + 2 * form.kv_heads
        cache, batch = empty_cache(80, 16, form, dtype), batch_of(16, ([*range(70)], 900, 1), ([70, 71], 0, 20))
        alone = batch_of(16, ([*range(70)], 900, 1))
        query = ops.store_kv(torch.zeros(1, heads * form.head_dim, dtype=dtype), form, cache, alone)
        ops.attention(query, form, cache, alone)
        query = ops.store_kv(torch.zeros(21, heads * form.head_dim, dtype=dtype), form, cache, batch)
        ops.attention(query, form, cache, batch)


if __name__ == "__main__":
    main()
