#!/usr/bin/env python3
"""`make gpu`: what this GPU can do, whether the engine computes rightly on it, and how near to its limits.

Needs torch, triton, numpy, pydantic, safetensors, tokenizers, tqdm and a CUDA device; transformers for the peer; neither a server
nor a network. It ends within --budget seconds: what there is no time for is left out, and said to be. The file is
written after every part, so that whatever ends it leaves what was found. `--device cpu --smoke` tries all of it out on a
CPU with small sizes, and its numbers mean nothing.
"""

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), *(str(ROOT / name / "src") for name in ("api", "engine"))]

from report import Report, head, verdict  # noqa: E402  # after the path above

NEEDED = ("torch", "numpy", "pydantic", "safetensors", "tokenizers", "tqdm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--budget", type=float, default=520.0, metavar="SECONDS")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="parts whose names begin so")
    arguments = parser.parse_args()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(f"make gpu: pip install {' '.join(missing)} first, into {sys.executable}", file=sys.stderr)
        return 1
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print(
            "make gpu: torch sees no GPU here; run it where one is, or try it out with --device cpu --smoke",
            file=sys.stderr,
        )
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, path, Path(folder))
    return verdict(report, path)


def measure(arguments: argparse.Namespace, path: Path, folder: Path) -> Report:
    """Everything that needs torch is imported here, once it is known to be there."""
    import models
    import parity
    import shapes
    import tokens
    import torch
    from device import Device

    from quire_engine.ops.reference import reference_ops

    kind, smoke = arguments.device, arguments.smoke
    device = Device(kind, 512 if smoke else 8192)
    report = Report(path, head(device.name, smoke), arguments.budget)

    def part(name: str, takes_s: float, work: Callable[[], Any]) -> Any:
        if arguments.only and not name.startswith(tuple(arguments.only)):
            return None
        return report.part(name, takes_s, work)

    def kernels() -> dict[str, Any]:
        if kind == "cpu":  # Triton's would run in its interpreter, for minutes
            return parity.kernels(reference_ops(), torch.bfloat16, kind)
        from quire_engine.ops.triton import triton_ops

        return parity.kernels(triton_ops(), torch.bfloat16, kind)

    limits = part("limits", 10, device.limits) or device.limits()
    part("kernels", 60, kernels)
    part("tokens", 60, lambda: tokens.compare(kind, folder / "families"))
    for name, config in (shapes.SMOKE if smoke else shapes.SHAPES).items():
        model = shapes.write(folder / name, config)
        models.measure_model(part, name, model, kind, device.roof(limits), models.SMALL if smoke else models.FULL)
    return report


if __name__ == "__main__":
    sys.exit(main())
