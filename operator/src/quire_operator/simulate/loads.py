"""Loads: requests with their sizes and times of arrival, made from a seed or read from a trace. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, pi, sin
from random import Random

__all__ = ["KINDS", "Arrival", "EngineModel", "Load", "generate"]


@dataclass(frozen=True, slots=True)
class Arrival:
    at: float
    prompt: int  # tokens
    output: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineModel:
    """What an engine can do. A request's time is prompt / prefill + output x token time, which grows with the batch."""

    max_num_seqs: int = 16
    kv_tokens: int = 32_768
    prefill_per_s: float = 8000.0
    token_s: float = 0.02  # alone
    crowded: float = 2.0  # times as long in a full batch
    cold_start_s: float = 60.0

    def service_s(self, prompt: int, output: int, running: int) -> float:
        share = running / self.max_num_seqs
        return self.prefill_s(prompt, running) + output * self.token_s * (1 + (self.crowded - 1) * share)

    def prefill_s(self, prompt: int, running: int) -> float:
        return prompt / self.prefill_per_s * (1 + running / self.max_num_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    kind: str
    seconds: float
    engine: EngineModel
    arrivals: tuple[Arrival, ...]
    first: int  # engines that run at the beginning


Rate = Callable[[float], float]  # seconds -> share of the peak


def _diurnal(random: Random, seconds: float) -> Rate:
    phase, floor = random.uniform(0, 2 * pi), random.uniform(0.05, 0.4)
    return lambda t: floor + (1 - floor) * (0.5 + 0.5 * sin(2 * pi * t / seconds + phase)) ** 1.5


def _bursts(random: Random, seconds: float) -> Rate:
    floor, height = random.uniform(0.1, 0.4), random.uniform(0.6, 1.0)
    starts = sorted(random.uniform(0, seconds) for _ in range(random.randint(2, 5)))
    lengths = [random.uniform(120, 600) for _ in starts]
    return lambda t: height if any(s <= t < s + n for s, n in zip(starts, lengths, strict=True)) else floor


def _ramps(random: Random, seconds: float) -> Rate:
    low, begin, rise = random.uniform(0.05, 0.3), random.uniform(0.1, 0.3) * seconds, random.uniform(0.1, 0.4) * seconds
    end = begin + rise + random.uniform(0.05, 0.3) * seconds
    return lambda t: low + (1 - low) * max(0.0, min((t - begin) / rise, 1.0, 1 - (t - end) / rise))


def _long_prompts(random: Random, seconds: float) -> Rate:
    wave = random.uniform(600, 1800)
    return lambda t: 0.55 + 0.45 * sin(2 * pi * t / wave)


KINDS: dict[str, Callable[[Random, float], Rate]] = {
    "diurnal": _diurnal,
    "bursts": _bursts,
    "ramps": _ramps,
    "long prompts": _long_prompts,
}


def generate(seed: int, seconds: float = 3600.0) -> Load:
    """Load number `seed`: kinds take turns; sizes, heights, engines and cold starts vary."""
    random = Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    rate = KINDS[kind](random, seconds)
    long = kind == "long prompts"
    engine = EngineModel(
        max_num_seqs=random.choice((8, 16, 24)),
        kv_tokens=random.choice((32_768, 65_536)),
        prefill_per_s=random.uniform(4000, 12_000),
        token_s=random.uniform(0.015, 0.04),
        crowded=random.uniform(1.3, 3.0),
        cold_start_s=exp(random.uniform(3.402, 5.704)),  # 30 to 300
    )
    prompt, output = (
        (random.uniform(3000, 6000), 120.0) if long else (random.uniform(200, 1200), random.uniform(150, 400))
    )
    places = min(engine.max_num_seqs, engine.kv_tokens / (prompt + output))
    engines = random.uniform(2.0, 8.0)  # busy at the peak
    peak = engines * places / engine.service_s(int(prompt), int(output), int(places))
    arrivals = tuple(_arrivals(random, rate, peak, seconds, prompt, output, engine))
    first = max(1, round(engines * rate(0.0) / 0.8))
    return Load(kind=kind, seconds=seconds, engine=engine, arrivals=arrivals, first=first)


def _arrivals(
    random: Random, rate: Rate, peak: float, seconds: float, prompt: float, output: float, engine: EngineModel
) -> Iterator[Arrival]:
    """A Poisson process thinned to the rate; sizes are exponential, within what an engine takes."""
    at = 0.0
    most = engine.kv_tokens // 4
    while (at := at + random.expovariate(peak)) < seconds:
        if random.random() < rate(at):
            yield Arrival(
                at,
                min(most, 1 + int(random.gammavariate(2.0, prompt / 2))),
                min(most, 1 + int(random.gammavariate(2.0, output / 2))),
            )
