"""How much JSON is taken: what has too many parts is refused before it is read.

Whoever reads JSON holds Python's lock until all of it is read, in whatever thread, and every stream waits meanwhile. Text is
read at hundreds of megabytes a second, but a container takes as long as hundreds of characters, so that the bound on bytes
alone (door.py) is none on time. Parts are counted, without reading, where there is room for too many.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

__all__ = ["BoundedRoute", "num_containers_and_values"]

SMALL = 1 << 20  # bytes: they are read in a moment, whatever they are
MOST_CONTAINERS = 250_000  # with the names in them
MOST_VALUES = 2_000_000


class BoundedRequest(Request):
    async def json(self) -> Any:
        data = await self.body()
        if len(data) > SMALL:
            containers, values = num_containers_and_values(data)
            if containers > MOST_CONTAINERS or values > MOST_VALUES:
                raise HTTPException(
                    400,
                    f"the body has {containers} lists, objects and names, and {values} values: "
                    f"at most {MOST_CONTAINERS} and {MOST_VALUES} are taken",
                )
        return await super().json()


class BoundedRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handler(BoundedRequest(request.scope, request.receive))

        return bounded


def num_containers_and_values(data: bytes) -> tuple[int, int]:
    """At most so many; exactly, where it matters: what stands in strings does not count then."""
    found = _counted(data)
    if found[0] <= MOST_CONTAINERS and found[1] <= MOST_VALUES:
        return found
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    if (quotes := bare.count(b'"')) > 2 * MOST_VALUES:
        return found[0], quotes // 2
    return _counted(b"".join(bare.split(b'"')[::2]))


def _counted(data: bytes) -> tuple[int, int]:
    return sum(data.count(each) for each in (b"[", b"{", b":")), data.count(b",")
