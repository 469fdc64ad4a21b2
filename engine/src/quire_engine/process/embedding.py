"""The engine process of a model that makes embeddings: texts in, vectors out, a few at a time.

What waits is embedded in portions, whoever it is for, so that short requests share one pass, and pings and those
who left are heard between two portions of a long one.
"""

from array import array
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from quire_api.footprint import ModelShape
from quire_engine.core.request import RequestId
from quire_engine.errors import RequestRejected
from quire_engine.process.link import Embedded, Link, Ping, Pong, Work
from quire_engine.runtime.embedder import Embedder
from quire_engine.runtime.forecast import Pace, operations

__all__ = ["EmbeddingService"]

PORTION = 2048  # tokens, more or less: a text stays whole


class EmbeddingService:
    def __init__(self, embedder: Embedder, shape: ModelShape, announce: Callable[[float], None]) -> None:
        self._embedder = embedder
        self._shape = shape
        self._announce = announce
        self._pace = Pace()
        self._texts: dict[RequestId, deque[list[int]]] = {}  # that wait, of each request
        self._vectors: dict[RequestId, list[array[float]]] = {}  # that are there, of requests that are not complete

    def serve(self, link: Link) -> NoReturn:
        """Until the link closes, which is an EOFError."""
        while True:
            for message in link.receive(wait=not self._texts):
                if isinstance(message, Ping):
                    link.send(Pong())
                    continue
                assert isinstance(message, Work)
                rejected = self._take(message)
                if rejected:
                    link.send(Embedded(vectors={}, rejected=rejected))
            if self._texts and (done := self._embed_portion()):
                link.send(Embedded(vectors=done, rejected={}))

    def _take(self, work: Work) -> dict[RequestId, tuple[str, str | None]]:
        """Queue what is asked, forget what nobody waits for; what cannot be embedded."""
        rejected: dict[RequestId, tuple[str, str | None]] = {}
        for request_id, texts in work.to_embed.items():
            try:
                for number, text in enumerate(texts):
                    self._embedder.check(number, text)
            except RequestRejected as refusal:
                rejected[request_id] = (str(refusal), refusal.param)
                continue
            self._texts[request_id] = deque(texts)
            self._vectors[request_id] = []
        for request_id in work.aborts:
            self._texts.pop(request_id, None)
            self._vectors.pop(request_id, None)
        return rejected

    def _embed_portion(self) -> "dict[RequestId, list[array[float]]]":
        """The next few texts, one of each request in turn; requests that are complete with them."""
        portion: list[tuple[RequestId, list[int]]] = []
        length = 0
        while self._texts and (not portion or length + len(next(iter(self._texts.values()))[0]) <= PORTION):
            request_id, texts = next(iter(self._texts.items()))
            portion.append((request_id, texts.popleft()))
            length += len(portion[-1][1])
            del self._texts[request_id]
            if texts:
                self._texts[request_id] = texts  # behind the others
        cost = operations(self._shape, length, sum(len(text) ** 2 for _, text in portion))
        self._announce(self._pace.forecast(cost))
        with self._pace.measured(cost):
            rows = self._embedder.embed([text for _, text in portion]).cpu().numpy()
        for (request_id, _), row in zip(portion, rows, strict=True):
            self._vectors[request_id].append(array("f", row.tobytes()))
        complete = {request_id for request_id, _ in portion} - self._texts.keys()
        return {request_id: self._vectors.pop(request_id) for request_id in complete}
