"""What a client asks for, as the core sees it: token ids and how to choose the next one."""

from dataclasses import dataclass
from typing import NewType

__all__ = ["Request", "RequestId", "SamplingParams"]

RequestId = NewType("RequestId", int)  # given by the engine's caller, never used twice


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen, and when to stop. Validated at the border; the core trusts it."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 is all
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[bytes, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()  # with the model's own end tokens, unless ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    id: RequestId
    prompt: tuple[int, ...]
    params: SamplingParams
