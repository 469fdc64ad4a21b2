"""The lease in a thread of its own, so that whatever keeps the operator's loop busy cannot cost it the lease.

A burst of thousands of events, or a machine with too much to do, may hold up one loop for longer than the lease's deadline. An
operator that ended then would begin again with more to do than before.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractAsyncContextManager

from quire_operator.lease import Lease

__all__ = ["Keeper"]

GOODBYE_S = 8.0  # longer than a request takes


class Keeper:
    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Lease]]) -> None:
        """`connect` is called by the thread: connections belong to one loop."""
        self._connect = connect
        self._lease: Lease | None = None  # once it is taken
        self._taken, self._ended = Future[None](), Future[None]()
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), name="lease", daemon=True)

    @property
    def held(self) -> bool:
        """By any thread."""
        return self._lease is not None and self._lease.held

    async def take(self) -> None:
        """Wait for it, however long."""
        self._thread.start()
        await asyncio.wrap_future(self._taken)

    async def keep(self) -> None:
        """Returns only by the exception that says how it was lost."""
        await asyncio.wrap_future(self._ended)

    async def release(self) -> None:
        """Whoever waits for it may have it now. Nothing may be written after this."""
        if self._thread.ident is not None:
            self._stop()
            await asyncio.to_thread(self._thread.join, GOODBYE_S)

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: _if_it_runs(loop, task.cancel)
        now = self._taken
        try:
            async with self._connect() as lease:
                try:
                    await lease.take()
                    self._lease = lease
                    _settle(now)
                    now = self._ended
                    await lease.keep()
                finally:
                    await lease.release()
        except asyncio.CancelledError:
            _settle(now)
        except BaseException as error:
            _settle(now, error)


def _settle(future: "Future[None]", error: BaseException | None = None) -> None:
    with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _if_it_runs(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError):  # it has ended by itself
        loop.call_soon_threadsafe(call)
