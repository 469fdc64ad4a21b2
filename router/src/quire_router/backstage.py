"""A second port, for those who run the router: probes, /metrics, and /demand, which the operator's autoscaler reads.

Without keys and TLS, so that a kubelet, a Prometheus and the operator need neither; hence a port of its own, which a
NetworkPolicy can close to everybody else. It says which models are in demand, and takes nothing.
"""

import asyncio
import json
from collections.abc import Callable, Mapping

from quire_router.client import Connection
from quire_router.replies import Refusal, reply
from quire_router.request import Request
from quire_router.scene import Demand

__all__ = ["Backstage"]


class Backstage:
    def __init__(self, probe: Callable[[str, bool], bytes], demand: Callable[[], Mapping[str, Demand]]) -> None:
        """`probe` answers the paths that both ports have."""
        self.connections: set[Connection] = set()
        self._probe = probe
        self._demand = demand
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port (a free one for 0). OSError when it is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._answer, self.connections), host, port)
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        """Last of all: while a router drains, it still says what it holds."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.abort()

    async def _answer(self, request: Request, client: Connection) -> None:
        bodiless = request.method == b"HEAD"
        if request.path in ("/livez", "/readyz", "/metrics"):
            client.write(self._probe(request.path, bodiless))
        elif request.path == "/demand":
            client.write(reply(200, json.dumps({"demand": self._told()}).encode(), bodiless=bodiless))
        else:
            client.write(Refusal(status=404, message="not here").reply(request.id, bodiless=bodiless))

    def _told(self) -> dict[str, dict[str, int]]:
        """Only of resources which anybody asks for: there may be a thousand, and this is read twice a second."""
        return {
            demand.resource: {"held": demand.held, "inFlight": demand.in_flight}
            for demand in self._demand().values()
            if demand.resource and (demand.held or demand.in_flight)
        }
