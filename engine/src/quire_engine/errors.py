"""What can go wrong, by whose fault it is and how the process ends.

EngineFailure (the engine cannot start or go on; the process exits with `exit_code`)
├── WeightsFailure   10  no usable model at the path
├── MemoryFailure    11  weights or KV cache do not fit
├── ConfigFailure    12  an option contradicts the model or the machine
├── DeviceFailure    13  no such device
└── RankLost             a process that computes a part of the model has ended; the code is its own, else 1
RequestRejected      (one request is refused, nothing else is touched; HTTP 400)

The operator maps the exit codes to condition reasons; quire_api.status documents those.
"""

__all__ = [
    "EXIT_ADDRESS",
    "EXIT_HUNG",
    "ConfigFailure",
    "DeviceFailure",
    "EngineFailure",
    "MemoryFailure",
    "RankLost",
    "RequestRejected",
    "WeightsFailure",
]

EXIT_ADDRESS = 14  # the address to listen on is taken: local to the API process, so no class of its own
EXIT_HUNG = 15  # the engine process was silent for too long and was ended: the API process says so in its place


class EngineFailure(Exception):
    exit_code = 1


class WeightsFailure(EngineFailure):
    exit_code = 10


class MemoryFailure(EngineFailure):
    exit_code = 11


class ConfigFailure(EngineFailure):
    exit_code = 12


class DeviceFailure(EngineFailure):
    exit_code = 13


class RankLost(EngineFailure):
    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class RequestRejected(ValueError):
    """The message is for the client; `param` names the field of the request at fault."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
