"""The one way of our writes to the API server: each is counted, and none is made by an operator that does not hold its lease."""

from collections.abc import Callable
from typing import Any

from kubernetes.aio.client import ApiClient
from kubernetes.aio.dynamic import DynamicClient

__all__ = ["NotHolding", "WritingClient", "as_it_is", "what_is_written"]

NO_FILE = "/dev/null/none"  # the library keeps what a server serves in /tmp, by its address, and would believe it of the next one
APPLY = "application/apply-patch+yaml"
VERBS = {"post": "create", "put": "update", "patch": "patch", "delete": "delete"}


def as_it_is(_: Any, answer: Any) -> Any:
    """A `serializer` of requests: the library's own copies an answer twice, object by object, which of lists takes seconds."""
    return answer


class NotHolding(Exception):
    """Somebody else may be at work: this operator has not renewed its lease in time, and is about to end."""


class WritingClient(DynamicClient):  # type: ignore[misc]  # the library has no types
    def __init__(self, api: ApiClient, may_write: Callable[[], bool], wrote: Callable[[str, str], None]) -> None:
        """`wrote` is told the verb and the resource, such as `patch` and `deployments/scale`, of every write that is asked for."""
        super().__init__(api, cache_file=NO_FILE)
        self._may_write = may_write
        self._wrote = wrote

    async def request(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        if method in VERBS:
            if not self._may_write():
                raise NotHolding("not written: the lease was not renewed in time")
            verb = "apply" if parameters.get("content_type") == APPLY else VERBS[method]
            self._wrote(verb, what_is_written(path))
        return await super().request(method, path, body=body, **parameters)


def what_is_written(path: str) -> str:
    """Resource and subresource of a path within a namespace."""
    parts = path.partition("/namespaces/")[2].split("/")[1:]  # resource, name, subresource
    return "/".join(part for part in (*parts[:1], *parts[2:3]) if part)
