"""From a resource and a snapshot to actions and a status.

    resource --render--> desired --diff--> actions
                            '--conditions--> status

Rules: a bad resource is a condition and no action; so is a name that somebody else has. The same input
gives the same plan, and a plan that was carried out leaves nothing to do (property-tested).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from quire_api.deployment import LLMDeployment
from quire_api.errors import InvalidInput
from quire_api.reasons import Reason
from quire_api.resolved import ModelStatus
from quire_api.rollout import RevisionStatus
from quire_api.status import Child, DeploymentStatus
from quire_operator.planner.arriving import arriving
from quire_operator.planner.conditions import Verdict, judge, write_status
from quire_operator.planner.fit import Room
from quire_operator.planner.observed import Key, Manifest, Observed, digest, key_of
from quire_operator.planner.resolving import Held, hold, pin_of
from quire_operator.planner.rollout import Roll, frozen, roll_out
from quire_operator.planner.running import Facts, facts_of, held_facts, live, opened
from quire_operator.planner.scaling import condition, replicas, tell
from quire_operator.planner.standing import available, degraded, with_standing
from quire_operator.planner.workloads import GROUPS, is_workload, least_unavailable, rolled
from quire_operator.render.weights import pinned

__all__ = ["Action", "Apply", "Create", "Delete", "Desired", "Plan", "Scale", "Weigh", "digest", "plan"]

RETRY_CONFLICT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What a resource becomes on a backend."""

    objects: tuple[Manifest, ...]
    replicas: int | None  # of the scalable object among them; None where each replica is an object
    url: str
    image: str
    resolve: Manifest | None = None  # the Job that asks the source, where there is somebody to ask
    room: Room | None = None  # memory of one engine, where it is known
    keeps_revisions: bool = False  # of the scalable object, which a controller rolls out


@dataclass(frozen=True, slots=True)
class Create:
    """Make an object that must not exist yet."""

    key: Key
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Apply:
    """Make an object of ours equal to its manifest."""

    key: Key
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Scale:
    key: Key
    replicas: int


@dataclass(frozen=True, slots=True)
class Weigh:
    """Tell which engine is to stay when some go: the one with the highest cost."""

    key: Key
    cost: int


@dataclass(frozen=True, slots=True)
class Delete:
    key: Key
    uid: str


Action = Create | Apply | Weigh | Scale | Delete


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    actions: tuple[Action, ...]
    status: DeploymentStatus
    requeue_after: float | None = None


def plan(resource: Manifest, observed: Observed, render: Callable[[LLMDeployment], Desired], now: str) -> Plan:
    """`now` is the time to write into conditions that change."""
    generation = resource.get("metadata", {}).get("generation", 0)
    if observed.status is None:  # a resource without status counts as healthy: say at once that it is not known to be
        verdict = Verdict.unknown()
        return Plan(actions=(), status=write_status(DeploymentStatus(), verdict, generation, now), requeue_after=0.0)
    try:
        deployment, standing = _scaled(LLMDeployment.parse(resource), observed, now)
        _keep_nodes(deployment, observed)
        pin = pin_of(deployment, observed)
        desired = render(deployment if pin is None else pinned(deployment, pin.revision))
    except InvalidInput as error:
        verdict = Verdict.stalled(Reason.INVALID_SPEC, str(error).replace("\n", "; "))
        return Plan(actions=(), status=write_status(observed.status, verdict, generation, now))

    if any(state.of_predecessor for state in observed.objects.values()):
        verdict = Verdict.working(Reason.STARTING, "waiting until what a deleted resource of this name left is gone")
        return Plan(actions=(), status=write_status(standing, verdict, generation, now), requeue_after=2.0)
    held = hold(deployment, desired.resolve, desired.room, observed, now)
    roll = _roll(deployment, pin, desired, observed, now) if held is None else None
    runs = roll.target if roll is not None else live(observed)
    if runs is not None:
        desired = replace(desired, objects=opened(desired.objects, runs, observed))
    if roll is not None:
        desired = _of(roll, desired)
    if held is not None:
        held = replace(held, workload=_back(desired, standing, observed))
    if taken := _taken((*desired.objects, *(held.jobs if held else ())), observed, deployment.metadata.uid):
        verdict = Verdict.stalled(Reason.NAME_CONFLICT, taken)
        status = write_status(standing, verdict, generation, now)
        return Plan(actions=(), status=status, requeue_after=RETRY_CONFLICT_S)

    if held is not None and held.pin is not None:
        told = standing.model_copy(update={"model": held.pin})
        return Plan(actions=(), status=write_status(told, held.verdict, generation, now), requeue_after=0.0)
    actions = diff(desired, observed, deployment.metadata.uid, held)
    pending = any(not isinstance(action, Delete) for action in actions)
    workload, wanted = observed.workload, deployment.spec.replicas
    alone = workload.current and not pending and workload.replicas == workload.updated
    steady = roll.steady if roll is not None else alone
    prevails = held.verdict if held is not None else roll.verdict if roll is not None else None
    verdict = prevails or judge(deployment, observed, pending, steady)
    if deployment.spec.paused:
        actions = _pause(actions, desired, observed) if desired.keeps_revisions else []
        verdict = verdict if verdict.ready == "True" else Verdict.paused(verdict.message)
    conditions = (
        available(deployment, observed),
        degraded(deployment, observed, verdict),
        condition(deployment, observed.decision, observed.scaler),
        *(roll.conditions if roll is not None else ()),
    )
    about = Facts(image=desired.image, model_name=deployment.model_names[0], model=None)
    if held is not None:
        about = held_facts(standing, about, desired.resolve is not None)
    elif roll is not None:
        about = facts_of(about, pin, roll.status.failed is None, roll.target, observed)
    facts = DeploymentStatus(
        url=desired.url,
        image=about.image,
        model_name=about.model_name,
        selector=",".join(f"{k}={v}" for k, v in sorted(_selector(desired).items())),
        replicas=workload.replicas,
        ready_replicas=workload.ready,
        serving=f"{workload.updated_ready}/{wanted}",
        children=tuple(Child(kind=key.kind, name=key.name) for key in sorted(map(key_of, desired.objects))),
        model=about.model,
        weights=arriving(observed.instances, standing.weights),
        revision=roll.status if roll is not None else _at_rest(standing, desired),
        autoscaling=standing.autoscaling,
        conditions=with_standing(standing.conditions, conditions, generation, now),
    )
    status = write_status(facts, verdict, generation, now)
    again = held.requeue_after if held is not None else roll.requeue_after if roll is not None else None
    return Plan(actions=tuple(actions), status=status, requeue_after=again)


def _keep_nodes(deployment: LLMDeployment, observed: Observed) -> None:
    """InvalidInput for another number than there is an object for, even at zero engines: those of old would have to go before others come."""
    there, wanted = observed.workload.nodes, deployment.spec.parallelism.nodes
    if there not in (None, wanted):
        raise InvalidInput(
            [
                f"spec.parallelism.nodes: engines of this resource are made for {there} {'node' if there == 1 else 'nodes'} each, and that is not changed, with or without engines: "
                f"set it back to {there}, or make another LLMDeployment with {wanted} and then delete this one"
            ]
        )


def _scaled(deployment: LLMDeployment, observed: Observed, now: str) -> tuple[LLMDeployment, DeploymentStatus]:
    """The resource with as many replicas as are wanted now, and the status that says why."""
    status = observed.status or DeploymentStatus()
    told = status.autoscaling if deployment.spec.autoscaling.mode == "Builtin" else None
    if deployment.spec.suspend:
        wanted = 0
    elif deployment.spec.paused and told is not None:  # nothing is decided that cannot be carried out
        wanted = told.desired
    else:
        wanted = replicas(deployment, status, observed.decision, observed.workload.replicas)
        told = tell(deployment, status.autoscaling, observed.decision, wanted, now)
    spec = deployment.spec.model_copy(update={"replicas": wanted})
    return deployment.model_copy(update={"spec": spec}), status.model_copy(update={"autoscaling": told})


def _roll(
    deployment: LLMDeployment, pin: ModelStatus | None, desired: Desired, observed: Observed, now: str
) -> Roll | None:
    """None where revisions are not kept."""
    if not desired.keeps_revisions:
        return None
    return roll_out(deployment, pin, next(filter(is_workload, desired.objects)), observed, now)


def _at_rest(standing: DeploymentStatus, desired: Desired) -> RevisionStatus | None:
    """What is known of revisions while engines are held: no clock runs."""
    if not desired.keeps_revisions or standing.revision is None:
        return None
    return standing.revision.model_copy(update={"since": ""})


def _back(desired: Desired, standing: DeploymentStatus, observed: Observed) -> Manifest | None:
    """The workload with the last good template, while engines are held and another one is live: nobody asks for that one any
    more, and no clock would end it."""
    workload, last_good = observed.workload, standing.revision.last_good if standing.revision is not None else ""
    good = next((revision for revision in observed.history if revision.id == last_good), None)
    if good is None or workload.revision in ("", good.id):
        return None
    manifest = next(filter(is_workload, desired.objects))
    least = least_unavailable(manifest, desired.replicas or 0)
    return rolled(manifest, good.template, 1 if workload.unavailable else least)


def _of(roll: Roll, desired: Desired) -> Desired:
    """`desired`, with the templates that are kept before the workload that uses one of them."""
    others = tuple(manifest for manifest in desired.objects if not is_workload(manifest))
    return replace(desired, objects=(*others, *roll.kept, roll.workload))


def _pause(actions: list[Action], desired: Desired, observed: Observed) -> list[Action]:
    """Nothing but what makes a roll-out that has begun stand still."""
    moving = not observed.workload.current or observed.workload.replicas != observed.workload.updated
    if observed.workload.paused or not (actions or moving):
        return []
    workload = next(filter(is_workload, desired.objects))
    still = frozen(workload, observed)
    return [Apply(key_of(workload), still)] if still is not None else []


def diff(desired: Desired, observed: Observed, uid: str, held: Held | None = None) -> list[Action]:
    """Create what is missing, apply what differs, set the scale, delete what is no longer wanted; in that order.

    While engines are held they are scaled, and nothing else unless `held` says so; Jobs are made and never changed.

    Only what the resource controls is deleted: copies of our labels on somebody else's object make it not ours.
    """
    actions: list[Action] = []
    wanted = {key_of(manifest): manifest for manifest in (*desired.objects, *(held.objects if held else ()))}
    for key, manifest in wanted.items():
        state = observed.objects.get(key)
        stays = held is not None and held.workload is None and is_workload(manifest)
        if state is None and not stays:
            actions.append(Create(key, manifest))
        elif state is not None and not stays and key.kind != "Job" and state.applied != digest(manifest):
            actions.append(Apply(key, manifest))
        if (
            desired.replicas is not None
            and is_workload(manifest)
            and (state is not None or not stays)
            and (state is None or state.replicas != desired.replicas)
        ):
            decision = observed.decision if key.kind != GROUPS else None  # of groups those with the highest numbers go
            if state is not None and (state.replicas or 0) > desired.replicas and decision is not None:
                work = decision.work
                actions += [Weigh(Key("Pod", i.name), work[i.name]) for i in observed.instances if i.name in work]
            actions.append(Scale(key, desired.replicas))
    for key, state in sorted(observed.objects.items()):
        stays = held is not None and key.kind == "ControllerRevision"
        if key not in wanted and state.owner_uid == uid and not stays:
            actions.append(Delete(key, state.uid))
    return actions


def _selector(desired: Desired) -> dict[str, str]:
    """The labels that select engines; processes have none."""
    for manifest in desired.objects:
        if manifest["kind"] == "Service":
            return dict(manifest["spec"]["selector"])
    return {}


def _taken(manifests: Iterable[Manifest], observed: Observed, uid: str) -> str | None:
    """The sentence about the first name that is somebody else's."""
    for manifest in manifests:
        key = key_of(manifest)
        state = observed.objects.get(key)
        if key in observed.conflicts or (state is not None and state.owner_uid != uid):
            owner = observed.conflicts.get(key, "somebody else")
            return f"{key.kind} {key.name} belongs to {owner}: delete or rename it, or give this LLMDeployment another name"
    return None
