"""How LeaderWorkerSet (v0.7.0) replaces groups: its partition and its number of groups at each step of a roll-out."""

from dataclasses import dataclass

__all__ = ["RollOut"]


@dataclass(slots=True)
class Group:
    updated: bool = False
    ready: bool = True


class RollOut:
    """Of `replicas` groups that serve. Each step is one look of the controller, what the StatefulSet makes of it, and new groups that become ready."""

    def __init__(self, replicas: int, surge: int, unavailable: int) -> None:
        self._replicas, self._surge, self._unavailable = replicas, min(surge, replicas), unavailable
        self._groups = [Group() for _ in range(replicas)]
        self._partition = replicas
        self.serving: list[int] = []  # at each step

    def run(self, steps: int = 100) -> bool:
        """Whether all groups are new and serve at the end, and none is left over."""
        self._follow(self._partition, self._wanted(self._replicas))
        for _ in range(steps):
            self._look()
        return self._partition == 0 and len(self._groups) == self._replicas and all(g.updated for g in self._groups)

    def _wanted(self, unready: int) -> int:
        """A surged group goes as soon as no more are unready than were surged."""
        return self._replicas + (max(0, unready - 1) if unready <= self._surge else self._surge)

    def _look(self) -> None:
        groups = self._groups
        done = self._partition == 0 and len(groups) == self._replicas
        if not done:
            lacking = [i for i in range(self._replicas) if not (groups[i].updated and groups[i].ready)]
            self._follow(self._next_partition(), self._wanted(len(lacking)))
        self.serving.append(sum(group.ready for group in self._groups))
        for group in self._groups:
            group.ready = True

    def _next_partition(self) -> int:
        groups = self._groups
        step = self._unavailable + self._surge - (self._replicas + self._surge - len(groups))
        tail = next((n for n, group in enumerate(reversed(groups)) if not (group.updated and group.ready)), len(groups))
        least = max(0, len(groups) - tail - step)
        partition = least + sum(not group.ready for group in groups[:least])
        for index in range(min(partition, len(groups) - 1), least - 1, -1):
            if groups[index].ready and not groups[index].updated:
                break
            partition = index
        return min(partition, self._partition)

    def _follow(self, partition: int, replicas: int) -> None:
        """As a StatefulSet does: groups from the partition on are new ones."""
        self._partition = partition
        del self._groups[replicas:]
        for index in range(len(self._groups), replicas):
            self._groups.append(Group(updated=index >= partition, ready=False))
        for index in range(partition, replicas):
            if not self._groups[index].updated:
                self._groups[index] = Group(updated=True, ready=False)
