"""What `quire fetch` says to whoever started it: its reasons, their exit codes, the shape of its progress.

The operator reads them from a container that ended, without the engine's code: termination message
`Reason: sentence`, exit code, status line. The codes leave those of the engine (10 to 14) and of the shell alone.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import TypedDict

__all__ = ["FETCH_OUTCOMES", "FetchReason", "FetchStatus", "Outcome", "fetch_reason_of"]


class FetchReason(StrEnum):
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    INSUFFICIENT_STORAGE = "InsufficientStorage"
    WEIGHTS_CORRUPT = "WeightsCorrupt"
    SOURCE_UNREACHABLE = "SourceUnreachable"
    INTERRUPTED = "Interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    exit_code: int
    passing: bool  # the same command may succeed later, with nothing changed by a user
    meaning: str
    fix: str


FETCH_OUTCOMES: dict[FetchReason, Outcome] = {
    FetchReason.MODEL_NOT_FOUND: Outcome(
        exit_code=20,
        passing=False,
        meaning="The source has no such model, revision or file, or none that can be used.",
        fix="Correct the source.",
    ),
    FetchReason.MODEL_ACCESS_DENIED: Outcome(
        exit_code=21,
        passing=False,
        meaning="The source wants a token or key, or refuses the one it got.",
        fix="Give a token that may read the model; of a gated model accept the terms on its page.",
    ),
    FetchReason.INSUFFICIENT_STORAGE: Outcome(
        exit_code=22,
        passing=False,
        meaning="The destination has too little room, or cannot be written.",
        fix="Make room (`quire fetch gc`), or use a larger volume.",
    ),
    FetchReason.WEIGHTS_CORRUPT: Outcome(
        exit_code=23,
        passing=False,
        meaning="What is on disk, or what the source sends, is not what it should be.",
        fix="Fetch again with `--verify`; if the source is at fault, mend it.",
    ),
    FetchReason.SOURCE_UNREACHABLE: Outcome(
        exit_code=24,
        passing=True,
        meaning="The source did not answer, or only with errors, however often it was tried.",
        fix="Wait, or mend the network, the proxy or the endpoint; what arrived is kept.",
    ),
    FetchReason.INTERRUPTED: Outcome(
        exit_code=25,
        passing=True,
        meaning="A signal ended it; what arrived is kept.",
        fix="Run it again: it goes on where it was.",
    ),
}


def fetch_reason_of(exit_code: int) -> FetchReason | None:
    return next((reason for reason, outcome in FETCH_OUTCOMES.items() if outcome.exit_code == exit_code), None)


class FetchStatus(TypedDict):
    """One line of progress: --status-file, --status-port, and standard error where that is no terminal."""

    phase: str  # resolving, waiting, downloading, verifying, ready, failed
    percent: float
    bytes: int
    totalBytes: int
    bytesPerSecond: int
    etaSeconds: int | None  # None: not known
    message: str
