"""How nodes find each other: node 0 listens, the others come, each with a connection of its own and one for each rank.

Every connection begins with a line of JSON each way; then a rank's is a link (link.py), and a node's is for last words,
which are lines of JSON, too. The kernel asks each second whether the other machine is there, so that one which has
vanished without a word is known within LOST_S.
"""

import json
import logging
import select
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
        try:
            hello = read_line(guest, HELLO_S)
            if "rank" in hello:
                rank = _number(hello, "rank")
                if rank not in self._expected(guests):
                    raise ValueError
                guests.ranks[rank] = guest
                write_line(guest, {})
            elif refusal := self._why_not(hello, guests):
                write_line(guest, {"refused": refusal})
                guest.close()
                return
            else:
                node = _number(hello, "node")
                for left in (
                    guests.nodes.pop(node, None),
                    *(guests.ranks.pop(r, None) for r in self._nodes.ranks_of(node)),
                ):
                    if left is not None:
                        left.close()
                guests.nodes[node] = guest  # one that has ended and was started again takes its place anew
                write_line(guest, {"store_port": store_port})
            guest.settimeout(None)
        except (OSError, EOFError, ValueError, KeyError):
            guest.close()  # whoever it is

    def _expected(self, guests: Guests) -> set[int]:
        """Ranks of the nodes that are there."""
        return {rank for node in guests.nodes for rank in self._nodes.ranks_of(node)} - set(guests.ranks)

    def _why_not(self, hello: dict[str, Any], guests: Guests) -> str | None:
        ours = {"nodes": self._nodes.count, "ranks": self._nodes.ranks}
        node, theirs = _number(hello, "node"), {name: _number(hello, name) for name in ours}
        if theirs != ours:
            return f"node 0 has {ours['nodes']} nodes with {ours['ranks']} ranks, node {node} {theirs['nodes']} with {theirs['ranks']}: give all the same flags"
        if not 0 < node < self._nodes.count:
            return f"there is no node {node}"
        if node in guests.nodes and not _has_ended(guests.nodes[node]):
            return f"there is a node {node} already: give each machine a --node-rank of its own"
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
        answer = read_line(sock)
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


def read_line(sock: socket.socket, within_s: float | None = None) -> dict[str, Any]:
    """What it says, and not a byte more: ValueError if it is no object, EOFError when the other end is gone, TimeoutError."""
    deadline, line = None if within_s is None else time.monotonic() + within_s, bytearray()
    while not line.endswith(b"\n"):
        if deadline is not None:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            sock.settimeout(left)
        if not (byte := sock.recv(1)) or len(line) > LONGEST:
            raise EOFError
        line += byte
    try:
        said = json.loads(line)
    except RecursionError as error:
        raise ValueError from error
    if not isinstance(said, dict):
        raise ValueError
    return said


def write_line(sock: socket.socket, what: dict[str, Any]) -> None:
    sock.sendall(json.dumps(what).encode() + b"\n")


def _number(said: dict[str, Any], name: str) -> int:
    """JSON knows 1.0 and true, too."""
    number = said[name]
    if type(number) is not int:
        raise ValueError
    return number


def _has_ended(node: socket.socket) -> bool:
    """Or said last words: while others are waited for it has nothing else to say."""
    has_news = select.poll()
    has_news.register(node, select.POLLIN)
    return bool(has_news.poll(0))


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
