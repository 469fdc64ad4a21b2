"""`quire bench serve`: flags -> prompts -> runs, one for each rate -> a table, a JSON file, a plot.

Every run asks what no run has asked before, so that a server's prefix cache finds only what the workload means it to.
"""

import argparse
import asyncio
import os
import resource
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import uvloop
from tqdm import tqdm

from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser
from quire_engine.bench.arrivals import arrivals
from quire_engine.bench.client import Address, Client, Unreachable
from quire_engine.bench.dataset import add_dataset_flags, prompts_of
from quire_engine.bench.load import Question, send
from quire_engine.bench.plot import plot
from quire_engine.bench.report import Run, document, table
from quire_engine.bench.statistics import Failure, summarise
from quire_engine.bench.values import above, at_least, goal, header, json_object, metrics, percents, rates, whole
from quire_engine.bench.workload import Prompt

__all__ = ["serve"]

ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}


def serve(argv: list[str]) -> int:
    flags = _parser().parse_args(argv)
    address = Address.of(flags.base_url)
    for path in (flags.save_result, flags.plot):
        if path is not None and not path.parent.is_dir():
            raise InvalidInput([f"{path}: there is no folder {path.parent}"])
    prompts = prompts_of(
        flags,
        flags.num_prompts * len(flags.request_rate) + flags.num_warmups,
        flags.backend == "openai-chat",
        flags.seed,
    )
    _raise_file_limit()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            model, runs = runner.run(_measure(flags, address, prompts))
    except Unreachable as failure:
        print(f"quire bench serve: {failure}", file=sys.stderr)
        return 1
    if flags.save_result is not None:
        flags.save_result.write_bytes(orjson.dumps(_result(flags, model, runs), option=orjson.OPT_INDENT_2) + b"\n")
    if flags.plot is not None:
        title = f"{model}: {flags.dataset_name}, {flags.num_prompts} requests each"
        flags.plot.write_text(plot(title, runs, flags.percentile_metrics))
    return 0 if any(run.summary.completed for run in runs) else 1


async def _measure(flags: argparse.Namespace, address: Address, prompts: list[Prompt]) -> tuple[str, list[Run]]:
    client = Client(address, _headers(flags.header), flags.request_timeout)
    model = flags.model or await _first_model(client)
    question = Question(
        model=model,
        chat=flags.backend == "openai-chat",
        ignore_eos=flags.ignore_eos,
        temperature=flags.temperature,
        extra=flags.extra_body,
    )
    path = flags.endpoint or ENDPOINTS[flags.backend]
    bodies = [question.body(prompt) for prompt in prompts]
    warm_up = await send(
        client, path, bodies[len(bodies) - flags.num_warmups :], [0.0] * flags.num_warmups, flags.max_concurrency
    )
    for reason in {outcome.reason for outcome in warm_up.outcomes if isinstance(outcome, Failure)}:
        print(f"quire bench serve: while warming up: {reason}", file=sys.stderr)
    runs: list[Run] = []
    for number, rate in enumerate(flags.request_rate):
        part = slice(number * flags.num_prompts, (number + 1) * flags.num_prompts)
        times = arrivals(flags.num_prompts, rate, flags.burstiness, flags.seed)
        with tqdm(total=flags.num_prompts, unit="requests", disable=None, dynamic_ncols=True, leave=False) as bar:
            load = await send(client, path, bodies[part], times, flags.max_concurrency, bar.update)
        run = Run(
            request_rate=rate,
            max_concurrency=flags.max_concurrency,
            summary=summarise(load.outcomes, load.duration_s, flags.metric_percentiles, dict(flags.goodput)),
            client_cpu_s=load.client_cpu_s,
        )
        print(("\n" if runs else "") + table(run, flags.percentile_metrics), flush=True)
        runs.append(run)
    client.close()
    return model, runs


async def _first_model(client: Client) -> str:
    models = await client.get("/v1/models")
    try:
        return str(models["data"][0]["id"])
    except (LookupError, TypeError):
        raise Unreachable(f"{client.address}/v1/models lists no model: name one with --model") from None


def _headers(given: Sequence[tuple[str, str]]) -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {**({"authorization": f"Bearer {key}"} if key else {}), **dict(given)}


def _result(flags: argparse.Namespace, model: str, runs: list[Run]) -> dict[str, Any]:
    shown = {
        name: [str(rate) for rate in value]
        if name == "request_rate"
        else str(value)
        if isinstance(value, Path)
        else value
        for name, value in vars(flags).items()
        if name != "header"  # may hold a key
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_id": model,
        "options": shown,
        "runs": [document(run) for run in runs],
    }


def _raise_file_limit() -> None:
    """Each request that is in flight is a socket."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="quire bench serve",
        usage="quire bench serve --base-url http://HOST:PORT [--flags]",
        description="Measure a server that speaks OpenAI's API, with streamed answers. OPENAI_API_KEY is sent if it is set.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", metavar="URL", help="(default: http://127.0.0.1:8000)")
    add("--backend", choices=list(ENDPOINTS), default="openai", help="completions or chat (default: openai)")
    add("--endpoint", metavar="PATH", help="(default: /v1/completions or /v1/chat/completions)")
    add("--model", metavar="NAME", help="(default: the first that the server lists)")
    add("--request-rate", type=rates, default=[float("inf")], metavar="X[,X...]",
        help="requests a second; several are one run each (default: inf, all at once)")  # fmt: skip
    add("--burstiness", type=above, default=1.0, metavar="X",
        help="shape of the gaps: 1 is a Poisson process, less comes in bursts (default: 1)")  # fmt: skip
    add(
        "--max-concurrency",
        type=whole(1),
        metavar="N",
        help="most requests in flight; with the rate inf, so many users",
    )
    add("--num-warmups", type=whole(0), default=1, metavar="N", help="requests before the first run (default: 1)")
    add("--seed", type=whole(0), default=0, metavar="N", help="of prompts, lengths and arrivals (default: 0)")
    add("--ignore-eos", action="store_true", help="ask for answers of full length")
    add("--temperature", type=at_least, default=0.0, metavar="X", help="(default: 0, greedy)")
    add("--extra-body", type=json_object, default={}, metavar="JSON", help="more fields of each request")
    add("--header", type=header, nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="of each request")
    add("--request-timeout", type=above, default=3600.0, metavar="S", help="seconds to an answer's end (default: 3600)")
    add("--goodput", type=goal, nargs="+", default=[], metavar="NAME:MS",
        help="count the requests that keep all of these: ttft:200 tpot:50 e2el:5000")  # fmt: skip
    add("--percentile-metrics", type=metrics, default=metrics("ttft,tpot,itl,e2el"), metavar="NAME[,NAME...]",
        help="what is shown and drawn (default: ttft,tpot,itl,e2el)")  # fmt: skip
    add("--metric-percentiles", type=percents, default=[99.0], metavar="N[,N...]", help="(default: 99)")
    add("--save-result", type=Path, metavar="FILE", help="write the numbers as JSON")
    add("--plot", type=Path, metavar="FILE", help="draw latency against load as SVG, with several rates")
    add_dataset_flags(parser, 1000)
    return parser
