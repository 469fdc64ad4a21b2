"""When requests are sent, in seconds from the first, from a seed.

Gaps follow a gamma distribution whose shape is the burstiness: 1 is a Poisson process, less comes in bursts, more is
more even. They are scaled so that the last request goes out when the rate says it must: the load is the one asked for.
"""

import math
import random

__all__ = ["arrivals"]


def arrivals(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """`rate` in requests a second; infinity sends all at once."""
    if math.isinf(rate) or count < 2:
        return [0.0] * count
    choose = random.Random(seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + choose.gammavariate(burstiness, 1.0))
    if times[-1] == 0.0:  # gaps too small for a float: burstiness next to nothing is everything at once
        return times
    scale = (count - 1) / rate / times[-1]
    return [time * scale for time in times]
