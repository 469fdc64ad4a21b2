"""A fuzzer of a running server: `fuzz` sends requests at random, some of which leave at a random moment, and judges each answer."""

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fakes.requests import a_request
from fakes.serving import Running, children

__all__ = ["Outcome", "fuzz", "growth", "metric", "resident", "settled"]

AT_ONCE = 12
PATIENCE_S = 60.0


@dataclass
class Outcome:
    seen: Counter[str] = field(default_factory=Counter)  # by status, or how it left
    wrong: list[str] = field(default_factory=list)
    resident: list[list[int]] = field(default_factory=list)  # KiB of each process, at equal distances

    def count(self, what: str) -> None:
        self.seen[what] += 1


def fuzz(server: Running, number: int, seed: int, samples: int = 40) -> Outcome:
    return asyncio.run(_fuzz(server, number, random.Random(seed), samples))


async def _fuzz(server: Running, number: int, dice: random.Random, samples: int) -> Outcome:
    outcome, left = Outcome(), iter(range(number))
    processes = [server.process.pid, *children(server.process.pid)[:1]]

    async def work() -> None:
        for i in left:
            if i % max(1, number // samples) == 0:
                outcome.resident.append([resident(pid) for pid in processes])
            path, body = a_request(dice)
            leaves_after = (
                dice.choice([0.0, dice.random() * 0.02, dice.random() * 0.3]) if dice.random() < 0.15 else None
            )
            cut = dice.randrange(len(body) + 1) if leaves_after is not None and dice.random() < 0.3 else len(body)
            try:
                async with asyncio.timeout(leaves_after if leaves_after is not None else PATIENCE_S):
                    problem = await _ask(server.port, path, body, cut, outcome)
            except TimeoutError:
                problem = None if leaves_after is not None else f"no answer in {PATIENCE_S:g} s"
                outcome.count("left" if problem is None else "hung")
            except OSError as error:
                problem = f"{type(error).__name__}: {error}"
            if problem is not None:
                outcome.wrong.append(f"request {i}, {path} {body[:300]!r}: {problem}")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return outcome


async def _ask(port: int, path: str, body: bytes, cut: int, outcome: Outcome) -> str | None:
    """What is wrong with the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:cut])
        answer = await reader.read(-1)
    finally:
        writer.transport.abort()
    head_bytes, _, rest = answer.partition(b"\r\n\r\n")
    if not head_bytes:
        return "the connection was closed without an answer"
    status = int(head_bytes.split()[1])
    outcome.count(str(status))
    if b"text/event-stream" in head_bytes:
        return _problem_of_stream(_unchunked(rest))
    answer_json = json.loads(rest)
    if status == 200:
        return None if isinstance(answer_json, dict) else "an answer that is no object"
    error = answer_json.get("error", {})
    if set(error) != {"message", "type", "param", "code"} or error["code"] != status or not error["message"]:
        return f"{status} in an odd shape: {answer_json}"
    return f"{status}: {error['message']}" if status >= 500 and status != 503 else None


def _problem_of_stream(data: bytes) -> str | None:
    events = [line[6:] for line in data.split(b"\n\n") if line]
    if events[-1:] == [b"[DONE]"]:
        for event in events[:-1]:
            json.loads(event)
        return None
    error = json.loads(events[-1]).get("error", {}) if events else {}
    return None if error.get("code") == 400 else f"the stream ended with {events[-1:]!r}"


def _unchunked(data: bytes) -> bytes:
    pieces = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(data[:length])
        data = data[length + 2 :]
    return b"".join(pieces)


# ---------------------------------------------------------------------- what is left of it


def metric(server: Running, name: str) -> float:
    lines = server.request("GET", "/metrics")[2].decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + "{"))


def settled(server: Running, seconds: float = 30) -> dict[str, float]:
    """What is still held once everybody has left; all zero, or whatever it was when the time was over."""
    names = (
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "quire_requests_inside",
    )
    deadline = time.monotonic() + seconds
    while True:
        held = {name: metric(server, name) for name in names}
        if not any(held.values()) or time.monotonic() > deadline:
            return held
        time.sleep(0.05)


def resident(pid: int) -> int:
    """KiB of memory."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


def growth(samples: list[int]) -> float:
    """Of the second half: what a straight line through it gains from its begin to its end."""
    half = samples[len(samples) // 2 :]
    middle, mean = (len(half) - 1) / 2, sum(half) / len(half)
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(half)) / sum(
        (x - middle) ** 2 for x in range(len(half))
    )
    return slope * (len(half) - 1)
