"""The process of a rank other than the first: load a part of the model, then do what the first says, step by step.

It blocks on its socket when there is nothing to do. It ends when that closes, and dies with the thread that started it.
"""

import ctypes
import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

from quire_api.flags import from_argv
from quire_engine.build import build_follower
from quire_engine.errors import EngineFailure
from quire_engine.logs import set_up_logging
from quire_engine.process import wary
from quire_engine.process.link import Allotted, Link, Loaded, Ping, Pong, Rows, Step
from quire_engine.runtime.follower import Follower
from quire_engine.runtime.together import RankGone

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> int:
    """`argv`: our rank, the port where ranks meet, the numbers of socket and pipe, who started us; the engine's flags."""
    rank, port, link_number, words, parent = map(int, argv[:5])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first one's
    _die_with(parent)
    link = Link(socket.socket(fileno=link_number), wary.loads)
    try:
        config = from_argv(argv[5:])
        set_up_logging(config.log_level, config.log_format)
        link.send(Pong())  # we are there, and about to meet the others
        built = build_follower(config, rank, port)
        link.send(Loaded(free_bytes=built.free_bytes))
        (allotted,) = link.receive(wait=True)
        assert isinstance(allotted, Allotted)
        follower = built.follower(allotted.sizes)
        gc.collect()
        gc.freeze()
        link.send(Pong())
        follow(follower, link)
    except (EOFError, BrokenPipeError, ConnectionResetError, RankGone):
        return 0  # the first one wants us to end, or it or another has ended: what there is to say is known there
    except EngineFailure as failure:
        return _end(words, failure.exit_code, str(failure))
    except Exception as error:
        traceback.print_exc()
        return _end(words, 1, f"{type(error).__name__}: {error}")


def follow(follower: Follower, link: Link) -> NoReturn:
    """Until the link closes, which is an EOFError."""
    while True:
        for message in link.receive(wait=True):
            match message:
                case Step(plan=plan):
                    follower.step(plan)
                case Rows(count=count):
                    follower.logits(count)
                case Ping():
                    link.send(Pong())


def _die_with(parent: int) -> None:
    """Even if we are stopped, or in the middle of a collective."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that
        sys.exit(0)


def _end(words: int, exit_code: int, reason: str) -> int:
    os.write(words, json.dumps({"exit_code": exit_code, "reason": reason[:8192]}).encode())
    return exit_code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # nothing is left to save, and the CUDA runtime takes its time to unload
