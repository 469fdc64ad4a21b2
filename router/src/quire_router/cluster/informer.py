"""The objects of one kind, as the API server tells of them: a list, then a watch from there, for ever.

    list --version--> watch --its time is over, or it is cut--> watch again, from the last version
      ^----------- 410: that version is forgotten; refused --'

What was told last is kept while the API server is away; a list replaces it whole, so that what vanished meanwhile goes.
The watch asks for bookmarks, so that silence means that the connection is dead, and that a version stays known.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from kubernetes.aio.client import ApiClient, CustomObjectsApi

__all__ = ["Informer", "Kind"]

log = logging.getLogger("quire.router")

PAGE = 500
LIST_S = 30.0
WATCH_S = 300  # then the API server ends it: a new one may go to another, less busy one
SILENT_S = 90.0  # of a watch: bookmarks come every minute
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    group: str
    version: str
    plural: str
    selector: str | None = None  # labels


class Expired(Exception):
    """The API server no longer knows the version to go on from."""


class Refused(Exception):
    """It answered, but not with what was asked for."""


class Informer:
    """`changed` is called whenever `objects` has changed. One namespace, or all of them."""

    def __init__(
        self,
        api: ApiClient,
        kind: Kind,
        namespace: str | None,
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.objects: dict[str, Mapping[str, Any]] = {}  # by uid
        self.listed = False
        self.silent_since: float | None = None  # when it could not be asked any more
        self._api = CustomObjectsApi(api)
        self._kind = kind
        self._namespace = namespace
        self._changed = changed
        self._clock = clock
        self._version: str | None = None  # None: list first
        self._pause_s = RETRY_FIRST_S

    async def run(self) -> None:
        while True:
            begun = self._clock()
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
            except Expired:
                self._version = None
            except Exception as error:  # whatever one attempt stumbles over, the next one may not
                if isinstance(error, Refused):  # a server that was set back, say, may never take that version again
                    self._version = None
                self._lost(error)
            if self._clock() - begun > 1:
                self._pause_s = RETRY_FIRST_S
            await asyncio.sleep(self._pause_s * random.uniform(0.8, 1.2))
            self._pause_s = min(2 * self._pause_s, RETRY_MOST_S)

    async def _list(self) -> None:
        found: dict[str, Mapping[str, Any]] = {}
        following = ""
        async with asyncio.timeout(LIST_S):
            while True:
                async with self._asked(limit=PAGE, **({"_continue": following} if following else {})) as answer:
                    page = orjson.loads(await answer.read())
                found |= {item["metadata"]["uid"]: item for item in page["items"]}
                following = page["metadata"].get("continue") or ""
                if not following:
                    break
        self.objects, self.listed, self._version = found, True, page["metadata"]["resourceVersion"]
        self._found()
        self._changed()

    async def _watch(self) -> None:
        """Until it ends."""
        about = {"watch": True, "allow_watch_bookmarks": True, "timeout_seconds": WATCH_S}
        async with self._asked(**about, resource_version=self._version) as answer:
            self._found()
            async for line in _lines(answer):
                self._take(orjson.loads(line))

    def _take(self, event: Mapping[str, Any]) -> None:
        told = event["object"]
        if event["type"] == "ERROR":
            raise Expired if told.get("code") == 410 else Refused(told.get("message"))
        metadata = told["metadata"]
        if event["type"] == "DELETED":
            self.objects.pop(metadata["uid"], None)
        elif event["type"] in ("ADDED", "MODIFIED"):
            self.objects[metadata["uid"]] = told
        self._version = metadata["resourceVersion"]
        if event["type"] != "BOOKMARK":
            self._changed()

    def _asked(self, **about: Any) -> "_Asked":
        kind = self._kind
        what = {"group": kind.group, "version": kind.version, "plural": kind.plural, **about}
        if kind.selector is not None:
            what["label_selector"] = kind.selector
        if self._namespace is None:
            return _Asked(self._api.list_cluster_custom_object_without_preload_content, what)
        return _Asked(
            self._api.list_namespaced_custom_object_without_preload_content, {**what, "namespace": self._namespace}
        )

    def _found(self) -> None:
        if self.silent_since is not None:
            log.info("%s: the API server answers again", self._kind.plural)
        self.silent_since = None

    def _lost(self, error: Exception) -> None:
        if self.silent_since is None:
            self.silent_since = self._clock()
            why = str(error) or type(error).__name__
            log.warning("%s: cannot be watched, what is known of them stays: %s", self._kind.plural, why[:300])


class _Asked:
    """An answer, closed at the end. Expired and Refused, by its status."""

    def __init__(self, ask: Callable[..., Any], what: Mapping[str, Any]) -> None:
        self._ask = ask
        self._what = what
        self._answer: Any = None

    async def __aenter__(self) -> Any:
        async with asyncio.timeout(LIST_S):
            self._answer = await self._ask(**self._what, _request_timeout=float(WATCH_S + 60))
        if self._answer.status == 200:
            return self._answer
        self._answer.close()
        raise Expired if self._answer.status == 410 else Refused(f"the API server answered {self._answer.status}")

    async def __aexit__(self, *_: object) -> None:
        self._answer.close()


async def _lines(answer: Any) -> AsyncIterator[bytes]:
    """Whole ones; half a line is where it was cut."""
    while True:
        async with asyncio.timeout(SILENT_S):
            line = await answer.content.readline()
        if not line.endswith(b"\n"):
            return
        if line.strip():
            yield line
