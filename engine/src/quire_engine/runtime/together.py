"""Ranks that compute together: the collectives of ranks.py, over torch.distributed.

Its groups are made here by hand and handed down, so that nothing of the process's own torch.distributed is touched. On
CPUs a sum is gathered and added up in the order of the ranks: the collective's own order depends on how much is summed, and
a row would depend on the batch (decision 9). On GPUs NCCL sums as it likes, unless a request wants the same bits in any batch.
"""

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from quire_engine.runtime.invariance import Invariance
from quire_engine.runtime.ranks import Ranks

__all__ = ["Join", "RankGone", "Together", "open_store"]

Store = Any  # torch's hints name neither stores nor what a group can do
dist: Any = distributed

# Far more than a step takes: who hangs is found out by the pulse, who is lost by its pipe. Only somebody who ends while the
# ranks meet, and has no pulse yet, is waited for so long.
PATIENCE = timedelta(minutes=10)
AT_ONCE = 256  # rows that are gathered on a GPU, whose memory is planned


Join = Callable[[int, Store], "Together"]  # with its rank


class RankGone(Exception):
    """A collective failed, most likely because another rank has ended: whoever started it knows more."""


def open_store(address: str, port: int | None = None) -> Store:
    """Where ranks find each other. Rank 0 opens it at a free port of its address, the others at that one."""
    if port is not None:
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False)
    family = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][0]
    listener = socket.create_server((address, 0), family=family)  # of its own accord it would listen on every address
    port = listener.getsockname()[1]
    return dist.TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


class Together(Ranks):
    def __init__(
        self,
        rank: int,
        store: Store,
        *,
        address: str,
        tensor: int,
        stages: int,
        hidden: int,
        dtype: torch.dtype,
        device: torch.device,
        invariance: Invariance | None = None,
    ) -> None:
        """Every rank has to call this; returns when all have. `hidden` and `dtype` are what stages send each other; `address` is
        ours, where other ranks reach us."""
        super().__init__(tensor, rank % tensor, stages, rank // tensor)
        self._hidden, self._dtype, self._device = hidden, dtype, device
        self._invariance = invariance

        def group(name: str, rank: int, size: int) -> Any:
            return _group(dist.PrefixStore(name, store), rank, size, device, address)

        self._all = group("all", rank, tensor * stages)
        self._stage = group(f"stage {self.stage}", self.place, tensor)

    def sum(self, x: Tensor) -> Tensor:
        if self.tensor == 1:
            return x
        x = x.contiguous()
        if x.is_cuda and not (self._invariance and self._invariance.asked):
            _wait(self._stage.allreduce([x]))
            return x
        for some in torch.split(x, AT_ONCE if x.is_cuda else len(x)):
            parts = [torch.empty_like(some) for _ in range(self.tensor)]
            _wait(self._stage.allgather([parts], [some]))
            some.copy_(parts[0])
            for part in parts[1:]:
                some.add_(part)
        return x

    def gather(self, x: Tensor, width: int) -> Tensor:
        if self.tensor == 1:
            return x
        each = -(-width // self.tensor)
        own = torch.nn.functional.pad(x, (0, each - x.shape[1])).contiguous()  # the last ones have fewer
        parts = [torch.empty_like(own) for _ in range(self.tensor)] if self.place == 0 else []
        options = dist.GatherOptions()
        options.rootRank = 0
        _wait(self._stage.gather([parts] if parts else [], [own], options))
        return torch.cat(parts, dim=1)[:, :width].contiguous() if parts else x

    def hand_out(self, x: Tensor) -> None:
        if self.tensor > 1 and self.stage == 0:
            _wait(self._stage.broadcast(x, 0))

    def enter(self, start: Callable[[], Tensor], rows: int) -> Tensor:
        return start() if self.stage == 0 else self._receive(rows, self.stage - 1)

    def leave(self, finish: Callable[[], Tensor], x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.stage < self.stages - 1:
            self._send(x if residual is None else x + residual, self.stage + 1)
            return self._receive(len(x), self.stages - 1) if self.stage == self.place == 0 else x
        hidden = finish()
        if self.stage > 0 and self.place == 0:
            self._send(hidden, 0)
        return hidden

    def abort(self) -> None:
        """Whoever waits in a collective does not any more, and gets no result. By any thread."""
        for group in (self._stage, self._all):
            group.abort()

    def _send(self, x: Tensor, stage: int) -> None:
        """To the rank in our place of another stage."""
        _wait(self._all.send([x.contiguous()], stage * self.tensor + self.place, 0))

    def _receive(self, rows: int, stage: int) -> Tensor:
        x = torch.empty(rows, self._hidden, dtype=self._dtype, device=self._device)
        _wait(self._all.recv([x], stage * self.tensor + self.place, 0))
        return x


def _group(store: Store, rank: int, size: int, device: torch.device, address: str) -> Any:
    if device.type == "cuda":
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = PATIENCE
        return dist.ProcessGroupNCCL(store, rank, size, options)
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    options._threads = 1
    options._timeout = PATIENCE
    return dist.ProcessGroupGloo(store, rank, size, options)


def _wait(work: Any) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise RankGone(str(error).splitlines()[0]) from error
