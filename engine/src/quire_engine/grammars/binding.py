"""xgrammar's native layer: the one place that imports it.

Its Python package imports torch and transformers, which takes seconds and hundreds of megabytes, for conveniences that
we do not use. So its folder is made known as a package without running its __init__; what is loaded are the generated
classes around the native library. They are no public interface: the version is pinned, and tests go through all of it.
"""

import ctypes
import re
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from threading import Lock
from types import ModuleType
from typing import Any

from quire_engine.core.request import Grammar, GrammarKind
from quire_engine.errors import RequestRejected

__all__ = [
    "MOST_WHITESPACE", "TokenizerInfos", "address_of", "compiled", "compiler_of", "entrance", "load", "matcher_of",
]  # fmt: skip

MOST_WHITESPACE = 24  # characters between two parts of JSON: an indented line; a model at a loss would go on for ever
CONTROL = re.compile(rb"[\x00-\x09\x0b\x0c\x0e-\x1f]")  # all but line breaks
_loading = Lock()


def load() -> Any:
    """The native classes. Leaves `import xgrammar` to others as it was."""
    with _loading:
        if "xgrammar.base" in sys.modules:
            return sys.modules["xgrammar.base"]._core
        spec = find_spec("xgrammar")
        if spec is None or spec.submodule_search_locations is None:
            raise RequestRejected("structured outputs need the package xgrammar: install it", "structured_outputs")
        package = ModuleType("xgrammar")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["xgrammar"] = package
        try:
            import xgrammar.load_binding  # noqa: F401  # finds the library, by the package's path
            from xgrammar.base import _core
        finally:
            del sys.modules["xgrammar"]
        return _core


class TokenizerInfos:
    """What the tokens are to grammars: those of JSON must not use characters that stand in no JSON, but that the compiler
    lets into strings of a bounded length."""

    def __init__(self, native: Any, token_bytes: Sequence[bytes], end_tokens: Iterable[int]) -> None:
        self._native = native
        self._token_bytes = token_bytes
        self._end_tokens = sorted(end_tokens)
        self._made: dict[bool, Any] = {}

    def of(self, kind: GrammarKind) -> Any:
        """A token without a text is never chosen by a grammar, unless it is an end token."""
        is_json = kind in (GrammarKind.JSON, GrammarKind.STRUCTURAL_TAG)
        if is_json not in self._made:
            texts = [b"" if is_json and CONTROL.search(text) else text for text in self._token_bytes]
            raw, size, add_prefix_space = 0, len(texts), False
            self._made[is_json] = self._native.TokenizerInfo(texts, raw, size, self._end_tokens, add_prefix_space)
        return self._made[is_json]


def compiler_of(native: Any, info: Any) -> Any:
    threads, cached, cache_bytes = 1, False, -1
    return native.GrammarCompiler(info, threads, cached, cache_bytes)


def compiled(compiler: Any, grammar: Grammar) -> Any:
    """RuntimeError if it is no grammar."""
    if grammar.kind is GrammarKind.JSON:
        any_whitespace, indent, separators, strict, any_order = True, None, None, True, False
        return compiler.compile_json_schema(
            grammar.text, any_whitespace, indent, separators, strict, MOST_WHITESPACE, any_order
        )
    if grammar.kind is GrammarKind.REGEX:
        return compiler.compile_regex(grammar.text)
    if grammar.kind is GrammarKind.EBNF:
        return compiler.compile_grammar_from_strings(grammar.text, "root")
    return compiler.compile_structural_tag(grammar.text)


def matcher_of(native: Any, grammar: Any, end_tokens: Iterable[int]) -> Any:
    ends_by_token, unlimited_rollback, temperature = False, -1, None
    return native.GrammarMatcher(grammar, sorted(end_tokens), ends_by_token, unlimited_rollback, temperature)


def address_of(matcher: Any) -> int:
    address: int = matcher.__chandle__()
    return address


def entrance() -> dict[str, int]:
    """Addresses by which C calls matchers without Python: the function that calls functions, those of a matcher, and
    the number of its kind."""
    from tvm_ffi.libinfo import find_libtvm_ffi

    known = load().GrammarMatcher.__tvm_ffi_type_info__
    methods = {method.name: method.func.__chandle__() for method in known.methods}
    return {
        "call": ctypes.cast(ctypes.CDLL(find_libtvm_ffi()).TVMFFIFunctionCall, ctypes.c_void_p).value or 0,
        "accept": methods["accept_token"],
        "has_ended": methods["is_terminated"],
        "fill": methods["fill_next_token_bitmask"],
        "kind": known.type_index,
    }
