"""Why the API server will not have the pod of a Job: an Event says so, and nothing else does.

A cluster has many Events, and nobody watches them here: those about a Job are read once it has had no pod for two looks.
Rule: the words that are kept do not change with each attempt of the Job controller, so that the status does not either.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from quire_operator.backends.client import as_it_is
from quire_operator.reconcile import ResourceKey

__all__ = ["PodlessJob", "Refusals"]

log = logging.getLogger("quire.refusals")

LOOK_S = 5.0
TIMEOUT_S = 10.0
PREFIX = "Error creating: "
NAME = re.compile(r'^pods "[^"]*"')  # of a pod that was never made: another one at each attempt


class PodlessJob(NamedTuple):
    uid: str
    owner: ResourceKey  # whose Job it is


class Refusals:
    def __init__(
        self, client: Any, podless: Callable[[], Iterable[PodlessJob]], wake: Callable[[ResourceKey], None]
    ) -> None:
        """`client` is the dynamic one."""
        self._client = client
        self._podless = podless
        self._wake = wake
        self._seen: set[str] = set()  # without a pod at the last look
        self._words: dict[str, str] = {}

    def of(self, uid: str) -> str:
        """Why a Job has no pod; empty while nobody has said."""
        return self._words.get(uid, "")

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        jobs = {job.uid: job for job in self._podless()}
        for uid in jobs.keys() & self._seen:
            words = await self._read(jobs[uid])
            if words and words != self._words.get(uid):
                self._words[uid] = words
                self._wake(jobs[uid].owner)
        self._words = {uid: words for uid, words in self._words.items() if uid in jobs}
        self._seen = set(jobs)

    async def _read(self, job: PodlessJob) -> str:
        """What was said last; empty when nothing was, or it cannot be read."""
        try:
            api = await self._client.resources.get(api_version="v1", kind="Event")
            selector = f"involvedObject.uid={job.uid},reason=FailedCreate"
            found = await api.get(
                namespace=job.owner.namespace,
                field_selector=selector,
                limit=100,
                _request_timeout=TIMEOUT_S,
                serializer=as_it_is,
            )
        except Exception as error:  # whatever it is: no word is worth the end of the operator
            log.warning("%s/%s: cannot read the Events of its Job: %s", *job.owner, error)
            return ""
        events = sorted(found["items"], key=lambda event: event.get("lastTimestamp") or "")
        message = str(events[-1].get("message") or "") if events else ""
        return NAME.sub("its pod", message.removeprefix(PREFIX))
