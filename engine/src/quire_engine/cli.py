"""`quire serve` and `quire generate`. Flags are checked, and mistakes reported, before torch is imported anywhere."""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
from pathlib import Path

from quire_api.errors import InvalidInput
from quire_api.flags import FlagParser, add_flags, config_from, take_moot, to_argv
from quire_engine.errors import ConfigFailure, EngineFailure, RequestRejected
from quire_engine.logs import set_up_logging
from quire_engine.params import SamplingParams
from quire_engine.process.nodes import nodes_of

__all__ = ["generate", "serve"]

TERMINATION_LOG = Path("/dev/termination-log")


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
    try:
        argv, warnings = take_moot(argv)
        config = config_from(_with_model(parser.parse_args(argv)))
    except InvalidInput as error:
        return _fail("serve", "; ".join(error.problems), ConfigFailure.exit_code)
    set_up_logging(config.log_level, config.log_format)
    for warning in warnings:
        logging.getLogger("quire.serve").warning(warning)

    import uvloop

    from quire_engine.arrive import arrive
    from quire_engine.server.listen import ServerFailure, bind
    from quire_engine.server.node import serve_node
    from quire_engine.server.serve import serve as run

    try:
        nodes = nodes_of(config, os.environ)
        arrival = arrive(
            config.model, config.download_dir, config.include
        )  # before the event loop: Ctrl-C ends a download at once
        if arrival.names:  # the engine process gets the folder: what a branch means must not differ between the two
            names = config.served_model_name or arrival.names
            config = config.model_copy(update={"model": str(arrival.folder), "served_model_name": names})
        if nodes.node > 0:
            flags = to_argv(config.model_copy(update={"api_key": ()}))
            serve_node(nodes, flags, bind(config.host, config.port, config.uds))
            return 0
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(config))
    except (EngineFailure, ServerFailure) as failure:
        _leave_word(str(failure))
        return _fail("serve", str(failure), failure.exit_code)
    return 0


def _leave_word(reason: str) -> None:
    """Where Kubernetes looks for a container's last words."""
    with contextlib.suppress(OSError):
        if TERMINATION_LOG.exists():
            TERMINATION_LOG.write_text(reason[:4096])


def generate(argv: list[str]) -> int:
    """The text goes to standard output as it comes, all else to standard error."""
    parser = FlagParser(
        prog="quire generate",
        usage='quire generate MODEL "PROMPT" [--flags]',
        description="Write the answer of a model to one prompt, in this process.",
        allow_abbrev=False,
    )
    parser.add_argument("model_argument", nargs="?", metavar="MODEL", help="the model, as for --model")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text to go on from; - reads standard input")
    parser.add_argument("--chat", action="store_true", help="the prompt is a user's message, to be answered")
    for name, (kind, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--stop", action="append", default=[], help="text that ends the answer; may be repeated")
    add_flags(parser)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        arguments = parser.parse_args(argv)
        options = vars(arguments)
        sampling = {name: options.pop(name) for name in SAMPLING if name in options}
        config = config_from(_with_model(arguments))
        if arguments.prompt is None:
            raise InvalidInput(['no prompt: quire generate MODEL "PROMPT", or - to read it from standard input'])
        params = SamplingParams(**{"max_tokens": None, **sampling}, stop=arguments.stop)
    except InvalidInput as error:
        return _fail("generate", "; ".join(error.problems), ConfigFailure.exit_code)
    except RequestRejected as refusal:
        return _fail("generate", str(refusal), ConfigFailure.exit_code)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt

    from quire_engine.llm import LLM

    try:
        llm = LLM(**{name: getattr(config, name) for name in config.model_fields_set})
        ids = llm.chat_ids([{"role": "user", "content": prompt}]) if arguments.chat else None
        shown = 0
        for output in llm.stream([prompt if ids is None else {"prompt_token_ids": ids}], params):
            text = output.outputs[0].text
            sys.stdout.write(text[shown:])
            sys.stdout.flush()
            shown = len(text)
        if sys.stdout.isatty():
            print()
    except EngineFailure as failure:
        return _fail("generate", str(failure), failure.exit_code)
    except RequestRejected as refusal:
        return _fail("generate", str(refusal), ConfigFailure.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has had enough; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


SAMPLING = {  # flags of `quire generate` besides the engine's: type, help
    "max_tokens": (int, "most tokens of the answer (default: what the model can take)"),
    "temperature": (float, "0 is greedy (default: 1)"),
    "top_p": (float, "keep the smallest set of tokens with this share of the probability"),
    "top_k": (int, "keep the best so many tokens"),
    "min_p": (float, "leave out what is less likely than this share of the best token's probability"),
    "min_tokens": (int, "fewest tokens of the answer"),
    "repetition_penalty": (float, "over 1: repeat less"),
    "frequency_penalty": (float, "over 0: repeat less, the more often a token was there"),
    "presence_penalty": (float, "over 0: prefer tokens that were not there"),
}


def _with_model(arguments: argparse.Namespace) -> argparse.Namespace:
    """`quire serve MODEL` and `quire serve --model MODEL` are the same; both at once is a mistake."""
    given = arguments.model_argument
    if given is not None:
        if hasattr(arguments, "model"):
            raise InvalidInput([f"the model is named twice: {given} and --model {arguments.model}; leave one out"])
        arguments.model = given
    return arguments


def _fail(command: str, reason: str, code: int) -> int:
    """One sentence for people, and for the operator, which reads it from the pod's status."""
    print(f"quire {command}: {reason}", file=sys.stderr)
    return code
