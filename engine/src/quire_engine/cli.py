"""`quire serve`. Flags are checked, and mistakes reported, before torch is imported anywhere."""

import argparse
import asyncio
import logging
import signal
import sys

from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser, add_flags, config_from
from quire_engine.errors import ConfigFailure, EngineFailure

__all__ = ["serve"]


def serve(argv: list[str]) -> int:
    # As process 1 of a container we get only the signals we handle. Until the server runs, to end is all there is to do.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = FlagParser(
        prog="quire serve",
        usage="quire serve MODEL [--flags]",
        description="Serve one model: OpenAI's API on --host and --port.",
        allow_abbrev=False,
    )
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the model, as for --model")
    add_flags(parser)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        config = config_from(_with_model(parser.parse_args(argv)))
    except InvalidInput as error:
        return _fail("; ".join(error.problems), ConfigFailure.exit_code)

    import uvloop

    from quire_engine.server.serve import ServerFailure
    from quire_engine.server.serve import serve as run

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config))
    except (EngineFailure, ServerFailure) as failure:
        return _fail(str(failure), failure.exit_code)
    return 0


def _with_model(arguments: argparse.Namespace) -> argparse.Namespace:
    """`quire serve MODEL` and `quire serve --model MODEL` are the same; both at once is a mistake."""
    given = arguments.model_argument
    if given is not None:
        if hasattr(arguments, "model"):
            raise InvalidInput([f"the model is named twice: {given} and --model {arguments.model}; leave one out"])
        arguments.model = given
    return arguments


def _fail(reason: str, code: int) -> int:
    """One sentence for people, and for the operator, which reads it from the pod's status."""
    print(f"quire serve: {reason}", file=sys.stderr)
    return code
