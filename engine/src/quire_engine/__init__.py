"""Quire's inference engine: `from quire_engine import LLM, SamplingParams`.

Nothing is imported until it is asked for: `quire_engine.core`, `quire_engine.cli` and the weights' fetcher must start
without torch (a contract test watches it).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire_engine.errors import EngineFailure, RequestRejected
    from quire_engine.grammars.asked import StructuredOutputs, StructuredOutputsParams
    from quire_engine.llm import LLM
    from quire_engine.outputs import CompletionOutput, EmbeddingRequestOutput, RequestOutput
    from quire_engine.params import SamplingParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "EngineFailure",
    "RequestOutput",
    "RequestRejected",
    "SamplingParams",
    "StructuredOutputs",
    "StructuredOutputsParams",
]

_HOME = {  # the others are in outputs.py
    "LLM": "llm",
    "SamplingParams": "params",
    "StructuredOutputs": "grammars.asked",
    "StructuredOutputsParams": "grammars.asked",
    "EngineFailure": "errors",
    "RequestRejected": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'outputs')}"), name)
