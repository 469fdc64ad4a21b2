"""One question to a server, with redirects and second attempts. A token goes to the host it is for, and to no other."""

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPMessage
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from quire_engine.fetch.errors import SourceUnreachable, WeightsCorrupt, shown
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.listing import Target
from quire_engine.fetch.retry import Policy, pause_s, retry_after_s
from quire_engine.fetch.source import is_web_address
from quire_engine.fetch.wire import URL, Answer, Broken, Wire

__all__ = ["Client", "Document", "Explain", "onward", "origin"]

REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 5
MOST_BYTES = 64 << 20  # of a listing or a manifest
PRIVATE = ("authorization", "cookie", "proxy-authorization")

Explain = Callable[[int, HTTPMessage], Exception | None]  # what a status means to this source


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    status: int
    headers: HTTPMessage
    body: bytes

    def json(self, what: str) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            raise WeightsCorrupt(f"{what} is no JSON: is this the right server?") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    wire: Wire
    halt: Halt
    policy: Policy = field(default_factory=Policy)
    chance: Callable[[], float] = random.random

    def open(self, target: Target, headers: Mapping[str, str], pins: Mapping[str, str] | None = None) -> Answer:
        """One attempt, redirects followed. `pins`: an origin -> its If-Match."""
        url, private = target.url, dict(target.headers)
        for _ in range(MOST_REDIRECTS + 1):
            match = (pins or {}).get(origin(url))
            answer = self.wire.get(url, {**private, **headers, **({"If-Match": match} if match else {})})
            location = answer.headers.get("Location")
            if answer.status not in REDIRECTS or not location:
                return answer
            with answer:
                following = onward(url, location)
            if urlsplit(url).scheme == "https" and urlsplit(following).scheme != "https":
                raise SourceUnreachable(f"{shown(url)} sends us on to {shown(following)}, which is not encrypted")
            if origin(following) != origin(url):
                private = {name: value for name, value in private.items() if name.lower() not in PRIVATE}
            url = following
        raise SourceUnreachable(f"{shown(target.url)} sends us in circles")

    def document(self, target: Target, explain: Explain) -> Document:
        """A small answer, whole. What `explain` makes of a status is raised; the rest is tried again, then given up."""
        attempt = 0
        while True:
            attempt += 1
            status, after = None, None
            try:
                with self.open(target, {}) as answer:
                    body = answer.read(MOST_BYTES)
                if answer.status == 200:
                    return Document(status=200, headers=answer.headers, body=body)
                failure = explain(answer.status, answer.headers)
                if failure is not None:
                    raise failure
                status, after = answer.status, answer.headers.get("Retry-After")
                words = f"{shown(target.url)} answers {status}"
            except Broken as broken:
                words = str(broken)
            self.rest(attempt, status, after, words)

    def rest(self, attempt: int, status: int | None, retry_after: str | None, words: str) -> None:
        """Wait before the next attempt; SourceUnreachable if there shall be none."""
        self.halt.check()
        asked = retry_after_s(retry_after, time.time())
        pause = pause_s(
            attempt=attempt, status=status, retry_after=asked, chance=self.chance(), policy=self.policy
        )  # fmt: skip
        if pause is None:
            tried = f" (tried {attempt} times)" if attempt > 1 else ""
            later = f"; it asks to come back in {asked:.0f} s" if asked and asked > self.policy.longest_wait_s else ""
            raise SourceUnreachable(words + tried + later)
        self.halt.wait(pause)


def onward(url: str, location: str) -> str:
    """The address that a server sends us on to; SourceUnreachable if it is none."""
    try:
        following = urljoin(url, quote(location, safe=f"{URL}#", encoding="latin-1"))  # the bytes as they came
    except ValueError:
        following = location
    if not is_web_address(following):
        raise SourceUnreachable(f"{shown(url)} sends us on to {shown(following)}, which is no web address")
    return following


def origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"
