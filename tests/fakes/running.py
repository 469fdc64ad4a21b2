"""Drives an engine in this process, and collects what comes of each request."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from quire_engine.core.request import Request, RequestId, TokenParams
from quire_engine.core.step import FinishReason, TokenLogprob
from quire_engine.engine import Engine

__all__ = ["Outcome", "greedy", "run"]


@dataclass
class Outcome:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int | None = None
    finish: FinishReason | None = None


def run(engine: Engine, requests: Iterable[Request], *, together: bool = True) -> dict[int, Outcome]:
    """All at once, or one after the other."""
    outcomes: dict[int, Outcome] = {}
    requests = list(requests)
    for request in requests:
        engine.add(request)
        outcomes[request.id] = Outcome()
        while engine.has_work and (not together or request is requests[-1]):
            events = engine.step()
            for i, (request_id, token) in enumerate(zip(events.ids, events.tokens, strict=True)):
                outcome = outcomes.setdefault(request_id, Outcome())  # one that was there before runs on
                if token >= 0:
                    outcome.tokens.append(token)
                if i in events.logprobs:
                    outcome.logprobs.append(events.logprobs[i])
                if i in events.finished:
                    outcome.finish = events.finished[i].reason
            for request_id, scores in events.prompt_logprobs.items():
                outcomes[request_id].prompt_logprobs += scores
            for request_id, found in events.cached.items():
                outcomes[request_id].cached = found
    return outcomes


def greedy(number: int, prompt: Iterable[int], count: int, **params: object) -> Request:
    how = TokenParams(**{"max_tokens": count, "temperature": 0.0, **params})  # type: ignore[arg-type]
    return Request(id=RequestId(number), prompt=tuple(prompt), params=how)
