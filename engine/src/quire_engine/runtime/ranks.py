"""Who computes a model together, and which part of it each has.

A rank is a process with a device of its own. Stages have layers one after another; the ranks of a stage have the same
layers, and of each matrix and of the heads a part:

    rank      0        1        2        3          rank = stage * tensor + place
    stage     0        0        1        1
    layers    0 1 2    0 1 2    3 4 5    3 4 5
    heads     0 1      2 3      0 1      2 3

The first stage has the vocabulary too, as embedding and as head, each of its ranks some rows: what the last stage makes
comes back to rank 0, which samples. `Ranks` is one process by itself, where all of this is nothing; together.py has the
rest. Layers ask for their parts when they are built, so that no forward pass asks how many ranks there are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from quire_engine.errors import ConfigFailure

__all__ = ["ALONE", "Part", "Ranks", "check_division"]


@dataclass(frozen=True, slots=True)
class Part:
    """Some of a dimension: these ranges of it, one after another."""

    whole: int
    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, size: "int | Part") -> "Part":
        """A number is all of it."""
        return size if isinstance(size, Part) else cls(size, ((0, size),))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Of dimensions that stand one after another in one."""
        ranges: list[tuple[int, int]] = []
        offset = 0
        for part in parts:
            ranges += [(offset + start, offset + stop) for start, stop in part.ranges]
            offset += part.whole
        return cls(offset, tuple(ranges))

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    @property
    def start(self) -> int:
        return self.ranges[0][0]

    @property
    def is_whole(self) -> bool:
        """And in its own order."""
        reached = 0
        for start, stop in self.ranges:
            if start != reached:
                return False
            reached = stop
        return reached == self.whole


class Ranks:
    """The place of this process among all. This class is one that is alone: its parts are whole."""

    def __init__(self, tensor: int = 1, place: int = 0, stages: int = 1, stage: int = 0) -> None:
        self.tensor, self.place = tensor, place
        self.stages, self.stage = stages, stage

    def share(self, count: int, width: int = 1) -> Part:
        """Our things of so many, each so wide; where there are fewer than ranks, several ranks have the same one."""
        if count < self.tensor:
            first, own = count * self.place // self.tensor, 1
        else:
            own = count // self.tensor
            first = own * self.place
        return Part(count * width, ((first * width, (first + own) * width),))

    def rows(self, vocabulary: int) -> Part:
        """Our rows of embedding and head: as many each, the last ones fewer; none beyond the first stage."""
        each = -(-vocabulary // self.tensor)
        stop = min(each * (self.place + 1), vocabulary) if self.stage == 0 else 0
        return Part(vocabulary, ((min(each * self.place, stop), stop),))

    def layers(self, count: int) -> range:
        """Our layers of so many; the later stages have one more if it is not even, for the first has the vocabulary."""
        return range(count * self.stage // self.stages, count * (self.stage + 1) // self.stages)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over the ranks of a stage, which each of them gets; `x` may be overwritten."""
        return x

    def gather(self, x: Tensor, width: int) -> Tensor:
        """[S, own part] -> [S, width] at place 0 of the stage; the others keep their own."""
        return x

    def hand_out(self, x: Tensor) -> None:
        """What place 0 of the first stage has in `x`, the others of the stage have there then."""

    def enter(self, start: Callable[[], Tensor], rows: int) -> Tensor:
        """What a pass of so many rows begins with: what `start` makes, or the stage before has sent."""
        return start()

    def leave(self, finish: Callable[[], Tensor], x: Tensor, residual: Tensor | None = None) -> Tensor:
        """What a pass ends with: what `finish` makes, or x + residual for the next stage. Of a pass over several
        stages only rank 0 gets the result."""
        return finish()


ALONE = Ranks()


def check_division(
    *, tensor: int, stages: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int, layers: int
) -> None:
    """ConfigFailure if a model of these sizes cannot be divided so."""
    flag = f"--tensor-parallel-size {tensor}"

    def divides(count: int) -> bool:
        """Of key-value heads there may be fewer than ranks: each is then kept several times."""
        return not (heads % count or intermediate % count or (kv_heads % count and count % kv_heads))

    if not divides(tensor):
        fitting = [str(count) for count in range(1, heads + 1) if divides(count)]
        raise ConfigFailure(
            f"{flag} does not divide the model's {heads} attention heads, {kv_heads} key-value heads and {intermediate} "
            f"columns of the feed-forward: take {_listed(fitting)}"
        )
    if -(-vocabulary // tensor) * (tensor - 1) >= vocabulary:
        raise ConfigFailure(f"{flag} is too many for a vocabulary of {vocabulary}: lower it")
    if layers < stages:
        raise ConfigFailure(
            f"--pipeline-parallel-size {stages} is more than the model's {layers} layers: take {layers} or fewer"
        )


def _listed(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
