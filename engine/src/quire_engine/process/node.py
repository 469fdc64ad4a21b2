"""A node other than the first: runs its ranks, and ends when the first node has, or one of its ranks.

Whoever ends says why through the connection of the nodes. Nothing is computed here, and no torch is imported.
"""

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable, Sequence

from quire_engine.errors import EngineFailure, RankLost
from quire_engine.process.gate import knock, read_line, write_line
from quire_engine.process.kin import CASCADE_S, Kin
from quire_engine.process.nodes import Nodes

__all__ = ["run_ranks"]

log = logging.getLogger("quire.serve")


def run_ranks(nodes: Nodes, flags: Sequence[str], started: Callable[[], None]) -> None:
    """Until node 0 wants no more; EngineFailure says what went wrong. `started` is called when all ranks run."""
    where = f"{nodes.address}:{nodes.port}"
    log.info("node %d of %d waits for node 0 at %s", nodes.node, nodes.count, where)
    hello = {"node": nodes.node, "nodes": nodes.count, "ranks": nodes.ranks}
    control, answer = knock(nodes, hello)
    kin = Kin()
    try:
        for rank in nodes.ranks_of(nodes.node):
            link, _ = knock(nodes, {"rank": rank})
            kin.start(rank, link, answer["store_port"], flags)
        started()
        log.info("node %d runs ranks %s of the engine at %s", nodes.node, list(nodes.ranks_of(nodes.node)), where)
        _wait_for_end(kin, control, where)
    finally:
        kin.end(0)
        control.close()


def _wait_for_end(kin: Kin, control: socket.socket, where: str) -> None:
    poll = select.poll()
    for descriptor in (*kin.descriptors, control.fileno()):
        poll.register(descriptor, select.POLLIN)
    poll.poll()
    time.sleep(CASCADE_S)  # whoever loses another ends too: the one who was lost shows by now
    ended = sorted(kin.ended(), key=lambda each: each[0])
    if ended and ended[0][0] < 2:  # it said why, or was killed: the others went because of it
        failure = ended[0][1]
        with contextlib.suppress(OSError):
            write_line(control, {"reason": str(failure), "exit_code": failure.exit_code})
        raise failure
    if _is_over(control, where):
        return
    raise ended[0][1] if ended else _unreachable(where)  # half a line, of one that is stuck


def _is_over(control: socket.socket, where: str) -> bool:
    """Did node 0 end because it was told to? EngineFailure if it is lost, or has lost another."""
    try:
        last = read_line(control, CASCADE_S)
    except TimeoutError:
        return False
    except (OSError, EOFError, ValueError):
        raise _unreachable(where) from None
    if reason := last.get("reason"):
        raise _lost(reason)
    return True


def _lost(reason: str) -> EngineFailure:
    return RankLost(f"node 0 has ended: {reason}", 1)


def _unreachable(where: str) -> EngineFailure:
    return RankLost(f"node 0, at {where}, has ended, or cannot be reached any more", 1)
