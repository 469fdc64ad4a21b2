"""Who reads a model just now, so that gc leaves it alone: a small file beside it, touched again and again.

A reader that cannot write there, as most pods cannot, leaves no lease: `quire fetch gc --keep` is told instead.
Ages are taken by the clock of the file system alone.
"""

import atexit
import json
import os
import threading
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from quire_engine.fetch.layout import USE
from quire_engine.fetch.machine import Process, myself

__all__ = ["STALE_S", "age_s", "hold", "readers"]

TOUCH_S = 60.0
STALE_S = 600.0


def hold(folder: Path) -> None:
    """From now until this process ends."""
    lease = folder.parent / f"{USE}{folder.name}-{uuid.uuid4().hex}"
    try:
        lease.write_text(json.dumps(asdict(myself())))
    except OSError:
        return
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # and not in a child that was forked
            lease.unlink(missing_ok=True)

    atexit.register(remove)
    threading.Thread(target=_keep, args=(lease,), name="quire-lease", daemon=True).start()


def _keep(lease: Path) -> None:
    while True:
        threading.Event().wait(TOUCH_S)
        with suppress(OSError):
            os.utime(lease)


def readers(folder: Path) -> int:
    """How many hold it; leases of those that are gone are removed."""
    found = 0
    for lease in folder.parent.glob(f"{USE}{folder.name}-*"):
        if _is_live(lease):
            found += 1
        else:
            with suppress(OSError):  # on a volume that is only to be read it stays, and counts for nothing
                lease.unlink(missing_ok=True)
    return found


def age_s(path: Path) -> float:
    """By the file system's clock; OSError where it cannot be asked, because nothing may be written there."""
    probe = path.with_name(f".now-{uuid.uuid4().hex}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - path.stat().st_mtime


def _is_live(lease: Path) -> bool:
    try:
        if Process(**json.loads(lease.read_text())).is_gone:
            return False
        return age_s(lease) < STALE_S
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):
        return True  # when in doubt, it is in use
