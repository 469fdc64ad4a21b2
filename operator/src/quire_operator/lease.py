"""One operator at a time: a Lease, which the one that works renews and the others wait for.

    wait   free, or unchanged for its own duration as our clock counts --PUT of the version that was seen--> hold
    hold   renewed every few seconds; not renewed within the deadline, or somebody else's --> lost: the process ends
    end    in order: released, so that the next one need not wait

Rules: times that others wrote are for people and are compared with nothing; who holds it counts from before it asked,
who waits from after it was answered; no request outlasts the deadline, which ends well before the lease does. Knows
nothing of what the holder does. docs/decisions/0023 says why it is not the library's.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Never

from kubernetes.aio.client import ApiClient, CustomObjectsApi
from kubernetes.aio.client.exceptions import ApiException

from quire_api.errors import InvalidInput
from quire_operator.settings import LeaseName

__all__ = ["Lease", "LeaseLost", "Pace"]

log = logging.getLogger("quire.lease")

KIND = {"group": "coordination.k8s.io", "version": "v1", "plural": "leases"}
DENIED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class LeaseLost(Exception):
    """It may be somebody else's by now: nothing may be written any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a lease is, and how often it is asked for; as the controllers of Kubernetes have it."""

    duration_s: int = 15  # unchanged for so long, it is anybody's
    deadline_s: float = 10.0  # not renewed for so long, its holder gives up
    retry_s: float = 2.0
    request_s: float = 5.0
    patience_s: float = 30.0  # with a server that denies what we ask for


class Lease:
    """`identity` must be no other process's, nor have been."""

    def __init__(
        self,
        api: ApiClient,
        name: LeaseName,
        identity: str,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self._api = CustomObjectsApi(api)
        self._name = name
        self._pace = pace or Pace()
        self._clock = clock
        self._live: dict[str, Any] | None = None  # as we wrote it last
        self._until = float("-inf")  # when we stop to hold it, unless it is renewed
        self._seen, self._since = "", 0.0  # the version that somebody else wrote last, and when we saw it first
        self._trouble = ""  # the last one with the API server
        self._denied_since: float | None = None

    @property
    def held(self) -> bool:
        """Asked before each write: a process that was stopped for a while may come back as if nothing had been."""
        return self._clock() < self._until

    async def take(self) -> None:
        """Wait for it, however long; while the API server is away, too."""
        log.info("waiting for lease %s as %s", self._name, self.identity)
        while not await self._attempt():
            await asyncio.sleep(self._pause())
        log.info("holding lease %s", self._name)

    async def keep(self) -> Never:
        """Renew it until it is lost."""
        while True:
            try:
                async with asyncio.timeout(self._until - self._clock()):
                    await asyncio.sleep(self._pause())
                    renewed = await self._attempt()
            except TimeoutError:
                why = self._trouble or "no answer"
                raise LeaseLost(
                    f"lease {self._name} could not be renewed for {self._pace.deadline_s:g} s: {why}"
                ) from None
            if renewed is False:
                raise LeaseLost(f"lease {self._name} is somebody else's")

    async def release(self) -> None:
        """Whoever waits for it may have it now. Nothing may be written after this."""
        held, self._until = self.held, float("-inf")
        if not held:
            return
        try:
            async with asyncio.timeout(self._pace.request_s):
                live = self._live if self._live is not None else await self._read()
                if live is None or not self._is_ours(live):
                    return
                spec = {**live["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
                await self._api.replace_namespaced_custom_object(**self._where, body={**live, "spec": spec})
            log.info("released lease %s", self._name)
        except Exception as error:  # then it runs out
            log.warning("cannot release lease %s: %s", self._name, _words(error))

    async def _attempt(self) -> bool | None:
        """Is it ours now? None: who knows; the API server is away, or somebody was faster."""
        asked = self._clock()
        try:
            async with asyncio.timeout(self._pace.request_s):
                live = self._live if self._live is not None else await self._read()
                if live is not None and not self._is_ours(live) and not self._is_anybodys(live):
                    return False
                self._live = None  # unless the answer arrives
                self._live = await self._write(live)
        except Exception as error:  # whatever one attempt stumbles over, the next one may not
            if isinstance(error, ApiException) and error.status in DENIED:
                self._denied(error)
            self._trouble = _words(error)
            log.warning("lease %s: %s", self._name, self._trouble)
            return None
        self._until = asked + self._pace.deadline_s
        self._denied_since = None
        return True

    def _denied(self, error: ApiException) -> None:
        """Who holds it waits for the deadline; who does not, for as long as an API server takes to know all rights when it
        has just started. Then it would wait for ever, and look well."""
        now = self._clock()
        self._denied_since = since = now if self._denied_since is None else self._denied_since
        if not self.held and now - since >= self._pace.patience_s:
            raise InvalidInput(
                [
                    f"may not use lease {self._name} (the API server says {error.status}): allow get, create and update of "
                    "leases.coordination.k8s.io in that namespace, or start with --no-lease where no other operator can be"
                ]
            ) from error

    def _is_ours(self, live: dict[str, Any]) -> bool:
        """We wrote it, though the answer may not have come."""
        return (live.get("spec") or {}).get("holderIdentity") == self.identity

    def _is_anybodys(self, live: dict[str, Any]) -> bool:
        """Nobody's, or not renewed for as long as its holder said, since we first saw it as it is."""
        spec, version = live.get("spec") or {}, live["metadata"]["resourceVersion"]
        if not spec.get("holderIdentity"):
            return True
        now = self._clock()
        if version != self._seen:
            self._seen, self._since = version, now
        return now - self._since >= (spec.get("leaseDurationSeconds") or self._pace.duration_s)

    async def _read(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self._api.get_namespaced_custom_object(**self._where)
        except ApiException as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            return None
        return found

    async def _write(self, live: dict[str, Any] | None) -> dict[str, Any]:
        """In place of `live`, and of nothing newer."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (live or {}).get("spec") or {}
        ours = before.get("holderIdentity") == self.identity
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._pace.duration_s,
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + (live is not None and not ours),
        }
        answer: dict[str, Any]
        if live is None:
            metadata = {"name": self._name.name, "namespace": self._name.namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            where = {part: value for part, value in self._where.items() if part != "name"}
            answer = await self._api.create_namespaced_custom_object(**where, body=body)
        else:
            answer = await self._api.replace_namespaced_custom_object(**self._where, body={**live, "spec": spec})
        return answer

    @property
    def _where(self) -> dict[str, str]:
        return {**KIND, "namespace": self._name.namespace, "name": self._name.name}

    def _pause(self) -> float:
        """Not all at the same moment."""
        return self._pace.retry_s * random.uniform(0.8, 1.2)


def _words(error: Exception) -> str:
    if isinstance(error, ApiException):
        return f"the API server answered {error.status}"
    return str(error) or type(error).__name__
