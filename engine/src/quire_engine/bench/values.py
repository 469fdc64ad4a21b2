"""What the flags of `quire bench` take, and the sentence for what they do not."""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import orjson

from quire_engine.bench.statistics import METRICS

__all__ = ["above", "at_least", "goal", "header", "json_object", "metrics", "percents", "rates", "share", "whole"]

Goal = tuple[str, float]


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ArgumentTypeError(f"{text} is no whole number, {least} or more")
        return value

    return parse


def above(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text} is no number over 0")
    return value


def at_least(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise ArgumentTypeError(f"{text} is no number, 0 or more")
    return value


def share(text: str) -> float:
    value = _number(text)
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"{text} is no share, 0 or more and under 1")
    return value


def rates(text: str) -> list[float]:
    """`4`, `inf`, or `1,2,4`."""
    found = [_number(part) for part in text.split(",")]
    if not all(rate > 0 for rate in found):
        raise ArgumentTypeError(f"{text} is no rate: give requests a second, such as 4 or 1,2,4, or inf")
    return found


def percents(text: str) -> list[float]:
    found = [_number(part) for part in text.split(",")]
    if not all(0 <= percent <= 100 for percent in found):
        raise ArgumentTypeError(f"{text} is no list of percentiles, such as 50,90,99")
    return list(dict.fromkeys(found))


def metrics(text: str) -> list[str]:
    found = list(dict.fromkeys(text.split(",")))
    if not set(found) <= set(METRICS):
        raise ArgumentTypeError(f"{text} is no list of {', '.join(METRICS)}")
    return found


def goal(text: str) -> Goal:
    """`ttft:200`, in milliseconds."""
    name, _, limit = text.partition(":")
    value = _number(limit)
    if name not in METRICS or name == "itl" or not 0 < value < math.inf:
        raise ArgumentTypeError(f"{text} is no goal: give ttft, tpot or e2el and milliseconds, such as ttft:200")
    return name, value


def header(text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name or not (name + value).isprintable() or not text.isascii():
        raise ArgumentTypeError(f"{text} is no header: give NAME=VALUE")
    return name.lower(), value


def json_object(text: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ArgumentTypeError(f'{text} is no JSON object, such as {{"top_p": 0.9}}')
    return found


def _number(text: str) -> float:
    """Not a number, which compares with nothing, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
