"""Every kernel of the table is either Triton's, and compared with the reference without a GPU, or torch's for a reason."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from quire_engine.ops import Ops
from quire_engine.ops.triton import triton_ops

TESTS = Path("tests/quire_engine/test_triton.py")

# Who computes, and what is read and said: no kernels.
KERNELS = {field.name for field in fields(Ops)} - {"ranks", "keeps", "caches_fp8", "finds_values_in_keys", "invariance"}

# Field of `Ops` -> the test that compares its values in Triton's interpreter, and by what name it calls it.
PARITY = {
    "route": ("test_route", "route"),
    "mix": ("test_mix", "mix"),
    "rms_norm": ("test_norms", "rms_norm"),
    "add_rms_norm": ("test_norms", "add_rms_norm"),
    "layer_norm": ("test_norms", "layer_norm"),
    "activate": ("test_activations", "activate"),
    "gate": ("test_activations", "gate"),
    "store_kv": ("test_store_kv", "store_kv"),
    "attention": ("test_attention", "attend"),  # of a Scene
    "best": ("test_best", "best"),
    "rule_out": ("test_rule_out", "rule_out"),
    "pack": (
        "test_products_with_few_bits",
        "pack",
    ),  # plain matrices are torch's: its library is at the hardware's limit
    "linear": ("test_products_with_few_bits", "linear"),
    "per_head": ("test_products_per_head", "per_head"),
    "penalise": ("test_penalise", "penalise"),
    "draw": ("test_draw", "draw"),
    "score": ("test_score", "score"),
}

# Field -> why torch does it on a GPU.
BY_TORCH = {
    "pack_experts": "it lays matrices one after the other",
    "embed": "one gather, which torch does in one launch",
    "walker": "grammars are the host's, who walks them while the device computes",
}

# Field that is ours, and no kernel -> where it is tested.
NO_KERNEL = {"recorded": "tests/quire_engine/test_graphs.py"}


def test_every_kernel_is_in_one_of_the_tables() -> None:
    assert PARITY.keys() | BY_TORCH.keys() | NO_KERNEL.keys() == KERNELS
    assert PARITY.keys() & BY_TORCH.keys() == set()


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_the_tables_say_whose_a_kernel_is(name: str) -> None:
    whose = getattr(triton_ops(), name).__module__

    assert whose.startswith("quire_engine.ops.triton") == (name in PARITY or name in NO_KERNEL), f"{name} is of {whose}"


@pytest.mark.parametrize("name", PARITY)
def test_a_triton_kernel_is_compared_with_the_reference(name: str) -> None:
    test, called = PARITY[name]
    body = next(
        (n for n in ast.parse(TESTS.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == test), None
    )

    assert body is not None, f"{TESTS} has no {test}"
    used = {node.attr for node in ast.walk(body) if isinstance(node, ast.Attribute)}
    names = {node.id for node in ast.walk(body) if isinstance(node, ast.Name)}
    assert called in used
    assert {"OURS", "REFERENCE"} <= names
