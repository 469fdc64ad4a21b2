"""Sends the requests of one run when they are due, and holds back what is over the limit of requests at once.

Knows nothing of flags, prompts or files. A request's times begin when it is sent: what it waits here, for its turn under
a limit, is not the server's.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from quire_engine.bench.client import Client
from quire_engine.bench.statistics import Failure, Outcome
from quire_engine.bench.workload import Prompt

__all__ = ["Load", "Question", "send"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """How a prompt becomes the body of a request."""

    model: str
    chat: bool
    ignore_eos: bool
    temperature: float
    extra: dict[str, Any]

    def body(self, prompt: Prompt) -> bytes:
        content: Any = prompt.content if isinstance(prompt.content, str) else list(prompt.content)
        asked = {"messages": [{"role": "user", "content": content}]} if self.chat else {"prompt": content}
        return orjson.dumps(
            {
                "model": self.model,
                **asked,
                "max_tokens": prompt.output_tokens,
                "temperature": self.temperature,
                **({"ignore_eos": True} if self.ignore_eos else {}),
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.extra,
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a run was, once it is over."""

    outcomes: list[Outcome | Failure]
    duration_s: float  # from the first request to the end of the last answer
    client_cpu_s: float  # of this process


async def send(
    client: Client,
    path: str,
    bodies: Sequence[bytes],
    times_s: Sequence[float],
    at_once: int | None,
    done: Callable[[], object] = lambda: None,
) -> Load:
    """`times_s` in rising order, from now; `done` is called at the end of each request."""
    turn = contextlib.nullcontext() if at_once is None else asyncio.Semaphore(at_once)

    async def one(body: bytes) -> Outcome | Failure:
        async with turn:
            outcome = await client.ask(path, body)
        done()
        return outcome

    begun, cpu = time.perf_counter(), time.process_time()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for due, body in zip(times_s, bodies, strict=True):
            wait = begun + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(one(body)))
    return Load(
        outcomes=[task.result() for task in tasks],
        duration_s=time.perf_counter() - begun,
        client_cpu_s=time.process_time() - cpu,
    )
