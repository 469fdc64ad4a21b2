"""What became of requests: counted for /metrics, remembered for /state, settled with the limits of their key."""

from collections.abc import Callable, Iterable

from quire_router.answer import Answer
from quire_router.door import Door, Visit
from quire_router.exchange import Exchange
from quire_router.metrics import RouterMetrics
from quire_router.replies import Refusal
from quire_router.state import ErrorSeen, Recent

__all__ = ["Ledger"]


class Ledger:
    def __init__(self, door: Door, clock: Callable[[], float]) -> None:
        self.metrics = RouterMetrics()
        self.recent = Recent()
        self._door = door
        self._clock = clock

    def refused(self, refusal: Refusal, key: str) -> None:
        """At the door."""
        self.metrics.of("requests_total", "", str(refusal.status)).inc()
        if key:
            self.metrics.of("key_requests_total", key, str(refusal.status)).inc()

    def ended(self, exchange: Exchange, visit: Visit, status: int) -> None:
        name, answer, now = visit.model.name, exchange.answer, self._clock()
        prompt, completion = _usage(answer, visit) if answer is not None else (0, 0)
        first_s = token_s = None
        if answer is not None and answer.first_at is not None:
            first_s = answer.first_at - exchange.request.arrived
            self.metrics.of("first_byte_seconds", name).observe(first_s)
            if answer.events > 1 and completion > 1:
                token_s = (now - answer.first_at) / (completion - 1)
        self.metrics.of("requests_total", name, str(status)).inc()
        if exchange.broken:
            self.metrics.of("answers_broken_total", name).inc()
        if visit.key.name:
            self.metrics.of("key_requests_total", visit.key.name, str(status)).inc()
            self.metrics.of("key_tokens_total", visit.key.name, "prompt").inc(prompt)
            self.metrics.of("key_tokens_total", visit.key.name, "completion").inc(completion)
        self._door.settle(visit, prompt + completion)
        failed = exchange.broken or status >= 500
        self.recent.minute(name).add(
            now,
            tokens=completion,
            failed=failed,
            first_s=first_s if answer is not None and answer.events else None,
            token_s=token_s,
        )
        if failed:
            self._remember(exchange, name, status, now)

    def _remember(self, exchange: Exchange, model: str, status: int, now: float) -> None:
        error = ErrorSeen(
            at=now,
            model=model,
            status=status,
            message=exchange.error or "",
            backend=exchange.address,
            request_id=exchange.request.id.decode(),
        )
        self.recent.errors.append(error)

    def render(self, held: Iterable[tuple[str, int]], backends: Iterable[tuple[str, str]], silent_s: float) -> bytes:
        """For /metrics: with what is so now. `backends` are the model and the state of each engine."""
        self.metrics.set_silence(silent_s)
        self.metrics.set_held(held)
        self.metrics.set_backends(backends)
        return self.metrics.render()


def _usage(answer: Answer, visit: Visit) -> tuple[int, int]:
    """Tokens of prompt and completion: as the answer says, else as they look from outside."""
    said = answer.usage()
    return said.get("prompt", visit.ask.prompt_tokens), said.get("completion", answer.events)
