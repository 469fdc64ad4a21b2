"""A histogram that is added to for every token of every stream.

prometheus_client's own takes two locks and looks through its buckets for each value, which for tokens is a tenth of all
that the API process does. This one is added to by the event loop's thread alone, which also renders it.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

__all__ = ["Tally"]


class Tally(Collector):
    def __init__(self, name: str, help_text: str, buckets: Sequence[float], labels: Mapping[str, str]) -> None:
        self._name, self._help, self._labels = name, help_text, labels
        self._bounds = (*buckets, float("inf"))
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._created = time.time()

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._help, labels=list(self._labels))
        names = map(floatToGoString, self._bounds)
        counts = list(zip(names, accumulate(self._counts), strict=True))
        family.add_metric(list(self._labels.values()), counts, self._sum)
        family.add_sample(self._name + "_created", dict(self._labels), self._created)
        yield family
