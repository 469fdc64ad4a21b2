"""`quire up --detach`: the same command in a session of its own; this one waits until it serves, and tells what it says."""

import subprocess
import sys
import time

from quire_operator.local.client import NotHere, Quire, Refused
from quire_operator.local.state import StateFolder

__all__ = ["detach"]

LOOK_S = 0.1


def detach(argv: list[str], state: StateFolder) -> int:
    """0 once all that is wanted serves; else the code with which it ended. Ctrl-C leaves it running."""
    if owner := state.owner():
        print(f"quire up: another one (pid {owner.pid}) owns {state.path}: end it with `quire down`", file=sys.stderr)
        return 1
    state.path.mkdir(parents=True, exist_ok=True, mode=0o700)
    with state.up_log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "quire_api", "up", *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    with state.up_log.open("rb") as said:
        while True:
            ended = process.poll()
            settled = ended is None and _settled(state)
            sys.stderr.buffer.write(said.read())
            sys.stderr.flush()
            if ended is not None:
                return ended
            if settled:
                print(
                    f"quire up runs on (pid {process.pid}); what it says: {state.up_log}; end it: quire down",
                    file=sys.stderr,
                )
                return 0
            time.sleep(LOOK_S)


def _settled(state: StateFolder) -> bool:
    owner = state.owner()
    if owner is None or not owner.url:
        return False
    try:
        pictures = Quire(state, owner).pictures()
    except (NotHere, Refused):  # it is about to listen
        return False
    conditions = [p["resource"]["status"].get("conditions", []) for p in pictures]
    return all(any(c["type"] == "Ready" and c["status"] == "True" for c in each) for each in conditions)
