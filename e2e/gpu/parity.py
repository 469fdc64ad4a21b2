"""Does every kernel give the reference's numbers on this device? And does the engine give the reference's tokens?

A kernel is compared with the reference in float32, on the same rounded inputs. It may be wrong by twice what plain torch in
16 bits is, and by two roundings where that is nothing.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quire_engine.ops import Activation, AttentionForm, Ops
from quire_engine.ops.reference import reference_ops
from quire_engine.spec import Routing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from fakes.attending import ATTENTION_FORMS, Scene, batch_of, empty_cache, form_of  # after the path above

__all__ = ["kernels", "wrong"]

Case = Callable[[Ops, torch.dtype], list[Tensor]]
CHUNKS = {
    "a prompt beside tokens": [(0, 100, 150), (1, 0, 1), (2, 76, 77)],
    "tokens": [(0, 149, 150), (1, 0, 1), (2, 63, 64)],
}


def kernels(ours: Ops, dtype: torch.dtype, device: str) -> dict[str, dict[str, Any]]:
    """For each case, the largest error of ours and of plain torch, and whether ours will do; or why there is none."""
    with torch.device(device):
        return {name: _compare(case, ours, dtype) for name, case in _cases()}


def wrong(found: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name, each in found.items() if not each["ok"]]


def _compare(case: Case, ours: Ops, dtype: torch.dtype) -> dict[str, Any]:
    plain = reference_ops()
    try:
        exact, theirs, seen = case(plain, torch.float32), case(plain, dtype), case(ours, dtype)
    except Exception as error:  # one kernel that does not compile must not hide what the others do
        return {
            "ok": False,
            "error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300],
        }
    scale = max(float(each.float().abs().max()) for each in exact)
    own, torchs = (
        max(float((each.float() - right.float()).abs().max()) for each, right in zip(results, exact, strict=True))
        for results in (seen, theirs)
    )
    allowed = (
        2 * max(torchs, scale * torch.finfo(dtype).eps) if exact[0].is_floating_point() else 0.0
    )  # ids are right or wrong
    return {"error_of_ours": own, "error_of_torch": torchs, "allowed": allowed, "ok": own <= allowed}


def _cases() -> Iterator[tuple[str, Case]]:
    def random(dtype: torch.dtype, *size: int) -> Tensor:
        """The same numbers in each format: those of `dtype16` are exact in float32."""
        torch.manual_seed(0)
        return torch.randn(size).to(torch.bfloat16).to(dtype)

    for width in (64, 300, 1024, 4096):
        weight, bias = 1 + 0.1 * random(torch.float32, width), random(torch.float32, width)
        yield f"rms_norm {width}", lambda ops, dtype, w=weight: [ops.rms_norm(random(dtype, 5, len(w)), w, 1e-5)]
        yield (
            f"add_rms_norm {width}",
            lambda ops, dtype, w=weight: list(
                ops.add_rms_norm(random(dtype, 5, len(w)), 0.5 * random(dtype, 5, len(w)), w, 1e-5)
            ),
        )
        yield (
            f"layer_norm {width}",
            lambda ops, dtype, w=weight, b=bias: [ops.layer_norm(random(dtype, 5, len(w)), w, b, 1e-5)],
        )
    for activation in Activation:
        yield f"activate {activation}", lambda ops, dtype, a=activation: [ops.activate(random(dtype, 3, 2500), a)]
        yield f"gate {activation}", lambda ops, dtype, a=activation: [ops.gate(random(dtype, 3, 2500), a)]
    for width in (1, 5000, 151936):
        yield f"best {width}", lambda ops, dtype, n=width: [ops.best(random(torch.float32, 12, n))]
    yield "store_kv", _store
    for activation in (Activation.SILU, Activation.GPT_OSS):
        yield f"mix {activation}", lambda ops, dtype, a=activation: [_mix(ops, dtype, a)]
    for name, form in ATTENTION_FORMS.items():
        for what, chunks in CHUNKS.items():
            yield (
                f"attention, {name}, {what}",
                lambda ops, dtype, f=form, c=chunks: [_scene(f).attend(ops, dtype, *c)],
            )
    for what, chunks in CHUNKS.items():
        yield (
            f"attention, a cache of 8 bits, {what}",
            lambda ops, dtype, c=chunks: [_scene(form_of(4, 2, 128), torch.float8_e4m3fn).attend(ops, dtype, *c)],
        )


def _scene(form: AttentionForm, cached: torch.dtype | None = None) -> Scene:
    torch.manual_seed(0)
    device = torch.get_default_device()
    slopes, sinks = (None if each is None else each.to(device) for each in (form.slopes, form.sinks))
    with torch.device("cpu"):  # its blocks are shuffled by lists
        scene = Scene(replace(form, slopes=slopes, sinks=sinks), 16, cached)
    scene.qkv = [each.to(torch.bfloat16).float().to(device) for each in scene.qkv]
    return scene


def _mix(ops: Ops, dtype: torch.dtype, activation: Activation) -> Tensor:
    torch.manual_seed(0)
    gate_up, down, x = (torch.randn(size).to(torch.bfloat16) for size in ((4, 256, 128), (4, 128, 128), (70, 128)))
    packed = [ops.pack_experts(iter((each / 12).to(dtype)), 4) for each in (gate_up, down)]
    routed = reference_ops().route(torch.randn(70, 4), Routing(chosen=2, renormalised=True))
    biases = (torch.randn(4, 256), torch.randn(4, 128)) if activation is Activation.GPT_OSS else None
    return ops.mix(x.to(dtype), routed, packed[0], packed[1], activation, biases)


def _store(ops: Ops, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    form = form_of(4, 2, 64, rotary=torch.randn(60, 64), q_norm=1 + torch.rand(64), k_norm=1 + torch.rand(64))
    batch = batch_of(8, ([3, 1], 5, 7), ([2], 0, 1), ([4, 5, 6, 0, 9], 33, 6))
    cache = empty_cache(10, 8, form, dtype)
    qkv = torch.randn(14, 8 * 64).to(torch.bfloat16).to(dtype)
    query = ops.store_kv(qkv, form, cache, batch)
    return [query, *cache]
