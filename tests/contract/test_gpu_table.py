"""README's table of GPUs is the newest result, or says that there is none; and a result can be drawn."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path("benchmarks") / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE, PLOT = script("gpu_table"), script("plot_gpu")


def result(**changed: Any) -> dict[str, Any]:
    return {
        "device": "NVIDIA H200", "smoke": False, "at": "2026-11-22T03:00:00+00:00",
        "versions": {"torch": "2.11.0", "triton": "3.6.0"},
        "parts": {
            "limits": {"result": {"read_bytes_per_s": 4.3e12}}, "8B transformers": {"error": "not installed"},
            "8B decode 32": {"result": {"tokens_per_s": 5702.4, "ratio": 0.8, "what": "decode"}},
        },
        **changed,
    }  # fmt: skip


def test_the_readmes_table_is_fresh() -> None:
    readme = Path("README.md").read_text()

    assert TABLE.fresh(readme, TABLE.block(TABLE.newest(TABLE.RESULTS))) == readme, "run `make generate`"


def test_the_newest_real_result_counts(tmp_path: Path) -> None:
    results = {
        "gpu-b.json": result(at="2026-11-22T03:00:00+00:00"), "gpu-a.json": result(at="2026-11-23T03:00:00+00:00"),
        "gpu-c.json": result(smoke=True, at="2026-12-01T00:00:00+00:00"), "gpu-d.json": result(device="cpu", at="2027-01-01"),
    }  # fmt: skip
    for name, found in results.items():
        (tmp_path / name).write_text(json.dumps(found))

    path, _ = TABLE.newest(tmp_path)

    assert path.name == "gpu-a.json"
    assert TABLE.newest(tmp_path / "nowhere") is None


def test_a_result_becomes_a_table_and_none_a_sentence() -> None:
    text = TABLE.block((Path("gpu-a.json"), result()))

    assert "| 8B | decode 32 | 5,702 | 80% |" in text
    assert "On one NVIDIA H200, torch 2.11.0" in text
    assert TABLE.block(None) == "On GPUs: not yet measured."


def test_a_readme_without_the_marks_is_named() -> None:
    with pytest.raises(SystemExit, match=r"README\.md: expected"):
        TABLE.fresh("nothing", "text")


def test_a_result_can_be_drawn() -> None:
    drawn = ElementTree.fromstring(PLOT.draw(result()))

    assert "80%, 5,702 tok/s" in [each.text for each in drawn.iter() if each.text]
    assert "matplotlib" not in sys.modules
