"""How the first rank gets the others together."""

from collections.abc import Callable, Sequence

from quire_engine.errors import EngineFailure
from quire_engine.process.crew import Crew
from quire_engine.process.gate import PATIENCE_S, Gate, Guests
from quire_engine.process.link import Pong
from quire_engine.process.nodes import Nodes
from quire_engine.runtime.together import Join, Together, open_store

__all__ = ["muster"]


def muster(
    nodes: Nodes,
    flags: Sequence[str],
    lost: Callable[[EngineFailure], None] | None,
    join: Join,
    patience_s: float = PATIENCE_S,
) -> tuple[Crew, Together]:
    """Start those of this node with these flags, wait for other nodes, and meet all; `lost` is called, by another thread, when one has ended."""
    gate = Gate(nodes, patience_s) if nodes.count > 1 else None  # first: it says what is wrong with an address
    store, joined = open_store(gate.address if gate else nodes.address), list[Together]()
    guests = gate.admit(store.port, patience_s) if gate else Guests()

    def gone(failure: EngineFailure) -> None:
        if lost is not None:
            lost(failure)
        for ranks in joined:  # whoever waits for it in a collective learns of it
            ranks.abort()

    crew = Crew(nodes.each, store.port, flags, gone, guests)
    try:
        crew.hear(Pong)  # else we would wait for one that could not start
        joined.append(join(0, store))
    except BaseException:
        crew.close()
        raise
    return crew, joined[0]
