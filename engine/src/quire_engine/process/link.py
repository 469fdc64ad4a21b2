"""Messages over a socket pair: a length of four bytes, then a pickle.

Pickle is safe where both ends are our own processes and the socket has no name; ranks may be on other machines, and read
with care (wary.py). Many events are one message, numbers travel as arrays.
"""

import pickle
import socket
import struct
import threading
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from quire_engine.core.request import Request, RequestId
from quire_engine.core.scheduler import Load
from quire_engine.core.step import Finish, StepPlan, TokenLogprob
from quire_engine.runtime.sizing import Sizes

__all__ = [
    "HEADER", "Allotted", "Embedded", "Ended", "Expect", "Link", "Loaded", "Message", "Ping", "Pong", "Ready", "Report",
    "Rows", "Step", "Work", "pack",
]  # fmt: skip

HEADER = struct.Struct("!I")


@dataclass(slots=True, kw_only=True)
class Work:
    """To the engine: what is new since the last message."""

    requests: list[Request] = field(default_factory=list)
    aborts: list[RequestId] = field(default_factory=list)
    to_embed: dict[RequestId, list[list[int]]] = field(default_factory=dict)  # texts of one request, as token ids


@dataclass(slots=True)
class Ping:
    """To the engine: are you there? It answers between steps."""


@dataclass(slots=True)
class Pong:
    """From the engine: yes."""


@dataclass(slots=True)
class Expect:
    """From the engine: what is under way takes about so many seconds."""

    seconds: float


@dataclass(slots=True, kw_only=True)
class Ready:
    """From the engine, once: it has loaded, and computed a token."""

    max_model_len: int
    num_blocks: int  # 0: it makes embeddings, and keeps nothing
    block_size: int
    max_num_seqs: int
    dtype: str
    device: str


@dataclass(slots=True, kw_only=True)
class Report:
    """From the engine, after a step: the `Events` of core/step.py, numbers as arrays, and what became of new requests."""

    ids: "array[int]"
    tokens: "array[int]"
    finished: dict[int, Finish]
    logprobs: dict[int, TokenLogprob]
    prompt_logprobs: dict[RequestId, list[TokenLogprob]]
    cached: dict[RequestId, int]
    rejected: dict[RequestId, tuple[str, str | None]]  # message and parameter at fault
    load: Load
    started: float  # of the step, by time.monotonic
    seconds: float  # it took
    num_tokens: int  # it computed
    least_s: float  # that the one waited for would take at the device's limits; 0: none, or these are not known


@dataclass(slots=True, kw_only=True)
class Embedded:
    """From the engine: vectors of float32, one after another, or why there are none."""

    vectors: "dict[RequestId, list[array[float]]]"
    rejected: dict[RequestId, tuple[str, str | None]]


@dataclass(slots=True, kw_only=True)
class Ended:
    """From the engine, last: it cannot go on, and why."""

    exit_code: int
    reason: str


# Between rank 0 and the others (crew.py, rank.py):


@dataclass(slots=True, kw_only=True)
class Loaded:
    """From a rank, once: it has its part of the weights."""

    free_bytes: int  # that are left to it


@dataclass(slots=True, kw_only=True)
class Allotted:
    """To a rank, once: how much memory everyone takes for what."""

    sizes: Sizes


@dataclass(slots=True, kw_only=True)
class Step:
    """To a rank: run it."""

    plan: StepPlan


@dataclass(slots=True, kw_only=True)
class Rows:
    """To a rank of the first stage: compute the logits of so many rows of hidden states."""

    count: int


Message = Work | Ping | Pong | Expect | Ready | Report | Embedded | Ended | Loaded | Allotted | Step | Rows


def pack(message: Message) -> bytes:
    body = pickle.dumps(message, protocol=5)
    return HEADER.pack(len(body)) + body


class Link:
    """The engine's end: blocking. One thread receives, any may send."""

    def __init__(self, sock: socket.socket, loads: Callable[[bytes], Message] = pickle.loads) -> None:
        self._sock = sock
        self._loads = loads
        self._buffer = bytearray()
        self._sending = threading.Lock()

    def send(self, message: Message) -> None:
        self.write(pack(message))

    def write(self, data: bytes) -> None:
        """A message, or several, as packed."""
        with self._sending:
            self._sock.setblocking(True)
            self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()

    def receive(self, wait: bool) -> list[Message]:
        """What has come, at least one message if `wait`; EOFError when the other end is gone."""
        self._sock.setblocking(wait)
        while True:
            try:
                data = self._sock.recv(1 << 18)
            except BlockingIOError:
                return self._take()
            if not data:
                raise EOFError
            self._buffer += data
            if messages := self._take():
                return messages

    def _take(self) -> list[Message]:
        messages: list[Message] = []
        while len(self._buffer) >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer)
            end = HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(self._loads(bytes(self._buffer[HEADER.size : end])))
            del self._buffer[:end]
        return messages
