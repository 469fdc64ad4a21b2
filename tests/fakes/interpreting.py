"""Triton's interpreter, made to work with the numpy we have."""

from typing import Any

import pytest
from triton.runtime import interpreter

__all__ = ["scalars_are_numbers"]


def scalars_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton 3.6 makes a loop's bounds of arrays with one number, which numpy 2.4 does not take for a number any more."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    monkeypatch.setattr(interpreter, "_patch_lang_tensor", patched)
