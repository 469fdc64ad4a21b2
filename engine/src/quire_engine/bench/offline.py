"""`quire bench throughput` and `quire bench latency`: the engine in this process, without HTTP.

Prompts come as token ids but for ShareGPT's, and no two are the same: nothing is found in a prefix cache that the
workload did not put there. The flags of the engine are those of `quire serve`.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import trange

from quire_api.engine import EngineConfig
from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser, add_flags, config_from
from quire_engine.bench.dataset import add_dataset_flags, prompts_of
from quire_engine.bench.statistics import percentile
from quire_engine.bench.values import whole
from quire_engine.bench.workload import Ids, Prompt
from quire_engine.errors import EngineFailure, RequestRejected
from quire_engine.params import SamplingParams

if TYPE_CHECKING:
    from quire_engine.llm import LLM

__all__ = ["latency", "throughput"]

PERCENTS = (10, 25, 50, 75, 90, 99)
WARM_UP = Prompt((1, 2, 3), 2)


def throughput(argv: list[str]) -> int:
    parser = _parser("throughput", "Generate the answers to many prompts that are there at once.")
    add_dataset_flags(parser, 1000)
    flags = parser.parse_args(argv)
    config = config_from(flags)
    prompts = prompts_of(flags, flags.num_prompts, False, config.seed)
    return _run("throughput", config, flags, lambda llm: _throughput(llm, prompts))


def latency(argv: list[str]) -> int:
    parser = _parser("latency", "Generate the answers to one batch of prompts, several times.")
    for name, least, default, text in (
        ("batch-size", 1, 8, "prompts at once"),
        ("input-len", 1, 32, "tokens of a prompt"),
        ("output-len", 1, 128, "tokens of an answer"),
        ("num-iters", 1, 30, "measured batches"),
        ("num-iters-warmup", 0, 10, "batches before those"),
        ("vocab-size", 8, 1000, "token ids lie under this; not more than the model has"),
    ):
        parser.add_argument(
            f"--{name}", type=whole(least), default=default, metavar="N", help=f"{text} (default: {default})"
        )
    flags = parser.parse_args(argv)
    config = config_from(flags)
    return _run("latency", config, flags, lambda llm: _latency(llm, flags, random.Random(config.seed)))


def _parser(name: str, description: str) -> FlagParser:
    parser = FlagParser(
        prog=f"quire bench {name}",
        usage=f"quire bench {name} --model MODEL [--flags]",
        description=description,
        allow_abbrev=False,
    )
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the numbers as JSON")
    parser.add_argument("--skip-tokenizer-init", action="store_true", help="make token ids alone, and no text of them")
    add_flags(parser)
    return parser


def _run(name: str, config: EngineConfig, flags: argparse.Namespace, measure: Callable[["LLM"], dict[str, Any]]) -> int:
    if flags.output_json is not None and not flags.output_json.parent.is_dir():
        raise InvalidInput([f"--output-json: there is no folder {flags.output_json.parent}"])

    from quire_engine.llm import LLM

    try:
        options = {field: getattr(config, field) for field in config.model_fields_set}
        result = measure(LLM(**options, skip_tokenizer_init=flags.skip_tokenizer_init))
        if flags.output_json is not None:
            flags.output_json.write_text(json.dumps(result, indent=2) + "\n")
    except EngineFailure as failure:
        print(f"quire bench {name}: {failure}", file=sys.stderr)
        return failure.exit_code
    except RequestRejected as refusal:
        raise InvalidInput([str(refusal)]) from None
    return 0


def _throughput(llm: "LLM", prompts: list[Prompt]) -> dict[str, Any]:
    _generate(llm, [WARM_UP])
    started = time.perf_counter()
    read, written = _generate(llm, prompts, progress=True)
    elapsed = time.perf_counter() - started
    result = {
        "num_requests": len(prompts),
        "elapsed_time": elapsed,
        "total_input_tokens": read,
        "total_output_tokens": written,
        "requests_per_second": len(prompts) / elapsed,
        "output_tokens_per_second": written / elapsed,
        "tokens_per_second": (read + written) / elapsed,
    }
    print(f"requests          {len(prompts)} in {elapsed:.2f} s")
    print(f"requests/s        {result['requests_per_second']:.2f}")
    print(f"output tokens/s   {result['output_tokens_per_second']:.2f}")
    print(f"total tokens/s    {result['tokens_per_second']:.2f}")
    return result


def _latency(llm: "LLM", flags: argparse.Namespace, choose: random.Random) -> dict[str, Any]:
    seconds: list[float] = []
    material = Ids(flags.vocab_size)
    for _ in trange(flags.num_iters_warmup + flags.num_iters, unit="batches", disable=None, leave=False):
        batch = [Prompt(material.write(choose, flags.input_len), flags.output_len) for _ in range(flags.batch_size)]
        started = time.perf_counter()
        _generate(llm, batch)
        seconds.append(time.perf_counter() - started)
    measured = sorted(seconds[flags.num_iters_warmup :])
    mean = sum(measured) / len(measured)
    percentiles = {percent: percentile(measured, percent) for percent in PERCENTS}
    print(f"batches           {len(measured)} of {flags.batch_size} × ({flags.input_len} + {flags.output_len} tokens)")
    print(f"mean              {mean:.4f} s")
    for percent, value in percentiles.items():
        print(f"p{percent:<16} {value:.4f} s")
    return {
        "avg_latency": mean,
        "latencies": seconds[flags.num_iters_warmup :],
        "percentiles": {str(percent): value for percent, value in percentiles.items()},
    }


def _generate(llm: "LLM", prompts: list[Prompt], progress: bool = False) -> tuple[int, int]:
    """Tokens read, tokens written."""
    outputs = llm.generate(
        [each.content if isinstance(each.content, str) else {"prompt_token_ids": each.content} for each in prompts],
        [SamplingParams(temperature=0.0, max_tokens=each.output_tokens, ignore_eos=True) for each in prompts],
        use_tqdm=progress and sys.stderr.isatty(),
    )
    read = sum(len(output.prompt_token_ids) for output in outputs)
    return read, sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
