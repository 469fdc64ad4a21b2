"""Fixtures that several folders share."""

import os
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the oracle loads from disk; no test asks a hub
os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton: kernels for GPUs run here, as Python
os.environ["QUIRE_STATE"] = tempfile.mkdtemp(prefix="quire-test-state-")  # never the user's own


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run two at a time on two cores; more threads than that only wait for each other."""
    if "torch" in __import__("sys").modules:
        import torch

        torch.set_num_threads(1)
