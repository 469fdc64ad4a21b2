"""Who may come in: the key, the model, and how much both may have. Decides; sends nothing.

    no valid key 401     not its model 403     no such model 404     more output than the key may have 400
    over the key's limits, or over the model's bound of requests     429, with Retry-After

A key with an output cap must say `max_tokens` in its requests, for engines know nothing of keys, and a request that does
not say may be answered until the context is full. To add the field would change what the client signed for; to cut the
answer off would give it no finish reason. So the request is refused, with the number to write.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from quire_router.keys import Key, Keys
from quire_router.limits import Allowance, Limits
from quire_router.peek import Ask
from quire_router.registry import Model, Registry
from quire_router.replies import Refusal

__all__ = ["Door", "Visit"]

WITHOUT_OUTPUT = ("/embeddings", "/tokenize", "/detokenize")  # how paths end whose answers are not to be capped
CAPPED_BY = (  # how others end, and the fields that an engine reads there
    ("/chat/completions", ("max_tokens", "max_completion_tokens")),
    ("/responses", ("max_output_tokens",)),
    ("", ("max_tokens",)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A request that was let in."""

    ask: Ask
    model: Model
    key: Key


class Door:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.keys = Keys()
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}  # by the name of a key

    def admit(
        self, path: str, key: Key, ask: Ask | None, registry: Registry, inside: Callable[[str], int]
    ) -> Visit | Refusal:
        """`inside`: requests in flight and held of a model."""
        seen = [model.name for model in registry.models if key.may_use(model)]
        served = ", ".join(seen) or "nothing yet"
        if ask is None:
            return Refusal(
                status=400, message=f"model: send a JSON object that names one; served here: {served}", param="model"
            )
        model = registry.find(ask.model)
        if model is None:
            message = f"the model {ask.model[:200]!r} does not exist; served here: {served}"
            return Refusal(status=404, message=message, param="model")
        if not key.may_use(model):
            who = f"the key {key.name}" if key.name else "this router has no keys, and whoever comes without"
            return Refusal(
                status=403, message=f"{who} may not use {ask.model}; what may be used: {served}", param="model"
            )
        refusal = self._over_cap(path, key, ask) or self._over_bound(model, inside) or self._over_limits(key, ask)
        return refusal or Visit(ask=ask, model=model, key=key)

    def settle(self, visit: Visit, tokens: int) -> None:
        """The request has ended, and used so many tokens."""
        if visit.key.name in self._allowances:
            self._allowances[visit.key.name].settle(tokens - visit.ask.prompt_tokens, self._clock())

    def _over_cap(self, path: str, key: Key, ask: Ask) -> Refusal | None:
        cap = key.limits.max_output_tokens
        if cap is None or path.endswith(WITHOUT_OUTPUT):
            return None
        fields = next(fields for end, fields in CAPPED_BY if path.endswith(end))
        most = None if ask.says.isdisjoint(fields) else ask.max_tokens
        if most is not None and most <= cap:
            return None
        seen = (
            "the request does not say how many it may make"
            if most is None
            else f"it asks for {most}, all answers together"
        )
        message = f"{fields[0]}: the key {key.name} may have {cap} output tokens a request, and {seen}; send {fields[0]} of {cap} or less"
        return Refusal(status=400, message=message, param=fields[0])

    def _over_bound(self, model: Model, inside: Callable[[str], int]) -> Refusal | None:
        if inside(model.name) < model.max_inside:
            return None
        message = f"{model.name} has {model.max_inside} requests already, the most that are let in"
        return Refusal(status=429, message=message, retry_after_s=1)

    def _over_limits(self, key: Key, ask: Ask) -> Refusal | None:
        if key.limits == Limits():
            return None
        allowance = self._allowances.get(key.name)
        if (
            allowance is None or allowance.limits != key.limits
        ):  # a file that was read again leaves the others as they are
            allowance = self._allowances[key.name] = Allowance(key.limits, self._clock())
        over = allowance.take(ask.prompt_tokens, self._clock())
        if over is None:
            return None
        what, wait_s = over
        message = f"the key {key.name} has used up its {what} of this minute"
        return Refusal(status=429, message=message, retry_after_s=max(1, math.ceil(wait_s)))
