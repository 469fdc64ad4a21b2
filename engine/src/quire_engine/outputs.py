"""What comes of a request to the library, by vLLM's names. No behaviour: llm.py writes them."""

from dataclasses import dataclass, field

__all__ = ["CompletionOutput", "Embedding", "EmbeddingRequestOutput", "Logprob", "RequestOutput"]


@dataclass(frozen=True, slots=True)
class Logprob:
    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None  # for each token: itself and the likeliest
    cumulative_logprob: float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the request's stop string or stop token that ended it; of an error, why


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None  # of the first token there is none
    outputs: list[CompletionOutput] = field(default_factory=list)
    finished: bool = False
    num_cached_tokens: int = 0


@dataclass(slots=True, kw_only=True)
class Embedding:
    embedding: list[float]


@dataclass(slots=True, kw_only=True)
class EmbeddingRequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: Embedding
