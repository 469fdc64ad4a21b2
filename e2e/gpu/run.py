#!/usr/bin/env python3
"""`make gpu`: what this GPU can do, and whether the engine gives the CPU's tokens on it.

Needs torch, numpy, safetensors, tokenizers, pydantic and a CUDA device; neither a server nor a network. The
limits are measured on random data, for zeros flatter: kernels draw less power on them.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / name / "src") for name in ("api", "engine")]

import torch  # noqa: E402  # after the path above

from quire_api import EngineConfig  # noqa: E402
from quire_engine.build import build_engine  # noqa: E402
from quire_engine.core.request import Request, RequestId, TokenParams  # noqa: E402

PROMPTS = [tuple((11 * i + 3 * n) % 900 + 3 for i in range(2 + 9 * n)) for n in range(16)]
TOKENS = 48


def seconds(work: Callable[[], object], repeat: int = 20) -> float:
    """Of one call, the median, after a warm-up."""
    times = []
    for _ in range(repeat + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times[3:])[repeat // 2]


def limits() -> dict[str, float]:
    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)  # 1 GiB, far beyond any cache
    copy = torch.empty_like(source)
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return {
        "read_gb_per_s": source.numel() * 2 / seconds(lambda: source.sum()) / 1e9,
        "copy_gb_per_s": 2 * source.numel() * 2 / seconds(lambda: copy.copy_(source)) / 1e9,
        "bf16_matmul_tflop_per_s": 2 * size**3 / seconds(lambda: a @ b) / 1e12,
    }


def generate(device: str, dtype: str, depth: int | None) -> tuple[list[list[int]], float]:
    """Greedy tokens of all prompts in one batch; tokens a second."""
    config = EngineConfig(model="builtin://quire-tiny", device=device, dtype=dtype, kv_cache_gib=0.2)  # type: ignore[arg-type]
    built = build_engine(config, depth=depth)
    built.warm_up()
    tokens: list[list[int]] = [[] for _ in PROMPTS]
    for number, prompt in enumerate(PROMPTS):
        params = TokenParams(max_tokens=TOKENS, temperature=0.0)
        built.engine.add(Request(id=RequestId(number), prompt=prompt, params=params))
    started = time.perf_counter()
    while built.engine.has_work:
        events = built.engine.step()
        for request_id, token in zip(events.ids, events.tokens, strict=True):
            tokens[request_id].append(token)
    return tokens, sum(map(len, tokens)) / (time.perf_counter() - started)


def main() -> int:
    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU here; run it where one is", file=sys.stderr)
        return 1
    torch.backends.cuda.matmul.allow_tf32 = False
    expected, cpu_rate = generate("cpu", "float32", None)
    parity: dict[str, Any] = {}
    for depth in (1, 2):
        seen, rate = generate("cuda", "float32", depth)
        parity[f"float32, {depth} steps under way"] = {
            "equal_sequences": sum(s == e for s, e in zip(seen, expected, strict=True)),
            "of": len(expected),
            "tokens_per_s": rate,
        }
    result = {
        "what": "device limits; greedy tokens of quire-tiny on CPU and GPU",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
        "limits": limits(),
        "cpu_tokens_per_s": cpu_rate,
        "parity": parity,
    }
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    wrong = [name for name, p in parity.items() if p["equal_sequences"] != p["of"]]
    print(f"{path}: " + (f"tokens differ: {', '.join(wrong)}" if wrong else "the GPU gives the CPU's tokens"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
