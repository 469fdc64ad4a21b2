"""What a source is, asked once: a Job before any engine pod says it, and it is pinned in the status.

    nothing pinned --> Job --answer--> pinned --fits?--> engines of that revision
                        '--fails--> the reason; after a pause the next Job
                                             pinned --does not fit--> DoesNotFit

Until then engines of what was pinned before serve on: they are neither changed nor deleted. What failed is shown until the
next Job has ended, so that the status does not change its mind with each attempt. An answer is known for as long as a template
is kept that was made of it, so that who takes an edit back is not asked again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from quire_api.deployment import LLMDeployment, Source
from quire_api.reasons import Reason
from quire_api.resolved import ModelStatus
from quire_operator.planner.conditions import MESSAGE_MAX, Verdict
from quire_operator.planner.failures import FETCHER, lasting, passing, told
from quire_operator.planner.fit import Room, misfit, need_of
from quire_operator.planner.observed import Failure, Observed, ResolveJob
from quire_operator.planner.revisions import model_of
from quire_operator.render.names import ATTEMPT_LABEL, REVISION_LABEL

__all__ = ["Held", "hold", "pin_of"]

Manifest = Mapping[str, Any]

TIME = "%Y-%m-%dT%H:%M:%SZ"
PAUSE_FIRST_S, PAUSE_MOST_S = 10.0, 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Engines stay as they are for now."""

    verdict: Verdict
    jobs: tuple[Manifest, ...] = ()  # that are to be there
    workload: Manifest | None = None  # what engines go back to meanwhile
    pin: ModelStatus | None = None  # the answer, to be written before anything is made of it
    requeue_after: float | None = None

    @property
    def objects(self) -> tuple[Manifest, ...]:
        return self.jobs if self.workload is None else (self.workload, *self.jobs)


def pin_of(deployment: LLMDeployment, observed: Observed) -> ModelStatus | None:
    """What was found at the source that is wanted; of several answers the last."""
    status, source = observed.status, deployment.spec.model.source
    kept = (model_of(revision) for revision in sorted(observed.history, key=lambda r: r.number, reverse=True))
    known = (status.model if status is not None else None, *kept)
    return next((pin for pin in known if pin and (pin.source, pin.include) == (source.uri, source.include)), None)


def hold(
    deployment: LLMDeployment, job: Manifest | None, room: Room | None, observed: Observed, now: str
) -> Held | None:
    """None: engines may be made. `job` asks the source, and is None where there is nobody to ask."""
    if job is None:
        return None
    pin = pin_of(deployment, observed)
    if deployment.spec.suspend and pin is None:
        return Held(verdict=_suspended(observed))
    if pin is None:
        return _resolving(deployment.spec.model.source, job, observed.jobs, now)
    if room is None:
        return None
    devices = deployment.spec.parallelism.devices
    words = misfit(need_of(deployment.spec.engine, pin.footprint, devices, on_device=room.on_device), room)
    if words is None:
        return None
    return Held(
        verdict=_suspended(observed) if deployment.spec.suspend else Verdict.stalled(Reason.DOES_NOT_FIT, words)
    )


def _suspended(observed: Observed) -> Verdict:
    """Nobody is asked for what nobody wants now."""
    if observed.workload.replicas:
        return Verdict.working(Reason.SCALING, f"spec.suspend is true; {observed.workload.replicas} engines still run")
    return Verdict.serving(Reason.SUSPENDED, "spec.suspend is true: set it to false to serve")


def _resolving(source: Source, job: Manifest, jobs: tuple[ResolveJob, ...], now: str) -> Held:
    wanted = job["metadata"]["labels"][REVISION_LABEL]
    mine = sorted((_read(source, each) for each in jobs if each.template == wanted), key=lambda each: each.attempt)
    if not mine:
        return Held(jobs=(_numbered(job, 0),), verdict=_asking(source))
    last = mine[-1]
    if last.answer is not None:
        pin = ModelStatus.from_answer(source.uri, source.include, last.answer)
        return Held(verdict=_asking(source), pin=pin)
    if last.ended:
        return _again(source, job, last, now)
    before = [each for each in mine[:-1] if each.ended][-1:]
    speaks = next((each.failure for each in (last, *before) if each.failure is not None), None)
    kept = tuple(_numbered(job, each.attempt) for each in (*before, last))
    return Held(jobs=kept, verdict=_failed(source, speaks) if speaks is not None else _asking(source))


def _read(source: Source, job: ResolveJob) -> ResolveJob:
    """An answer that is none is a failure."""
    if job.answer is None or ModelStatus.from_answer(source.uri, source.include, job.answer) is not None:
        return job
    words = "it ended well and said nothing that can be read: is the image older than the operator?"
    return replace(job, answer=None, failure=Failure(message=words, exit_code=0, container=FETCHER))


def _again(source: Source, job: Manifest, last: ResolveJob, now: str) -> Held:
    """After a pause; the one that failed stays until the next has ended."""
    verdict = _failed(source, last.failure or Failure(message="its pod is gone", container=FETCHER))
    pause = min(PAUSE_FIRST_S * 2 ** min(last.attempt, 10), PAUSE_MOST_S)
    left = pause - (_time(now) - _time(last.ended)).total_seconds()
    if left > 0:
        return Held(jobs=(_numbered(job, last.attempt),), verdict=verdict, requeue_after=min(left, PAUSE_MOST_S))
    return Held(jobs=(_numbered(job, last.attempt), _numbered(job, last.attempt + 1)), verdict=verdict)


def _asking(source: Source) -> Verdict:
    return Verdict.working(Reason.RESOLVING, f"asking {source.uri} what it has, before any engine is made of it")


def _failed(source: Source, failure: Failure) -> Verdict:
    """The fetch's own reason; whatever it is, it is tried again, for nobody here sees it mended."""
    reason = lasting(failure)
    if reason is not None:
        return Verdict.stalled(reason, f"{source.uri}: {told(failure, reason)}")
    reason = passing(failure)
    reason = Reason.RESOLVING if reason is Reason.RESTARTING else reason
    return Verdict.working(reason, f"{source.uri}: {told(failure, reason)}"[:MESSAGE_MAX])


def _numbered(job: Manifest, attempt: int) -> Manifest:
    """Names differ by what is asked and how often, and are short enough for a label."""
    metadata = job["metadata"]
    mark = sha256(f"{metadata['labels'][REVISION_LABEL]} {attempt}".encode()).hexdigest()[:8]
    labelled = {**metadata["labels"], ATTEMPT_LABEL: str(attempt)}
    return {**job, "metadata": {**metadata, "name": f"{metadata['name']}-{mark}", "labels": labelled}}


def _time(text: str) -> datetime:
    return datetime.strptime(text, TIME).replace(tzinfo=UTC)
