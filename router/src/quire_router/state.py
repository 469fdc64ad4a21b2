"""/state: what the router knows, for a person's eyes and the dashboard. docs/router.md describes it."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from quire_router.fleet import Fleet
from quire_router.health import State
from quire_router.rates import Minute
from quire_router.registry import Model
from quire_router.watch import Watched

__all__ = ["ErrorSeen", "Recent", "describe"]

MOST_ERRORS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSeen:
    at: float  # by the router's clock
    model: str
    status: int
    message: str
    backend: str | None
    request_id: str


class Recent:
    """What happened lately."""

    def __init__(self) -> None:
        self.errors: deque[ErrorSeen] = deque(maxlen=MOST_ERRORS)
        self._minutes: dict[str, Minute] = {}

    def minute(self, model: str) -> Minute:
        return self._minutes.setdefault(model, Minute())

    def keep(self, models: Iterable[str]) -> None:
        """Forget the others."""
        kept = set(models)
        self._minutes = {name: minute for name, minute in self._minutes.items() if name in kept}


def describe(
    models: Iterable[Model],
    fleet: Fleet,
    held: Callable[[str], int],
    recent: Recent,
    files: Iterable[Watched],
    *,
    now: float,
    stopping: bool,
) -> dict[str, Any]:
    """Only `models`, which the one who asks may see."""
    shown = list(models)
    names = {model.name for model in shown}
    offset = time.time() - now
    return {
        "now": round(now + offset, 3),
        "stopping": stopping,
        "models": [_model(model, fleet, held(model.name), recent, now, offset) for model in shown],
        "errors": [
            {
                "at": round(error.at + offset, 3), "model": error.model, "status": error.status, "message": error.message,
                "backend": error.backend, "request_id": error.request_id,
            }
            for error in reversed(recent.errors)
            if error.model in names
        ],
        "files": [{"path": str(file.path), "error": file.error} for file in files],
    }  # fmt: skip


def _model(model: Model, fleet: Fleet, held: int, recent: Recent, now: float, offset: float) -> dict[str, Any]:
    backends = [
        {
            "url": member.url,
            "state": member.state(now),
            "in_flight": len(member.work),
            "tokens": member.tokens,
            "taken": member.taken,
            "reported": None if member.reported is None else asdict(member.reported),
            "last_error": None if member.last_error is None
            else {"at": round(member.last_error[0] + offset, 3), "message": member.last_error[1]},
        }
        for member in sorted(fleet.of(model), key=lambda member: member.address)
    ]  # fmt: skip
    states = [backend["state"] for backend in backends]
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "strategy": model.strategy.value,
        "desired": model.desired,
        "ready": states.count(State.READY),
        "loading": model.loading + states.count(State.LOADING),
        "held": held,
        "in_flight": sum(len(member.work) for member in fleet.of(model)),
        "bounds": {"inside": model.max_inside, "held": model.hold_requests, "hold_s": model.hold_s},
        "backends": backends,
        "history": [
            {"at": each.at, "from": each.before, "to": each.after, "reason": each.reason} for each in model.history
        ],
        "last_minute": recent.minute(model.name).summary(now),
    }
