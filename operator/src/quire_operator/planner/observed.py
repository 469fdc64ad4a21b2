"""The snapshot a plan is made from. Both backends fill it; nothing is read after it was taken."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from quire_api.status import DeploymentStatus
from quire_operator.planner.autoscale import ScaleDecision

__all__ = [
    "Failure",
    "Instance",
    "Key",
    "Manifest",
    "NoPlace",
    "ObjectState",
    "Observed",
    "Progress",
    "ResolveJob",
    "Revision",
    "Scaler",
    "Workload",
    "digest",
    "key_of",
]

Manifest = Mapping[str, Any]


class Key(NamedTuple):
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectState:
    """An object that exists under the resource's label."""

    uid: str
    owner_uid: str | None  # of its controller
    applied: str | None  # digest of the manifest it still equals, as far as we know
    replicas: int | None = None  # of a scalable object
    of_predecessor: bool = False  # made for a deleted resource of the same name, and about to go with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How an engine ended, or why it cannot start."""

    message: str
    exit_code: int | None = None  # None: it never ran
    cause: str = ""  # the machine's word for it: OOMKilled, ImagePullBackOff, ...
    container: str = "engine"
    again: bool = False  # it has ended so often that there is a pause before each start
    pod: str = ""  # of an engine on several nodes, where it is not its leader's


@dataclass(frozen=True, slots=True, kw_only=True)
class NoPlace:
    """No node takes an engine."""

    since: str
    message: str  # the scheduler's words


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a fetch was when it reached its last step."""

    phase: str
    percent: int  # a step: it does not tick
    bytes_per_second: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One engine."""

    name: str
    ready: bool
    current: bool = True  # of the wanted revision
    failure: Failure | None = None  # the last one, while the instance is not ready
    no_place: NoPlace | None = None
    fetching: bool = False  # its weights are on their way
    progress: Progress | None = None  # of that, once it has said
    fetched_at: str = ""  # when they had come


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """A pod template that is kept."""

    id: str  # digest of the template, and a label of its pods
    number: int  # in the order in which they were made
    spec: str  # digest of the spec that it was made for
    template: Manifest
    model: Manifest | None = None  # what its source had said, as it was kept; None where nobody was asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How far the engines are from the wanted revision."""

    current: bool = False  # the machine has taken notice of the latest revision
    replicas: int = 0  # engines of any revision
    updated: int = 0  # ... of the wanted one
    ready: int = 0  # ... of any revision, serving
    updated_ready: int = 0  # ... of the wanted one, serving
    revision: str = ""  # that is being rolled out, or was; empty where revisions are not kept
    unavailable: int = 0  # engines that may be missing while it is; 0: a new one comes before an old one goes
    paused: bool = False  # the roll-out stands still
    nodes: int | None = None  # that each engine is on; None: there is no workload, or it does not say
    refused: str = ""  # why the API server will not have one more pod


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolveJob:
    """A Job that asks the source of the weights what it has."""

    template: str  # digest of its pod's template
    attempt: int
    answer: str | None = None  # what it said at a good end
    failure: Failure | None = None  # how it ended otherwise, or why it cannot start
    ended: str = ""  # when; empty while it may still say something


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """What the HorizontalPodAutoscaler of the resource says of itself."""

    fault: str = ""  # why it does not scale, in its words; empty while it does, or has not said anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    status: DeploymentStatus | None  # what we wrote last
    objects: Mapping[Key, ObjectState] = field(default_factory=dict)
    workload: Workload = Workload()
    instances: tuple[Instance, ...] = ()
    jobs: tuple[ResolveJob, ...] = ()
    history: tuple[Revision, ...] = ()
    conflicts: Mapping[Key, str] = field(default_factory=dict)  # names that somebody else has, and who
    decision: ScaleDecision | None = None  # of the autoscaler, once it has looked
    scaler: Scaler | None = None  # of mode HPA, once it is there


def key_of(manifest: Manifest) -> Key:
    return Key(manifest["kind"], manifest["metadata"]["name"])


def digest(manifest: Any) -> str:
    """Equal for equal manifests, and for no others."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
