"""Addresses to listen on: taken before anything is started, so that a mistake is known at once."""

import os
import socket

from quire_engine.errors import EXIT_ADDRESS

__all__ = ["ServerFailure", "bind"]


class ServerFailure(Exception):
    """The server could not start, or ended for another reason than a signal."""

    def __init__(self, reason: str, exit_code: int) -> None:
        super().__init__(reason)
        self.exit_code = exit_code


def bind(host: str, port: int, uds: str | None, flags: str = "--") -> socket.socket:
    """Take the address before anything is started."""
    try:
        if uds:
            listener = _bind_unix(uds)
        else:
            listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        listener.listen(2048)
    except (OSError, UnicodeError, TypeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        reason = os.strerror(number) if number and number > 0 else str(error)
        where, others = (uds, "--uds") if uds else (f"{host}:{port}", f"{flags}host or {flags}port")
        raise ServerFailure(f"cannot listen on {where}: {reason}; choose another with {others}", EXIT_ADDRESS) from None
    return listener


def _bind_unix(path: str) -> socket.socket:
    """A socket file that nobody answers on is what a killed server left: take its place."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass  # not there, or no socket at all: bind will say so
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    return listener
