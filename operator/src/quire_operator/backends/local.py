"""One machine: engines are processes. `LocalBackend` plays the parts of the Deployment controller and of the kubelet.

The planner sets a template and a scale; here engines follow it: which to start and which to let go says `rolling`, and
they are looked at again whenever one of them becomes ready, stops being so, or ends. An engine that is let go gets no more
requests, finishes those it has, and ends. The router's registry follows all of it.
"""

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from quire_api.deployment import LLMDeployment
from quire_api.status import DeploymentStatus
from quire_operator.local.devices import free_gpus, gpus, threads
from quire_operator.local.process import EngineProcess, Launch, Witness
from quire_operator.local.rolling import Member, next_steps
from quire_operator.local.state import MARK, StateFolder
from quire_operator.planner.autoscale import ScaleDecision
from quire_operator.planner.observed import Instance, Key, ObjectState, Observed, Workload
from quire_operator.planner.plan import Action, Apply, Create, Delete, Desired, Scale, digest
from quire_operator.reconcile import Refused, ResourceKey
from quire_operator.render import process
from quire_operator.scrape import Target
from quire_router import Endpoint, Model, Registry, declared

__all__ = ["Engine", "LocalBackend"]

UID = "local"  # owner of all that is here

Manifest = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Engine:
    number: int
    revision: str  # digest of its template
    process: EngineProcess

    @property
    def name(self) -> str:
        return self.process.launch.name


@dataclass(slots=True)
class Family:
    """The engines of a resource."""

    template: Manifest | None = None
    revision: str = ""
    wanted: int = 0
    engines: dict[int, Engine] = field(default_factory=dict)  # by number, those that still end included

    def members(self) -> list[Member]:
        return [
            Member(number=e.number, current=e.revision == self.revision, ready=e.process.ready)
            for e in self.engines.values()
            if not e.process.draining
        ]


class LocalBackend:
    def __init__(
        self, state: StateFolder, publish: Callable[[Registry], None], url: str, wake: Callable[[ResourceKey], None]
    ) -> None:
        self._state = state
        self._to_router = publish
        self._url = url
        self._wake = wake
        self._gpus = gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
        self._resources: dict[ResourceKey, LLMDeployment] = {}
        self._status: dict[ResourceKey, DeploymentStatus] = {}
        self._families: dict[ResourceKey, Family] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.decision: Callable[[ResourceKey], ScaleDecision | None] = lambda key: None  # of the autoscaler

    # for the autoscaler

    def scrape_targets(self) -> list[Target]:
        """What it is to look at."""
        return [
            Target(
                key=key,
                deployment=deployment,
                status=self._status.get(key),
                replicas=self._families[key].wanted,
                ready={
                    e.name: str(e.process.launch.socket)
                    for e in self.engines(key)
                    if e.process.ready and not e.process.draining
                },
            )
            for key, deployment in self._resources.items()
            if deployment.spec.autoscaling.mode == "Builtin" and key in self._status
        ]

    # for whoever says what is wanted

    def put(self, deployment: LLMDeployment) -> ResourceKey:
        """A resource is wanted from now on, as it is here."""
        key = ResourceKey(deployment.metadata.namespace, deployment.metadata.name)
        before = self._resources.get(key)
        generation = 1 if before is None else before.metadata.generation + (before.spec != deployment.spec)
        metadata = deployment.metadata.model_copy(update={"uid": UID, "generation": generation})
        self._resources[key] = deployment.model_copy(update={"metadata": metadata})
        self._families.setdefault(key, Family())
        self._publish()
        return key

    def scale(self, key: ResourceKey, replicas: int) -> None:
        """As `kubectl scale` does: the resource itself says so from now on."""
        resource = self._resources[key]
        self.put(resource.model_copy(update={"spec": resource.spec.model_copy(update={"replicas": replicas})}))

    def remove(self, key: ResourceKey) -> None:
        """Its engines finish what they have accepted, and end."""
        del self._resources[key]
        self._status.pop(key, None)
        family = self._families[key]
        family.wanted, family.template = 0, None
        self._settle(key)
        self._forget_if_empty(key)

    def all_keys(self) -> list[ResourceKey]:
        return sorted(self._resources)

    def resource(self, key: ResourceKey) -> LLMDeployment:
        return self._resources[key]

    def status(self, key: ResourceKey) -> DeploymentStatus | None:
        return self._status.get(key)

    def engines(self, key: ResourceKey) -> list[Engine]:
        return sorted(self._families[key].engines.values(), key=lambda engine: engine.number)

    def revision(self, key: ResourceKey) -> str:
        return self._families[key].revision

    async def stop(self) -> None:
        """End every engine; each finishes what it has accepted."""
        self._stopping = True
        await asyncio.gather(*(e.process.stop() for f in self._families.values() for e in f.engines.values()))
        await asyncio.gather(*self._ending)

    def cut(self) -> None:
        """End every engine now."""
        for family in self._families.values():
            for engine in family.engines.values():
                engine.process.cut()

    # what the reconciler asks for

    def observe(self, key: ResourceKey) -> tuple[Mapping[str, Any], Observed] | None:
        if key not in self._resources:
            return None
        family = self._families[key]
        members = family.members()
        current = [m for m in members if m.current]
        objects = {}
        if family.template is not None:
            state = ObjectState(uid=UID, owner_uid=UID, applied=family.revision, replicas=family.wanted)
            objects[Key("Deployment", key.name)] = state
        return self._resources[key].model_dump(mode="json", by_alias=True, exclude_unset=True), Observed(
            status=self._status.get(key),
            objects=objects,
            workload=Workload(
                current=True,
                replicas=len(members),
                updated=len(current),
                ready=sum(m.ready for m in members),
                updated_ready=sum(m.ready for m in current),
            ),
            instances=tuple(
                Instance(name=e.name, ready=e.process.ready, current=e.revision == family.revision, failure=e.process.failure)
                for e in self.engines(key)
                if not e.process.draining
            ),
            decision=self.decision(key),
        )  # fmt: skip

    def render(self, deployment: LLMDeployment) -> Desired:
        return process.render(deployment, self._url)

    async def execute(self, key: ResourceKey, action: Action) -> None:
        family = self._families[key]
        if isinstance(action, Create | Apply):
            self._check_gpus(key, action.manifest, family.wanted)
            family.template, family.revision = action.manifest, digest(action.manifest)
        elif isinstance(action, Scale):
            self._check_gpus(key, family.template, action.replicas)
            family.wanted = action.replicas
        elif isinstance(action, Delete):
            family.template, family.wanted = None, 0
        self._settle(key)

    async def write_status(self, key: ResourceKey, status: DeploymentStatus) -> None:
        if key in self._resources:
            self._status[key] = status
            self._publish()

    # engines

    def _check_gpus(self, key: ResourceKey, template: Manifest | None, replicas: int) -> None:
        """Without any GPU here the engine itself says so."""
        need = _gpus_each(template) * replicas
        others = sum(_gpus_each(f.template) * f.wanted for k, f in self._families.items() if k != key)
        if self._gpus and need and need + others > len(self._gpus):
            used = f", of which other models take {others}" if others else ""
            raise Refused(
                f"{replicas} {'replica needs' if replicas == 1 else 'replicas need'} {need} GPUs, and this machine has {len(self._gpus)}{used}: lower spec.replicas or spec.parallelism"
            )

    def _settle(self, key: ResourceKey) -> None:
        """Start and let go what has to be, and tell the router."""
        family = self._families[key]
        if not self._stopping:
            needs = _gpus_each(family.template)
            taken = {
                gpu for f in self._families.values() for e in f.engines.values() for gpu in e.process.launch.devices
            }
            free = free_gpus(self._gpus, taken)
            counted = needs and self._gpus
            spare = not counted or len(free) >= needs
            steps = next_steps(family.members(), family.wanted, frozenset(family.engines), spare)
            for number in steps.retire:
                self._let_go(key, family.engines[number])
            for number in steps.start:
                if counted and len(free) < needs:
                    break  # those that are ending have them
                own, free = free[:needs], free[needs:]
                self._start(key, number, tuple(own))
        self._publish()

    def _start(self, key: ResourceKey, number: int, devices: tuple[str, ...]) -> None:
        family = self._families[key]
        assert family.template is not None
        template = family.template["spec"]["template"]
        name = f"{key.name}-{number}"
        socket = self._state.sockets / f"{name}.sock"
        environment = {MARK: str(self._state.path)}
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
        if "OMP_NUM_THREADS" not in os.environ:
            on_cpu = sum(f.wanted for f in self._families.values() if not _gpus_each(f.template))
            environment["OMP_NUM_THREADS"] = str(threads(on_cpu))
        launch = Launch(
            name=name,
            command=(sys.executable, "-m", "quire_api", *template["command"][1:], f"--uds={socket}"),
            environment=environment,
            socket=socket,
            log=self._state.logs / f"{name}.log",
            grace_s=template["graceSeconds"],
            devices=devices,
        )
        witness = Witness(changed=lambda: self._changed(key), started=self._state.started, ended=self._state.ended)
        family.engines[number] = Engine(number=number, revision=family.revision, process=EngineProcess(launch, witness))

    def _let_go(self, key: ResourceKey, engine: Engine) -> None:
        async def end() -> None:
            await engine.process.stop()
            del self._families[key].engines[engine.number]
            self._changed(key)
            self._forget_if_empty(key)

        engine.process.draining = True
        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _forget_if_empty(self, key: ResourceKey) -> None:
        if key not in self._resources and not self._families[key].engines:
            del self._families[key]

    def _changed(self, key: ResourceKey) -> None:
        if key in self._families:
            self._settle(key)
            self._wake(key)

    # the router

    def _publish(self) -> None:
        """Tell the router who is ready, and who gets nothing more."""
        models = (
            self._model(resource, self._families[key], self._status.get(key))
            for key, resource in self._resources.items()
        )
        self._to_router(Registry(tuple(models)))

    def _model(self, resource: LLMDeployment, family: Family, status: DeploymentStatus | None) -> Model:
        staying = [e for e in family.engines.values() if not e.process.draining]
        endpoints = [
            Endpoint(address=str(e.process.launch.socket), draining=e.process.draining)
            for e in family.engines.values()
            if e.process.ready
        ]
        return replace(
            declared(resource, status),
            endpoints=tuple(sorted(endpoints, key=lambda endpoint: endpoint.address)),
            desired=family.wanted,
            loading=sum(not e.process.ready for e in staying),
            groups=(),  # there are no keys here
        )


def _gpus_each(template: Manifest | None) -> int:
    """Of an engine that is made of it."""
    return template["spec"]["template"]["gpus"] if template else 0
