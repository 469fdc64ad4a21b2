"""The Events of a cluster, as the dynamic client reads them."""

from typing import Any

__all__ = ["Events"]


class Events:
    """Give it away as the client: `resources.get` finds the kind, `get` lists."""

    def __init__(self) -> None:
        self.told: dict[str, list[dict[str, Any]]] = {}  # uid of what they are about -> Events
        self.asked: list[str] = []
        self.down = False

    @property
    def resources(self) -> "Kinds":
        return Kinds(self)

    def tell(self, uid: str, message: str, at: str = "2026-01-01T00:00:00Z") -> None:
        self.told.setdefault(uid, []).append({"message": message, "lastTimestamp": at})

    async def get(self, *, namespace: str, field_selector: str, **_: Any) -> Any:
        if self.down:
            raise OSError("no route")
        about, reason = field_selector.split(",")
        assert reason == "reason=FailedCreate"
        uid = about.removeprefix("involvedObject.uid=")
        self.asked.append(uid)
        items = list(self.told.get(uid, ()))
        return {"items": items}


class Kinds:
    def __init__(self, events: Events) -> None:
        self._events = events

    async def get(self, *, api_version: str, kind: str) -> Events:
        assert (api_version, kind) == ("v1", "Event")
        return self._events
