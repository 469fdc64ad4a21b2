"""Compiles each kernel that a step launches, for GPUs that are not there: `make compile-kernels`.

The kernels are called with tensors on the CPU, and their launch is caught: what would have run is compiled instead, to
the very bytes that a GPU would be given. A table says what each takes; it ends with 1 if one takes what it must not.
`python -m fakes.compiling SM DTYPE` does one architecture and format, a line of JSON for each.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from fakes.attending import ATTENTION_FORMS, batch_of, empty_cache, form_of
from fakes.packing import packed_of
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from quire_engine.ops import Activation, Draws, Ops
from quire_engine.ops.packed import Kind
from quire_engine.ops.triton import triton_ops
from quire_engine.ops.triton.rounding import round_rows
from quire_engine.spec import Routing

TYPES = {
    torch.float64: "*fp64", torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16",
    torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8", torch.uint8: "*u8",
}  # fmt: skip
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
FORMATS = (torch.bfloat16, torch.float16, torch.float32)
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10}  # a program may have, by architecture
SPILLED_BYTES = 0  # by a hot variant: of 16 bits, and of the usual sizes of heads
SPILLED_SELDOM = 32  # by one of the other sizes; it is a handful of instructions among thousands
SPILLED_WIDE = 512  # by float32, which is for comparisons
SELDOM = re.compile(r"\bDIM=(10|256)\b")
DRAWS: dict[str, Any] = {
    "rows": np.int64, "temperature": np.float32, "log_min_p": np.float32, "top_k": np.int64, "top_p": np.float64,
    "words": np.int32,
}  # fmt: skip
COLUMNS = ("kernel", "shared", "registers", "stack", "spills", "warps", "variant")


def type_of(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


class Compiler:
    """What it has compiled is in `rows`."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.seen: set[str] = set()
        self.rows: list[dict[str, Any]] = []

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
        flags = " ".join(
            f"{name}={given[name]}" for name in kernel.arg_names if name in constants and given[name] is not False
        )
        self.rows.append({
            "kernel": kernel.__name__,
            "shared": compiled.metadata.shared,
            **usage_of(compiled.asm["cubin"]),
            "warps": compiled.metadata.num_warps,
            "variant": flags,
        })  # fmt: skip


def usage_of(cubin: bytes) -> dict[str, int]:
    """Registers of a thread; bytes of its stack, which is where registers are spilled to; instructions that go there."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = run_tool("cuobjdump", "--dump-resource-usage", file.name)
        listing = run_tool("nvdisasm", "-c", file.name)
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", told)}
    return {
        "registers": numbers["REG"],
        "stack": numbers["STACK"],
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", listing)),
    }


def run_tool(name: str, *arguments: str) -> str:
    """Of those that triton brings along."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def faults(row: dict[str, Any], capability: int, dtype: torch.dtype) -> list[str]:
    """Why a kernel must not be as it is."""
    most = SPILLED_SELDOM if SELDOM.search(row["variant"]) else SPILLED_BYTES
    if dtype is torch.float32:
        most = SPILLED_WIDE
    found = [
        ("shared", SHARED_BYTES[capability], "bytes of shared memory"),
        ("stack", most, "bytes of stack, to which registers are spilled"),
    ]
    return [f"{row[name]} {what}, at most {bound} are allowed" for name, bound, what in found if row[name] > bound]


def compile_all(capability: int, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Every kernel in every variant that models of this format launch."""
    compiler = Compiler(capability)
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
    ops.rule_out(torch.zeros(3, 5000), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 157, dtype=torch.int32))
    for experts, chosen, hidden, inner in ((8, 2, 4096, 14336), (128, 8, 2048, 768), (100, 3, 500, 100)):
        routed = ops.route(torch.zeros(5, experts), Routing(chosen=chosen, renormalised=True))
        matrices = (
            torch.zeros(1, dtype=dtype).expand(experts, *size) for size in ((2 * inner, hidden), (hidden, inner))
        )
        ops.mix(torch.zeros(5, hidden, dtype=dtype), routed, *matrices, Activation.SILU)
    by_groups = Routing(chosen=8, renormalised=True, sigmoid=True, groups=8, chosen_groups=4, judged_by=2, scale=2.5)
    ops.route(torch.zeros(5, 256), by_groups, torch.zeros(256))
    routed = ops.route(torch.zeros(5, 32), Routing(chosen=4, renormalised=True))
    matrices = [torch.zeros(1, dtype=dtype).expand(32, *size) for size in ((5760, 2880), (2880, 2880))]
    biases = (torch.zeros(32, 5760), torch.zeros(32, 2880))
    ops.mix(torch.zeros(5, 2880, dtype=dtype), routed, *matrices, Activation.GPT_OSS, biases)
    some = torch.zeros(2, dtype=torch.int64)
    ops.penalise(torch.zeros(3, 5000), some, torch.zeros(4, 5000, dtype=torch.int32), some, torch.zeros(2, 3))
    ops.score(torch.zeros(2, 5000), some, 5)
    host = {name: np.zeros(2, kind) for name, kind in DRAWS.items()}
    for width in (5000, 151936):
        ops.draw(torch.zeros(3, width), Draws(**host))
    turn, norm = torch.zeros(1024, 64), torch.ones(128)
    turned = [
        form_of(4, 2, 128, rotary=turn),
        form_of(4, 2, 128, rotary=turn, q_norm=norm, k_norm=norm),
        form_of(4, 2, 128, q_norm=norm),
        form_of(16, 1, 576, rotary=turn, latent=512),
        form_of(128, 1, 576, rotary=turn, latent=512),
    ]
    usual = [form for form in ATTENTION_FORMS.values() if not form.latent]  # small latents are for the interpreter
    for form in (*usual, *turned):
        heads = form.given_heads
        cache, batch = empty_cache(80, 16, form, dtype), batch_of(16, ([*range(70)], 900, 1), ([70, 71], 0, 20))
        alone = batch_of(16, ([*range(70)], 900, 1))
        query = ops.store_kv(torch.zeros(1, heads * form.head_dim, dtype=dtype), form, cache, alone)
        ops.attention(query, form, cache, alone)
        query = ops.store_kv(torch.zeros(21, heads * form.head_dim, dtype=dtype), form, cache, batch)
        ops.attention(query, form, cache, batch)
    assert ops.invariance is not None
    ops.invariance.asked = True
    form = ATTENTION_FORMS["128"]
    cache, alone = empty_cache(80, 16, form, dtype), batch_of(16, ([*range(70)], 900, 1))
    ops.attention(torch.zeros(1, form.heads, 128, dtype=dtype), form, cache, alone)
    ops.invariance.asked = False
    form, batch = ATTENTION_FORMS["128"], batch_of(16, ([*range(70)], 900, 1), ([70, 71], 0, 20))
    cache = empty_cache(80, 16, form, torch.float8_e4m3fn)
    heads = form.given_heads
    ops.attention(ops.store_kv(torch.zeros(21, heads * 128, dtype=dtype), form, cache, batch), form, cache, batch)
    compile_products(ops, dtype)
    return compiler.rows


def compile_products(ops: Ops, dtype: torch.dtype) -> None:
    """With weights in few bits: by groups of 128 and 32, and by rows; with splits and without."""
    bias = torch.zeros(256)
    kinds = [
        packed_of(Kind.INT4, 256, 1024, 128, zeros=True),
        packed_of(Kind.INT4, 256, 1024, 32),
        packed_of(Kind.INT8, 256, 1024, 1024),
        packed_of(Kind.INT8, 256, 1024, 32),
        packed_of(Kind.FP8, 256, 1024, 1024),
        packed_of(Kind.FP8, 256, 1024, 128),
    ]
    for weight in map(ops.pack, kinds):
        for rows in (1, 33, 300):
            ops.linear(torch.zeros(rows, 1024, dtype=dtype), weight, bias)
    assert ops.invariance is not None
    ops.invariance.asked = True
    for width in (1024, 1000):
        ops.linear(torch.zeros(3, width, dtype=dtype), torch.zeros(256, width, dtype=dtype), bias)
    ops.linear(torch.zeros(3, 1024, dtype=dtype), kinds[0], bias, wide=True)
    ops.invariance.asked = False
    ops.linear(torch.zeros(300, 64, dtype=dtype), ops.pack(packed_of(Kind.INT8, 48, 64, 64, rounds=True)), bias[:48])
    round_rows(torch.zeros(3, 1024, dtype=dtype), Kind.FP8)


def main() -> int:
    if len(sys.argv) == 3:
        for row in compile_all(int(sys.argv[1]), getattr(torch, sys.argv[2])):
            print(json.dumps(row))
        return 0
    wrong = 0
    for capability in SHARED_BYTES:
        for dtype in FORMATS:
            print(f"\nsm_{capability} {dtype}\n" + "{:10} {:>7} {:>9} {:>5} {:>6} {:>5} {}".format(*COLUMNS))
            for row in compile_all(capability, dtype):
                print("{:10} {:7} {:9} {:5} {:6} {:5} {}".format(*(row[name] for name in COLUMNS)), flush=True)
                for fault in faults(row, capability, dtype):
                    wrong += 1
                    print(f"    WRONG: {fault}")
    print(f"\n{wrong} of them take what they must not" if wrong else "\nall of them fit")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
