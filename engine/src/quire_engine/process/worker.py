"""The engine process: take what came in, compute a step, report it. No asyncio, idle at no cost.

Pings are answered between steps, so that silence means a step that hangs; before a step that takes long it is said
how long.
"""

import gc
import os
import signal
import socket
import sys
import time
import traceback
from array import array
from collections.abc import Callable
from typing import NoReturn

from quire_api.flags import from_argv
from quire_engine.build import BuiltEngine, build_model
from quire_engine.core.request import RequestId
from quire_engine.core.step import Events
from quire_engine.engine import Engine
from quire_engine.errors import EngineFailure, RequestRejected
from quire_engine.logs import set_up_logging
from quire_engine.process.embedding import EmbeddingService
from quire_engine.process.link import Ended, Expect, Link, Ping, Pong, Ready, Report, Work

__all__ = ["main"]

LONG_STEP_S = 1.0  # from here on a step is announced


def main(argv: list[str]) -> int:
    """`argv`: the number of the inherited socket, then the engine's flags."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the API process decides when to end; it closes the link
    link = Link(socket.socket(fileno=int(argv[0])))
    try:
        config = from_argv(argv[1:])
        set_up_logging(config.log_level, config.log_format)

        def announce(seconds: float) -> None:
            if seconds > LONG_STEP_S:
                link.send(Expect(seconds))

        def lost(failure: EngineFailure) -> None:
            """By another thread: ours may be waiting for a rank that is gone."""
            os._exit(_end(link, failure.exit_code, str(failure)))

        built = build_model(config, announce=announce, lost=lost)
        built.warm_up()
        ready = Ready(
            max_model_len=built.max_model_len,
            num_blocks=built.sizes.num_blocks if isinstance(built, BuiltEngine) else 0,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            dtype=built.dtype,
            device=str(built.device),
        )
        gc.collect()
        gc.freeze()  # what was loaded stays; collections look only at what is new
        link.send(ready)
        if isinstance(built, BuiltEngine):
            built.grammars.prepare()  # after the model is ready: the first request may well ask for none
            serve(built.engine, link, built.crew.ask if built.crew else None)
        else:
            EmbeddingService(built.embedder, built.spec.shape, announce).serve(link)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0  # the API process has closed the link: it wants us to end, or has ended
    except EngineFailure as failure:
        return _end(link, failure.exit_code, str(failure))
    except Exception as error:  # whatever else: say so before ending, so that clients get the reason
        traceback.print_exc()
        return _end(link, 1, f"{type(error).__name__}: {error}")


def serve(engine: Engine, link: Link, ask: Callable[[], None] | None) -> NoReturn:
    """Until the link closes, which is an EOFError. `ask` returns when the other ranks have said that they are there."""
    while True:
        rejected: dict[RequestId, tuple[str, str | None]] = {}
        events = Events()
        for message in link.receive(wait=not engine.has_work):
            if isinstance(message, Ping):
                if ask is not None:
                    ask()
                link.send(Pong())
                continue
            assert isinstance(message, Work)
            for request in message.requests:
                try:
                    engine.add(request)
                except RequestRejected as refusal:
                    rejected[request.id] = (str(refusal), refusal.param)
            for request_id in message.aborts:
                events.extend(engine.abort(request_id))
        started, works = time.monotonic(), engine.has_work
        if works:
            events.extend(engine.step())
        rejected.update({each: (str(refusal), refusal.param) for each, refusal in events.refused.items()})
        if works or events.ids or rejected:
            link.send(_report(events, rejected, engine, started, works))


def _report(
    events: Events, rejected: dict[RequestId, tuple[str, str | None]], engine: Engine, started: float, works: bool
) -> Report:
    return Report(
        ids=array("q", events.ids),
        tokens=array("q", events.tokens),
        finished=events.finished,
        logprobs=events.logprobs,
        prompt_logprobs=events.prompt_logprobs,
        cached=events.cached,
        rejected=rejected,
        load=engine.load,
        started=started,
        seconds=time.monotonic() - started,
        num_tokens=engine.last_num_tokens if works else 0,
        least_s=engine.last_least_s if works else 0.0,
    )


def _end(link: Link, exit_code: int, reason: str) -> int:
    try:
        link.send(Ended(exit_code=exit_code, reason=reason))
    except OSError:
        print(reason, file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to save, and the CUDA runtime takes its time to unload
