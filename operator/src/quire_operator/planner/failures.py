"""What went wrong in a pod, in the words of our reasons. Pure: a table, and how a failure is told.

    exit code      of a container of ours: quire_engine.errors and quire_api.fetching say what each one means
    cause          the kubelet's word, with what its message must hold (`CAUSES`); the first that fits. Of what it could not
                   start for another reason, as a disk of the node that is full, it says the words and tries again
    refusal        of the API server to make a pod at all (`REFUSALS`); as a cause it is `REFUSED`

Rule: who has a word of its own, the engine or the fetch, is quoted; where only the machine speaks, the fix follows.
"""

from quire_api.fetching import FETCH_OUTCOMES
from quire_api.reasons import REASONS, Reason
from quire_operator.planner.observed import Failure

__all__ = ["EXIT_CODES", "FETCHER", "PASSING", "REFUSED", "lasting", "passing", "refusal", "told"]

ENGINE = "engine"  # containers of ours; what exit codes of others mean, we do not know
FETCHER = "weights"

EXIT_CODES: dict[int, Reason] = {  # starting again will not cure these
    10: Reason.MODEL_NOT_FOUND,
    11: Reason.OUT_OF_MEMORY,
    12: Reason.ENGINE_REJECTED_CONFIG,
    13: Reason.DEVICE_UNAVAILABLE,
    **{outcome.exit_code: Reason(reason.value) for reason, outcome in FETCH_OUTCOMES.items() if not outcome.passing},
}
PASSING: dict[int, Reason] = {  # these it may
    15: Reason.ENGINE_HUNG,
    **{outcome.exit_code: Reason(reason.value) for reason, outcome in FETCH_OUTCOMES.items() if outcome.passing},
}
CAUSES: tuple[tuple[str, str, Reason], ...] = (
    ("OOMKilled", "", Reason.OUT_OF_MEMORY),
    ("ImagePullBackOff", "", Reason.IMAGE_PULL_DENIED),
    ("ErrImagePull", "", Reason.IMAGE_PULL_DENIED),
    ("InvalidImageName", "", Reason.IMAGE_PULL_DENIED),
    ("ErrImageNeverPull", "", Reason.IMAGE_PULL_DENIED),
    ("CreateContainerConfigError", "not found", Reason.REFERENCE_NOT_FOUND),
    ("CreateContainerConfigError", "couldn't find key", Reason.REFERENCE_NOT_FOUND),
    ("CreateContainerConfigError", "runAsNonRoot", Reason.IMAGE_UNUSABLE),
    ("", "no command specified", Reason.IMAGE_UNUSABLE),
    ("", "executable file not found", Reason.IMAGE_UNUSABLE),
    ("", "exec format error", Reason.IMAGE_UNUSABLE),
)
NOT_STARTED = (
    "CreateContainerError",
    "CreateContainerConfigError",
    "RunContainerError",
    "StartError",
    "ContainerCannotRun",
)
REFUSED = "FailedCreate"  # a cause: there is no pod, for the API server will not have it
REFUSALS: tuple[tuple[str, Reason], ...] = (
    ("exceeded quota", Reason.QUOTA_EXCEEDED),
    ("serviceaccount", Reason.REFERENCE_NOT_FOUND),
    ("", Reason.POD_REFUSED),
)


def lasting(failure: Failure) -> Reason | None:
    """Why only somebody outside can help; None where starting again may."""
    if failure.cause == REFUSED:
        return refusal(failure.message)
    for cause, words, reason in CAUSES:
        if words in failure.message and (failure.cause == cause or (not cause and failure.cause in NOT_STARTED)):
            return reason
    return EXIT_CODES.get(failure.exit_code or 0) if failure.container in (ENGINE, FETCHER) else None


def passing(failure: Failure) -> Reason:
    """What is cured by starting again, or by time."""
    if failure.cause == "Unresponsive":  # local mode has ended it
        return Reason.ENGINE_HUNG
    known = PASSING.get(failure.exit_code or 0) if failure.container in (ENGINE, FETCHER) else None
    return known or Reason.RESTARTING


def refusal(message: str) -> Reason:
    """Why the API server will not have the pods."""
    return next(reason for words, reason in REFUSALS if words in message.lower())


def told(failure: Failure, reason: Reason) -> str:
    """The failure in a sentence, with the fix unless its container has said a word of its own."""
    code = f" (exit code {failure.exit_code})" if failure.exit_code is not None else ""
    where = "" if failure.container == ENGINE else f"container {failure.container}: "
    if failure.cause == REFUSED:
        where = "no pod can be made: "
    said = failure.message or failure.cause or ("killed" if failure.exit_code == 137 else "no message")
    own_words = failure.message and failure.exit_code is not None and failure.cause in ("", "Error", "Completed")
    return f"{where}{said}{code}" + ("" if own_words else f". {REASONS[reason].fix}")
