"""The YAML files of `quire up`: what they say, and what has changed. Knows nothing of engines.

A file that has become invalid changes nothing: what runs goes on, and the mistake is said once. A change is taken when the
files have been at rest for a moment, because an editor may write them in pieces.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quire_api.deployment import LLMDeployment
from quire_api.errors import InvalidInput
from quire_operator.documents import files_of, load
from quire_operator.reconcile import ResourceKey

__all__ = ["Difference", "Files", "compare"]

LOOK_S = 0.3

Resources = Mapping[ResourceKey, LLMDeployment]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    put: tuple[LLMDeployment, ...]  # new, or changed
    removed: tuple[ResourceKey, ...]


def compare(before: Resources, now: Resources) -> Difference:
    put = tuple(resource for key, resource in now.items() if before.get(key) != resource)
    return Difference(put=put, removed=tuple(sorted(before.keys() - now.keys())))


class Files:
    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self.resources: Resources = {}  # what they said last

    def read(self) -> Difference:
        """What has changed since the last time; InvalidInput, and then nothing is taken."""
        empty = any(Path(path).is_dir() for path in self._paths) and bool(self.resources)
        found = load(self._paths, may_be_none=empty)
        _check_names(found)
        now = {ResourceKey(d.metadata.namespace, d.metadata.name): d for d in found}
        difference = compare(self.resources, now)
        self.resources = now
        return difference

    async def follow(self, take: Callable[[Difference], None], complain: Callable[[InvalidInput], None]) -> None:
        """Read them again whenever they have changed, for ever."""
        taken = seen = self._signature()
        while True:
            await asyncio.sleep(LOOK_S)
            before, seen = seen, self._signature()
            if seen == taken or seen != before:
                continue
            taken = seen
            try:
                difference = self.read()
            except InvalidInput as error:
                complain(error)
                continue
            if difference.put or difference.removed:
                take(difference)

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        """Differs when a file does."""
        signature = []
        try:
            for file in files_of(self._paths):
                stat = file.stat()
                signature.append((str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except (InvalidInput, OSError):  # one is not there, or no longer
            signature.append(("missing", 0, 0, 0))
        return tuple(signature)


def _check_names(deployments: list[LLMDeployment]) -> None:
    """One machine has one namespace, and the router one name for each model."""
    names = [deployment.metadata.name for deployment in deployments]
    problems = [f"{name}: two resources have this name; rename one" for name in _twice(names)]
    models = [name for deployment in deployments for name in deployment.model_names]
    problems += [f"{name}: two resources serve this model name; rename one" for name in _twice(models)]
    if problems:
        raise InvalidInput(problems)


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})
