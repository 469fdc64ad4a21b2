"""What can go wrong while fetching, by what the reader must do about it.

FetchFailure (one sentence; the process exits with its reason's code, see quire_api.fetching)
├── ModelNotFound        correct the source
├── ModelAccessDenied    give a token or key
├── InsufficientStorage  make room
├── WeightsCorrupt       fetch again, or mend the source
├── SourceUnreachable    wait, or mend the network
└── Interrupted          run it again

No message ever holds a token, a header or the query of a URL: signed URLs are keys.
"""

from typing import ClassVar
from urllib.parse import urlsplit

from quire_api.fetching import FETCH_OUTCOMES, FetchReason

__all__ = [
    "FetchFailure",
    "InsufficientStorage",
    "Interrupted",
    "ModelAccessDenied",
    "ModelNotFound",
    "SourceUnreachable",
    "WeightsCorrupt",
    "shown",
]


class FetchFailure(Exception):
    reason: ClassVar[FetchReason]

    @property
    def exit_code(self) -> int:
        return FETCH_OUTCOMES[self.reason].exit_code


class ModelNotFound(FetchFailure):
    reason = FetchReason.MODEL_NOT_FOUND


class ModelAccessDenied(FetchFailure):
    reason = FetchReason.MODEL_ACCESS_DENIED


class InsufficientStorage(FetchFailure):
    reason = FetchReason.INSUFFICIENT_STORAGE


class WeightsCorrupt(FetchFailure):
    reason = FetchReason.WEIGHTS_CORRUPT


class SourceUnreachable(FetchFailure):
    reason = FetchReason.SOURCE_UNREACHABLE


class Interrupted(FetchFailure):
    reason = FetchReason.INTERRUPTED


def shown(url: str) -> str:
    """The URL as it may be printed: without user, query and fragment."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # a password with a slash in it looks like one
    except ValueError:
        return "an address that cannot be read"
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
