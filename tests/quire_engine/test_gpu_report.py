"""`make gpu`, tried out on a CPU: every part runs, and what is wrong is found. Its first minute on a GPU is not for typing errors."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.kernels import KERNELS
from torch import Tensor

from quire_engine.ops.reference import reference_ops

GPU = Path("e2e/gpu").resolve()

# transformers asks it for the memory of a CPU, and takes it for full without.
PSUTIL = """
from types import SimpleNamespace
def virtual_memory(): return SimpleNamespace(total=1 << 32, available=1 << 32)
class Process:
    def memory_info(self): return SimpleNamespace(rss=1 << 20)
"""


@pytest.fixture
def gpu_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(GPU))
    yield
    for name in set(sys.modules) - before:
        if (GPU / f"{name}.py").exists():
            del sys.modules[name]


def run(folder: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    stubs = folder / "stubs"
    stubs.mkdir()
    (stubs / "psutil.py").write_text(PSUTIL)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join((str(stubs), os.environ.get("PYTHONPATH", ""))),
    }  # fmt: skip
    command = [sys.executable, str(GPU / "run.py"), "--device=cpu", "--smoke", f"--out={folder / 'results'}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    found = [json.loads(path.read_text()) for path in (folder / "results").glob("gpu-*.json")]
    return done, found[0] if found else {}


@pytest.mark.timeout(240)
def test_every_part_runs_and_finds_a_cpu_to_be_right(tmp_path: Path) -> None:
    done, found = run(tmp_path)

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    parts = found["parts"]
    assert all("result" in part for part in parts.values())
    assert {
        "limits",
        "kernels",
        "tokens",
        "8B start",
        "8B decode 3",
        "8B prefill 40",
        "0.6B mixed",
        "0.6B eager",
        "8B transformers",
    } <= set(parts)
    assert all(part["ok"] for part in parts["kernels"]["result"].values())
    assert all(part["equal"] == part["of"] == 16 for part in parts["tokens"]["result"].values())
    point = parts["8B decode 3"]["result"]
    assert point["ratio"] == pytest.approx(point["tokens_per_s"] / point["roofline_tokens_per_s"])
    shares = parts["8B where the time of 1 goes"]["result"]
    assert {"nothing runs", "between products"} <= set(shares)
    assert found["smoke"] is True
    assert torch.__version__.startswith(found["versions"]["torch"])


def test_what_there_is_no_time_for_is_said_to_be_left_out(tmp_path: Path) -> None:
    done, found = run(tmp_path, "--budget=1")

    assert done.returncode == 0, done.stderr[-2000:]
    assert "it may take 60 s" in found["parts"]["tokens"]["left_out"]
    assert "8B start" in found["parts"]


def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run([sys.executable, str(GPU / "run.py")], capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    assert "torch sees no GPU here" in done.stderr


@pytest.mark.usefixtures("gpu_modules")
def test_every_kernel_of_ours_has_its_kind() -> None:
    from loads import kind_of  # type: ignore[import-not-found]

    assert {kind: {name for name in names if kind_of(name) == kind} for kind, names in KERNELS.items()} == KERNELS
    assert kind_of("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at_sum>>") == "between products"
    assert kind_of("nvjet_tst_128x64_64x8") == "products"


@pytest.mark.usefixtures("gpu_modules")
def test_a_wrong_kernel_and_one_that_fails_are_found() -> None:
    import parity  # type: ignore[import-not-found]

    def second_best(logits: Tensor) -> Tensor:
        return logits.topk(2).indices[:, -1]

    def broken(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        raise RuntimeError("out of shared memory\nand more")

    ops = reference_ops()

    found = parity.kernels(replace(ops, best=second_best, rms_norm=broken), torch.bfloat16, "cpu")

    assert set(parity.wrong(found)) >= {"best 5000", "best 151936", "rms_norm 64", "rms_norm 4096"}
    assert found["rms_norm 300"]["error"] == "RuntimeError: out of shared memory"
    assert not any(name.startswith("attention") for name in parity.wrong(found))
