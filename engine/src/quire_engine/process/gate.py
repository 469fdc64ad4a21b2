"""How nodes find each other: node 0 listens, the others come, each with a connection of its own and one for each rank.

Every connection begins with a line of JSON each way; then a rank's is a link (link.py), and a node's is for last words,
which are lines of JSON, too. The kernel asks each second whether the other machine is there, so that one which has
vanished without a word is known within LOST_S.
"""

import json
import logging
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from quire_engine.errors import ConfigFailure, EngineFailure, RankLost
from quire_engine.process.nodes import Nodes

__all__ = ["PATIENCE_S", "Gate", "Guests", "knock", "own_address", "read_line", "write_line"]

PATIENCE_S = 600.0  # for pods to be scheduled, images to be pulled, weights to be fetched
HELLO_S = 5.0
LOST_S = 4
LONGEST = 1 << 14  # bytes of a line
RETRY_S = 0.3

log = logging.getLogger("quire.serve")


@dataclass(slots=True)
class Guests:
    """Who came, until the last one has."""

    nodes: dict[int, socket.socket] = field(default_factory=dict)
    ranks: dict[int, socket.socket] = field(default_factory=dict)


class Gate:
    def __init__(self, nodes: Nodes, patience_s: float = PATIENCE_S) -> None:
        """Listens as soon as the address is known: the name of a pod is not while the pod starts."""
        self._nodes = nodes
        try:
            family, self.address = _known(nodes.address, patience_s)
            self._listener = socket.create_server((self.address, nodes.port), family=family)
        except OSError as error:
            raise ConfigFailure(
                f"node 0 cannot listen on {nodes.address}:{nodes.port}: {error.strerror or error}; "
                "--master-addr must be an address of its own, and --master-port free"
            ) from None

    def admit(self, store_port: int, patience_s: float = PATIENCE_S) -> Guests:
        """Wait for all; they are told the port where ranks meet."""
        guests, deadline = Guests(), time.monotonic() + patience_s
        with self._listener:
            while missing := self._missing(guests):
                self._listener.settimeout(max(0.0, deadline - time.monotonic()))
                try:
                    guest, _ = self._listener.accept()
                except (TimeoutError, BlockingIOError):
                    where = f"{self._nodes.address}:{self._nodes.port}"
                    raise RankLost(f"node {missing[0]} has not come to {where} within {patience_s:.0f} s", 1) from None
                self._greet(guest, guests, store_port)
        return guests

    def _missing(self, guests: Guests) -> list[int]:
        nodes = self._nodes
        return [
            node
            for node in range(1, nodes.count)
            if node not in guests.nodes or not set(nodes.ranks_of(node)) <= set(guests.ranks)
        ]

    def _greet(self, guest: socket.socket, guests: Guests, store_port: int) -> None:
        _keep_asking(guest)
        guest.settimeout(HELLO_S)
        try:
            hello = json.loads(read_line(guest))
            if "rank" in hello:
                if hello["rank"] not in range(self._nodes.each, self._nodes.ranks):
                    raise ValueError
                guests.ranks[hello["rank"]] = guest
                write_line(guest, {})
            elif refusal := self._why_not(hello):
                write_line(guest, {"refused": refusal})
                guest.close()
                return
            else:
                guests.nodes[hello["node"]] = guest  # one that was started again takes its place anew
                for rank in self._nodes.ranks_of(hello["node"]):
                    guests.ranks.pop(rank, None)
                write_line(guest, {"store_port": store_port})
            guest.settimeout(None)
        except (OSError, EOFError, ValueError, TypeError, KeyError):
            guest.close()  # whoever it is

    def _why_not(self, hello: dict[str, Any]) -> str | None:
        ours = {"nodes": self._nodes.count, "ranks": self._nodes.ranks}
        theirs = {name: hello[name] for name in ours}
        if theirs != ours:
            return f"node 0 has {ours['nodes']} nodes with {ours['ranks']} ranks, node {hello['node']} {theirs['nodes']} with {theirs['ranks']}: give all the same flags"
        if not 0 < hello["node"] < self._nodes.count:
            return f"there is no node {hello['node']}"
        return None


def knock(nodes: Nodes, hello: dict[str, Any], patience_s: float = PATIENCE_S) -> tuple[socket.socket, dict[str, Any]]:
    """A connection to node 0, as soon as it is there, and its answer."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            sock = socket.create_connection((nodes.address, nodes.port), timeout=HELLO_S)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                where = f"{nodes.address}:{nodes.port}"
                raise RankLost(f"node 0 cannot be reached at {where} for {patience_s:.0f} s: {error}", 1) from None
            time.sleep(RETRY_S)
    try:
        _keep_asking(sock)
        write_line(sock, hello)
        sock.settimeout(None)  # it may be busy with others
        answer = json.loads(read_line(sock))
    except (OSError, EOFError, ValueError) as error:
        sock.close()
        raise _gone(nodes) from error
    if "refused" in answer:
        sock.close()
        raise ConfigFailure(answer["refused"])
    return sock, answer


def own_address(nodes: Nodes) -> str:
    """Ours, on the way to node 0; nothing is sent."""
    try:
        with socket.socket(_family(nodes.address), socket.SOCK_DGRAM) as probe:
            probe.connect((nodes.address, nodes.port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise RankLost(
            f"there is no way to node 0 at {nodes.address}: {error.strerror or error}; "
            "--master-addr must be an address at which all nodes reach it",
            1,
        ) from None


def read_line(sock: socket.socket) -> bytes:
    """Not a byte more; EOFError when the other end is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (byte := sock.recv(1)) or len(line) > LONGEST:
            raise EOFError
        line += byte
    return bytes(line)


def write_line(sock: socket.socket, what: dict[str, Any]) -> None:
    sock.sendall(json.dumps(what).encode() + b"\n")


def _gone(nodes: Nodes) -> EngineFailure:
    return RankLost(f"node 0, at {nodes.address}:{nodes.port}, has ended", 1)


def _keep_asking(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("NODELAY", 1),
        ("KEEPIDLE", 1),
        ("KEEPINTVL", 1),
        ("KEEPCNT", LOST_S - 1),
        ("USER_TIMEOUT", LOST_S * 1000),
    ):
        if (option := getattr(socket, f"TCP_{name}", None)) is not None:  # not every system has all of them
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def _known(name: str, patience_s: float) -> tuple[socket.AddressFamily, str]:
    """The address it stands for, as soon as it does; OSError if it does not for so long."""
    deadline, told = time.monotonic() + patience_s, False
    while True:
        try:
            family, *_, address = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0]
            return family, str(address[0])
        except OSError as error:
            if time.monotonic() > deadline:
                raise
            if not told:
                log.warning("node 0 waits until its --master-addr %s is known: %s", name, error.strerror or error)
                told = True
            time.sleep(RETRY_S)


def _family(address: str) -> socket.AddressFamily:
    try:
        return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    except OSError:
        return socket.AF_INET
