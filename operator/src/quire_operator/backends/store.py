"""What the watches have told us, by kind and name. The cluster backend observes this and nothing else.

Of thousands of objects only those parts stay in memory that somebody here reads: whoever reads another one adds it to `KEPT`.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from quire_api.deployment import KIND
from quire_operator.reconcile import ResourceKey
from quire_operator.render.names import OWNER_LABEL

__all__ = ["Object", "Store", "owner_key"]

Object = Mapping[str, Any]

KEPT: dict[str, tuple[str, ...]] = {  # besides the metadata; of any other kind nothing
    KIND: ("apiVersion", "spec", "status"),
    "Deployment": ("spec", "status"),
    "LeaderWorkerSet": ("spec",),
    "ReplicaSet": ("status",),
    "HorizontalPodAutoscaler": ("spec", "status"),
    "ControllerRevision": ("revision", "data"),
    "Job": ("status",),
    "Pod": ("status",),
}


def owner_key(obj: Object) -> ResourceKey | None:
    """The resource that an object was made for: itself, or the one its label names."""
    metadata = obj["metadata"]
    name = metadata["name"] if obj.get("kind") == KIND else metadata.get("labels", {}).get(OWNER_LABEL)
    return ResourceKey(metadata["namespace"], name) if name else None


class Store:
    def __init__(self) -> None:
        self._objects: dict[ResourceKey, dict[str, dict[str, Object]]] = {}  # of a resource, by kind and name
        self._home: dict[str, ResourceKey] = {}  # uid -> under which resource it is kept
        self._gone: deque[str] = deque(maxlen=10_000)  # uids that were deleted: an answer may arrive after that news

    def put(self, obj: Object) -> set[ResourceKey]:
        """Keep the newer of this and what we have; the resources it concerns: its own, and the one it has left."""
        uid, key = obj["metadata"].get("uid", ""), owner_key(obj)
        before = self._home.get(uid)
        concerned = {k for k in (key, before) if k is not None}
        if uid in self._gone:
            return concerned
        if before is not None and before != key:
            self._forget(before, obj)
        if key is not None:
            named = self._objects.setdefault(key, {}).setdefault(obj["kind"], {})
            name = obj["metadata"]["name"]
            if (known := named.get(name)) is None or _version(obj) >= _version(known):
                named[name] = _slim(obj)
                self._home[uid] = key
        return concerned

    def drop(self, obj: Object) -> set[ResourceKey]:
        """It is gone."""
        uid = obj["metadata"].get("uid", "")
        concerned = {k for k in (owner_key(obj), self._home.get(uid)) if k is not None}
        self._gone.append(uid)
        for key in concerned:
            self._forget(key, obj)
        return concerned

    def uids(self, kind: str, namespace: str | None) -> set[str]:
        """Of all objects of a kind; None: in any namespace."""
        families = [family for key, family in self._objects.items() if namespace in (None, key.namespace)]
        return {obj["metadata"].get("uid", "") for family in families for obj in family.get(kind, {}).values()}

    def drop_all(self, uids: set[str]) -> set[ResourceKey]:
        """They are gone; whose they were."""
        kinds = [named for family in self._objects.values() for named in family.values()]
        lost = [obj for named in kinds for obj in named.values() if obj["metadata"].get("uid") in uids]
        return {key for obj in lost for key in self.drop(obj)}

    def _forget(self, key: ResourceKey, obj: Object) -> None:
        family, kind, name = self._objects.get(key, {}), obj["kind"], obj["metadata"]["name"]
        known = family.get(kind, {}).get(name)
        if known is not None and known["metadata"].get("uid") == obj["metadata"].get("uid"):
            del family[kind][name]
            self._home.pop(obj["metadata"].get("uid", ""), None)
        if not any(family.values()):
            self._objects.pop(key, None)

    def resource(self, key: ResourceKey) -> Object | None:
        return self.child(key, KIND, key.name)

    def resources(self) -> list[ResourceKey]:
        """Those that exist."""
        return [key for key, family in self._objects.items() if key.name in family.get(KIND, ())]

    def child(self, key: ResourceKey, kind: str, name: str) -> Object | None:
        return self._objects.get(key, {}).get(kind, {}).get(name)

    def children(self, key: ResourceKey, kind: str) -> Iterator[Object]:
        """By their names."""
        for _, obj in sorted(self._objects.get(key, {}).get(kind, {}).items()):
            yield obj


def _slim(obj: Object) -> Object:
    """Who owns which field is half of an object, and no matter of ours."""
    metadata = {part: value for part, value in obj["metadata"].items() if part != "managedFields"}
    kept = {part: obj[part] for part in KEPT.get(obj["kind"], ()) if part in obj}
    return {"kind": obj["kind"], "metadata": metadata, **kept}


def _version(obj: Object) -> int:
    """Order of the states of one object; the API server's versions are numbers, though opaque by contract."""
    version = obj["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0
