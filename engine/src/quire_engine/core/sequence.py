"""A request on its way: its tokens, how far they are computed, where they live.

The one mutable record of the core. Only the scheduler changes it, and its status only by `become`.

    num_computed <= num_tokens = len(tokens) + num_in_flight <= max_length

`num_in_flight` counts tokens that a launched step will sample: they have a position and a place in the
KV cache, but no id yet. This is what lets step N+1 be scheduled before step N has come back.
"""

from enum import Enum, auto

from quire_engine.core.blocks import Prefix
from quire_engine.core.request import Request
from quire_engine.core.stops import StopMatcher

__all__ = ["NEVER", "Sequence", "Status"]

NEVER = (-1, -1)  # free blocks, and blocks of prompts that could be found, when it was last refused admission


class Status(Enum):
    FOLLOWING = auto()  # its leader computes the prompt for both
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.FOLLOWING: frozenset({Status.WAITING, Status.FINISHED}),  # the prompt is there, or will not be; aborted
    Status.WAITING: frozenset({Status.RUNNING, Status.FINISHED}),  # admitted; aborted, or ended by a token in flight
    Status.RUNNING: frozenset({Status.WAITING, Status.FINISHED}),  # preempted; ended
    Status.FINISHED: frozenset(),
}


class Sequence:
    __slots__ = (
        "blocks", "followers", "has_begun", "host_blocks", "leader", "max_length", "num_computed", "num_found", "num_in_flight",
        "num_prompt", "num_registered", "num_scored", "prefix", "prompt_ready", "rank", "refused_at", "request", "root", "slot",
        "status", "stops", "tokens",
    )  # fmt: skip

    def __init__(self, request: Request, max_length: int, rank: tuple[int, int], status: Status) -> None:
        self.request = request
        self.rank = rank  # lower goes first: priority, then arrival
        self.status = status
        self.max_length = max_length  # tokens, prompt and output
        self.tokens: list[int] = list(request.prompt)
        self.num_prompt = len(request.prompt)
        self.num_in_flight = 0
        self.num_computed = 0
        self.stops = StopMatcher(request.params.stop) if request.params.stop else None

        self.slot: int | None = None
        self.blocks: list[int] = []
        self.host_blocks: list[int] = []  # what was computed before it was swapped out
        self.refused_at = NEVER  # with as many free blocks and others' prompts to be found it need not be asked again

        self.root = self.prefix = Prefix(None, request.prefix_domain)
        self.num_registered = 0  # of its blocks; `prefix` is the chain of these
        self.num_found: int | None = None  # tokens which the prefix cache had at the first admission
        self.has_begun = False  # a step of it was committed
        self.num_scored = 0  # tokens of the prompt whose log probabilities were reported

        self.leader: Sequence | None = None  # while its blocks can be shared
        self.prompt_ready = False  # the blocks hold all of the prompt
        self.followers: list[Sequence] = []

    @property
    def num_tokens(self) -> int:
        return len(self.tokens) + self.num_in_flight

    @property
    def num_uncomputed(self) -> int:
        """Tokens still to compute; none once the last allowed token is known or on its way."""
        num_tokens = len(self.tokens) + self.num_in_flight
        return 0 if num_tokens >= self.max_length else num_tokens - self.num_computed

    def become(self, status: Status) -> None:
        if status not in TRANSITIONS[self.status]:
            raise AssertionError(f"request {self.request.id}: {self.status.name} cannot become {status.name}")
        self.status = status
