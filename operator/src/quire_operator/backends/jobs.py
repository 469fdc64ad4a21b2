"""The Jobs that ask sources what they have, read out of the store. Pure: objects in, `ResolveJob`s out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from quire_operator.backends.store import Object
from quire_operator.planner.failures import FETCHER, REFUSED
from quire_operator.planner.observed import Failure, ResolveJob
from quire_operator.render.names import ATTEMPT_LABEL, REVISION_LABEL

__all__ = ["podless", "resolve_jobs"]

FailureOf = Callable[[Mapping[str, Any]], Failure | None]


def resolve_jobs(
    jobs: Iterable[Object], pods: Iterable[Object], failure_of: FailureOf, refusal_of: Callable[[str], str]
) -> tuple[ResolveJob, ...]:
    """`pods` are those of the Jobs; `failure_of` reads the state of a container, `refusal_of` knows why a Job has no pod, by its uid."""
    by_job = _by_job(pods)
    return tuple(
        _read(job, by_job.get(job["metadata"]["name"]), failure_of, refusal_of)
        for job in jobs
        if not job["metadata"].get("deletionTimestamp")
    )


def podless(jobs: Iterable[Object], pods: Iterable[Object]) -> Iterator[str]:
    """uids of Jobs whose pod is not there: not yet, not any more, or never."""
    by_job = _by_job(pods)
    for job in jobs:
        if job["metadata"]["name"] not in by_job:
            yield job["metadata"]["uid"]


def _by_job(pods: Iterable[Object]) -> dict[str, Object]:
    return {owner["name"]: pod for pod in pods for owner in pod["metadata"].get("ownerReferences") or ()}


def _read(job: Object, pod: Object | None, failure_of: FailureOf, refusal_of: Callable[[str], str]) -> ResolveJob:
    labels = job["metadata"].get("labels", {})
    attempt = labels.get(ATTEMPT_LABEL, "0")
    known = {"template": labels.get(REVISION_LABEL, ""), "attempt": int(attempt) if attempt.isdigit() else 0}
    container = _fetcher(pod)
    end = (container.get("state") or {}).get("terminated") or {}
    if end and end.get("exitCode") == 0:
        return ResolveJob(**known, answer=end.get("message") or "", ended=end.get("finishedAt") or "")
    conditions = (job.get("status") or {}).get("conditions") or []
    over = next((c for c in conditions if c["type"] in ("Failed", "Complete") and c["status"] == "True"), None)
    failure = failure_of(container) if container else None
    if pod is None and (words := refusal_of(job["metadata"]["uid"])):
        failure = Failure(message=words, cause=REFUSED, container=FETCHER)
    if over is None:
        return ResolveJob(**known, failure=failure)
    if failure is None:
        failure = Failure(
            message=over.get("message") or "its pod is gone", cause=over.get("reason") or "", container=FETCHER
        )
    return ResolveJob(**known, failure=failure, ended=over.get("lastTransitionTime") or "")


def _fetcher(pod: Object | None) -> Mapping[str, Any]:
    statuses = ((pod or {}).get("status") or {}).get("containerStatuses") or []
    return next((status for status in statuses if status.get("name") == FETCHER), {})
