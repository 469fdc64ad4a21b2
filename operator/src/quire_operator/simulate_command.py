"""`quire simulate`: what the autoscaler would make of a load, and what HPA would.

The load is a trace of requests, a JSON object a line: {"at": seconds, "prompt": tokens, "output": tokens}.
"""

import json
from pathlib import Path

from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser
from quire_operator.documents import load
from quire_operator.planner.scaling import policy_of
from quire_operator.simulate.drawing import draw
from quire_operator.simulate.fleet import Outcome, Scaler, simulate
from quire_operator.simulate.loads import Arrival, EngineModel, Load
from quire_operator.simulate.policies import builtin, hpa, kv_use, queue_length

__all__ = ["read_trace", "run"]


def run(argv: list[str]) -> int:
    """Print what was decided and why, then a line for each policy."""
    defaults = EngineModel()
    parser = FlagParser(
        prog="quire simulate", description="Replay a load on the autoscaler, in simulated time.", allow_abbrev=False
    )
    parser.add_argument(
        "-f", "--file", required=True, metavar="FILE", help="a YAML file with one resource in mode Builtin"
    )
    parser.add_argument(
        "--trace", required=True, type=Path, help='requests, a line each: {"at": 0.5, "prompt": 300, "output": 80}'
    )
    parser.add_argument("--plot", type=Path, help="write an SVG there")
    parser.add_argument(
        "--cold-start",
        type=float,
        default=defaults.cold_start_s,
        help="seconds until an engine is ready (default: %(default)s)",
    )
    parser.add_argument(
        "--kv-tokens",
        type=int,
        default=defaults.kv_tokens,
        help="tokens that its KV cache holds (default: %(default)s)",
    )
    parser.add_argument(
        "--prefill-rate",
        type=float,
        default=defaults.prefill_per_s,
        help="prompt tokens a second (default: %(default)s)",
    )
    parser.add_argument(
        "--token-time", type=float, default=defaults.token_s, help="seconds a token takes, alone (default: %(default)s)"
    )
    parser.add_argument(
        "--crowded", type=float, default=defaults.crowded, help="times as long in a full batch (default: %(default)s)"
    )
    chosen = parser.parse_args(argv)
    deployment, *more = load([chosen.file])
    if more or deployment.spec.autoscaling.mode != "Builtin":
        raise InvalidInput([f"{chosen.file}: give one resource with spec.autoscaling.mode: Builtin"])
    policy = policy_of(deployment)
    engine = EngineModel(
        max_num_seqs=deployment.spec.engine.max_num_seqs,
        kv_tokens=chosen.kv_tokens,
        prefill_per_s=chosen.prefill_rate,
        token_s=chosen.token_time,
        crowded=chosen.crowded,
        cold_start_s=chosen.cold_start,
    )
    arrivals = read_trace(chosen.trace)
    what = Load(kind="trace", seconds=arrivals[-1].at + 1, engine=engine, arrivals=arrivals, first=policy.least)
    least = max(1, policy.least)  # HPA does not go to zero
    scalers: dict[str, Scaler] = {
        "Builtin": builtin(policy),
        "HPA, queue": hpa(queue_length, policy.waiting_per_replica, least, policy.most),
        "HPA, KV use": hpa(kv_use, policy.kv_usage, least, policy.most),
    }
    outcomes = {name: simulate(what, scaler) for name, scaler in scalers.items()}
    _print(outcomes)
    if chosen.plot is not None:
        chosen.plot.write_text(draw(str(chosen.trace), what, {name: o.steps for name, o in outcomes.items()}))
    return 0


def read_trace(path: Path) -> tuple[Arrival, ...]:
    """In order of arrival; InvalidInput names the first line that is none."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput([f"{path}: cannot be read: {error}"]) from None
    arrivals = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
            arrival = Arrival(float(said["at"]), int(said["prompt"]), int(said["output"]))
        except (ValueError, KeyError, TypeError):
            arrival = None
        if arrival is None or not (0 <= arrival.at < 1e9 and arrival.prompt > 0 and arrival.output > 0):
            raise InvalidInput(
                [
                    f'{path}:{number}: expected {{"at": seconds, "prompt": tokens, "output": tokens}}, each above 0, not {line[:80]}'
                ]
            )
        arrivals.append(arrival)
    if not arrivals:
        raise InvalidInput([f"{path}: no request in it"])
    return tuple(sorted(arrivals, key=lambda a: a.at))


def _print(outcomes: dict[str, Outcome]) -> None:
    before = None
    for step in outcomes["Builtin"].steps:
        if step.replicas != before:
            print(
                f"{step.at:8.0f} s  {step.replicas:3} engines  {step.ready:3} ready  {step.waiting:5} waiting  {step.reason}"
            )
        before = step.replicas
    print()
    for name, outcome in outcomes.items():
        print(
            f"{name:12} queue p50 {outcome.queue_quantile(0.5):7.1f} s  p95 {outcome.queue_quantile(0.95):7.1f} s  {outcome.engine_hours:7.2f} engine-hours"
        )
