"""Triton's interpreter, made to work with the numpy we have."""

from typing import Any

import numpy as np
import pytest
from triton.runtime import interpreter

__all__ = ["products_know_no_place", "scalars_are_numbers"]


def scalars_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes a loop's bounds of arrays with one number, which numpy 2.4 does not take for a number any more."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)


def products_know_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy's product of a row depends in its last bit on where in the matrix the row stands, which that of a tensor core does
    not. Here sums of a tile are made in float64, and rounded."""

    def patched(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        made = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64)).astype(d.data.dtype)
        return interpreter.TensorHandle(made + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", patched)
