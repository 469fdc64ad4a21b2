"""The machines a model is spread over: how many there are, which one this is, and who has which ranks. Pure.

Ranks are dealt out node by node, so that those of a stage, which sum in every layer, stand as close as they can:

    --tensor-parallel-size 4 --pipeline-parallel-size 2 --nnodes 2     node 0: ranks 0 1 2 3     node 1: ranks 4 5 6 7

Node 0 serves. What no flag says, the variables say which LeaderWorkerSet gives its pods.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from quire_api.engine import EngineConfig
from quire_engine.errors import ConfigFailure

__all__ = ["HERE", "Nodes", "nodes_of"]

HERE = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    count: int
    node: int  # this one
    address: str  # of node 0, where all reach it
    port: int
    ranks: int  # on all nodes

    @property
    def each(self) -> int:
        """Ranks of one node."""
        return self.ranks // self.count

    def ranks_of(self, node: int) -> range:
        return range(node * self.each, (node + 1) * self.each)


def nodes_of(config: EngineConfig, environment: Mapping[str, str]) -> Nodes:
    """ConfigFailure if they contradict each other, or something is not said."""
    count = _either(config.nnodes, "LWS_GROUP_SIZE", environment, 1)
    node = _either(config.node_rank, "LWS_WORKER_INDEX", environment, 0)
    nodes_said = _said("--nnodes", config.nnodes, "LWS_GROUP_SIZE", environment, count)
    rank_said = _said("--node-rank", config.node_rank, "LWS_WORKER_INDEX", environment, node)
    ranks = config.tensor_parallel_size * config.pipeline_parallel_size
    if not count or ranks % count:
        fitting = ", ".join(str(n) for n in range(1, ranks + 1) if ranks % n == 0)
        raise ConfigFailure(
            f"{nodes_said} does not divide the {ranks} ranks that --tensor-parallel-size times "
            f"--pipeline-parallel-size make: take one of {fitting}"
        )
    if node >= count:
        raise ConfigFailure(f"{rank_said} is none of {nodes_said}: they go from 0 to {count - 1}")
    address = config.master_addr or environment.get("LWS_LEADER_ADDRESS")
    if count > 1 and not address:
        raise ConfigFailure(f"{nodes_said} without --master-addr: give the address at which all reach node 0")
    own = address if address and count > 1 else HERE
    return Nodes(count=count, node=node, address=own, port=config.master_port, ranks=ranks)


def _either(given: int | None, name: str, environment: Mapping[str, str], otherwise: int) -> int:
    if given is not None:
        return given
    said = environment.get(name)
    if said is None:
        return otherwise
    if not said.isdecimal():
        raise ConfigFailure(f"{name} is {said!r} in the environment, and must be a whole number")
    return int(said)


def _said(flag: str, given: int | None, name: str, environment: Mapping[str, str], value: int) -> str:
    """By the flag, or by the variable that stood in for it."""
    return f"{name}={value} in the environment" if given is None and name in environment else f"{flag} {value}"
