"""What the watches have told us, by kind and name. The cluster backend observes this and nothing else."""

from collections.abc import Iterator, Mapping
from typing import Any

from quire_api.deployment import KIND
from quire_operator.reconcile import ResourceKey
from quire_operator.render.names import OWNER_LABEL

__all__ = ["Object", "Store", "owner_key"]

Object = Mapping[str, Any]


def owner_key(obj: Object) -> ResourceKey | None:
    """The resource that an object was made for: itself, or the one its label names."""
    metadata = obj["metadata"]
    name = metadata["name"] if obj.get("kind") == KIND else metadata.get("labels", {}).get(OWNER_LABEL)
    return ResourceKey(metadata["namespace"], name) if name else None


class Store:
    def __init__(self) -> None:
        self._objects: dict[ResourceKey, dict[tuple[str, str], Object]] = {}

    def put(self, obj: Object) -> ResourceKey | None:
        """Keep the newer of this and what we have; the resource it concerns."""
        key = owner_key(obj)
        if key is not None:
            family = self._objects.setdefault(key, {})
            identity = (obj["kind"], obj["metadata"]["name"])
            if (known := family.get(identity)) is None or _version(obj) >= _version(known):
                family[identity] = obj
        return key

    def drop(self, obj: Object) -> ResourceKey | None:
        key = owner_key(obj)
        if key is not None and (family := self._objects.get(key)) is not None:
            identity = (obj["kind"], obj["metadata"]["name"])
            known = family.get(identity)
            if known is not None and known["metadata"].get("uid") == obj["metadata"].get("uid"):
                del family[identity]
            if not family:
                del self._objects[key]
        return key

    def resource(self, key: ResourceKey) -> Object | None:
        return self._objects.get(key, {}).get((KIND, key.name))

    def children(self, key: ResourceKey, kind: str) -> Iterator[Object]:
        for (its_kind, _), obj in sorted(self._objects.get(key, {}).items()):
            if its_kind == kind:
                yield obj


def _version(obj: Object) -> int:
    """Order of the states of one object; the API server's versions are numbers, though opaque by contract."""
    version = obj["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0
