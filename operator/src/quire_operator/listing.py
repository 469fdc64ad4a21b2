"""Full lists of every kind that is watched: once before anything is planned, and now and then.

kopf handles events while other kinds are still being listed, and a plan from half a picture would undo what it does not
see; and after a watch was cut, kopf does not tell of what went meanwhile. Rule: only what was known before a list began may
be missing from it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from quire_api.deployment import KIND
from quire_operator.backends.client import as_it_is
from quire_operator.backends.store import Store
from quire_operator.reconcile import ResourceKey
from quire_operator.render.names import OURS

__all__ = ["Kind", "Lister"]

log = logging.getLogger("quire.operator")

AGAIN_S = 600.0
PAGE = 500
TIMEOUT_S = 30

Kind = tuple[str, str, str, str]  # group, version, plural, kind


class Lister:
    def __init__(self, client: Any, store: Store, kinds: Sequence[Kind], namespaces: Sequence[str]) -> None:
        """`client` is the dynamic one; no namespaces are all of them."""
        self._client = client
        self._store = store
        self._kinds = kinds
        self._namespaces: list[str | None] = [*namespaces] or [None]

    async def first(self) -> None:
        """All there is, or the exception that says why not."""
        for kind in self._kinds:
            for namespace in self._namespaces:
                await self._list(kind, namespace)

    async def again(self, wake: Callable[[ResourceKey], None]) -> None:
        """For ever; `wake` is told whose objects have gone."""
        while True:
            await asyncio.sleep(AGAIN_S)
            await self.look(wake)

    async def look(self, wake: Callable[[ResourceKey], None]) -> None:
        for kind in self._kinds:
            for namespace in self._namespaces:
                try:
                    concerned = await self._list(kind, namespace)
                except (
                    Exception
                ) as error:  # whatever it is: half a list would drop what is there, and the next one is whole
                    log.warning("cannot list %s: %s", kind[-1], error or type(error).__name__)
                    continue
                for key in concerned:
                    wake(key)

    async def _list(self, named: Kind, namespace: str | None) -> set[ResourceKey]:
        """Keep what is there; whose objects are gone."""
        group, version, _, kind = named
        api_version = f"{group}/{version}".lstrip("/")
        api = await self._client.resources.get(api_version=api_version, kind=kind)
        known, listed, following = self._store.uids(kind, namespace), set[str](), None
        while following != "":
            page = await api.get(
                namespace=namespace,
                label_selector=None if kind == KIND else OURS,
                limit=PAGE,
                _continue=following,
                _request_timeout=TIMEOUT_S,
                serializer=as_it_is,
            )
            for item in page["items"]:  # those of built-in kinds do not say what they are
                self._store.put({"apiVersion": api_version, "kind": kind, **item})
                listed.add(item["metadata"]["uid"])
            following = page["metadata"].get("continue") or ""
        return self._store.drop_all(known - listed)
