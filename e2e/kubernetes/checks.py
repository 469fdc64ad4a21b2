"""What must hold on a real Kubernetes, in the order in which it is checked.

Each check is a function of the world; its docstring is its line in the table. They share one cluster: the
resource `tiny` of config/samples/tiny-cpu.yaml lives from `apply` to `delete`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from fakes.resources import bad_resources, good, spoiled
from target import NAMESPACE, RELEASE, ROOT, SYSTEM, Images, Tools

SAMPLES = ROOT / "config" / "samples"
SAMPLE = SAMPLES / "tiny-cpu.yaml"


@dataclass
class World:
    tools: Tools
    images: Images

    def get(self, *what: str) -> Any:
        return json.loads(self.tools.kubectl("get", "-n", NAMESPACE, *what, "-o", "json").stdout)

    def tiny(self) -> Any:
        return self.get("llmd", "tiny")

    def serves_groups(self) -> bool:
        """Whether the kind is there that engines on several nodes are made of."""
        crd = "crd/leaderworkersets.leaderworkerset.x-k8s.io"
        return self.tools.kubectl("get", crd, check=False).returncode == 0

    def wait_ready(self, seconds: int) -> None:
        self.tools.kubectl("wait", "-n", NAMESPACE, "llmd/tiny", "--for=condition=Ready", f"--timeout={seconds}s")

    def eventually(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:.0f} s: {what}")
            time.sleep(0.5)

    def pods(self) -> list[Any]:
        pods = self.get("pods", "-l", "quire.dev/llmdeployment=tiny")["items"]
        return [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]


# Runs inside the cluster, with what the operator's image has: DNS, the Service and kube-proxy are all on the way.
STREAM_CLIENT = (ROOT / "e2e/kubernetes/stream_client.py").read_text()
OPERATOR = "app.kubernetes.io/name=quire-operator"  # its pods; the router's are others
HOST = f"tiny.{NAMESPACE}.svc.cluster.local"


def ask(world: World, question: str, host: str = HOST, model: str = "quire-tiny") -> tuple[int, str]:
    """Stream an answer through the Service, from a pod; number of events, text."""
    program = f"{STREAM_CLIENT}\nprint(*ask({host!r}, {question!r}, {model!r}))"
    command = ["exec", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--", "python3", "-c", program]
    events, _, text = world.tools.kubectl(*command).stdout.strip().partition(" ")
    return int(events), text


def crd_is_structural(world: World) -> None:
    """CRD installs; structural, names accepted, explain reads it"""
    world.tools.kubectl("create", "namespace", NAMESPACE)
    world.tools.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
    established = ("wait", "--for=condition=Established", "crd/llmdeployments.quire.dev", "--timeout=30s")
    world.eventually(  # kubectl will not wait for conditions that are not there at all yet
        "the CRD is established", lambda: world.tools.kubectl(*established, check=False).returncode == 0, 30
    )
    crd = json.loads(world.tools.kubectl("get", "crd", "llmdeployments.quire.dev", "-o", "json").stdout)
    conditions = {c["type"]: c for c in crd["status"]["conditions"]}
    assert "NonStructuralSchema" not in conditions, conditions
    world.eventually("kubectl explain knows the kind", lambda: "model" in _explain(world), 20)
    assert "maxNumSeqs" in _explain(world)


def _explain(world: World) -> str:
    return world.tools.kubectl("explain", "llmdeployment.spec", "--recursive", check=False).stdout


def samples_pass_dry_run(world: World) -> None:
    """every sample passes server dry-run"""
    for sample in sorted(SAMPLES.glob("*.yaml")):
        world.tools.kubectl("apply", "-n", NAMESPACE, "--dry-run=server", "--validate=strict", "-f", str(sample))


def plans_pass_dry_run(world: World) -> None:
    """every object that a sample becomes, and one with all there is to say of its pods, passes server dry-run"""
    full = good(
        spec__replicas=3,
        spec__accelerator={"profile": "nvidia"},
        spec__scheduling={
            "nodeSelector": {"pool": "a"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
            "priorityClassName": "",
        },
        spec__disruption={"maxUnavailable": 2},
        spec__podTemplate={
            "metadata": {"annotations": {"a": "b"}},
            "spec": {
                "imagePullSecrets": [{"name": "registry"}],
                "containers": [{"name": "engine", "args": ["--seed=1"]}],
            },
        },
    )
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(full, file)
        file.flush()
        for path in (*sorted(SAMPLES.glob("*.yaml")), file.name):
            command = [sys.executable, "-m", "quire_api", "plan", "-f", str(path)]
            planned = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            if not world.serves_groups():
                documents = yaml.safe_load_all(planned)
                planned = yaml.safe_dump_all(d for d in documents if d["kind"] != "LeaderWorkerSet")
            world.tools.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=planned)


def bad_resources_are_refused(world: World) -> None:
    """bad resources are refused with the expected message"""
    cases = bad_resources()
    assert len(cases) >= 20
    world.tools.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(good()))
    for case in cases:
        manifest = yaml.safe_dump(spoiled(case["set"]))
        done = world.tools.kubectl(
            "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=manifest, check=False
        )
        expected = case.get("server", case.get("says"))
        assert done.returncode != 0, f"accepted: {case['name']}"
        assert expected in done.stderr, f"{case['name']}: {expected!r} is not in {done.stderr!r}"


def helm_install(world: World) -> None:
    """helm install; the operator is ready, under restricted Pod Security"""
    world.tools.kubectl("create", "namespace", SYSTEM)
    for namespace in (SYSTEM, NAMESPACE):
        world.tools.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    world.tools.kubectl("delete", "crd", "llmdeployments.quire.dev")
    engine, _, engine_tag = world.images.engine.rpartition(":")
    operator, _, operator_tag = world.images.operator.rpartition(":")
    values = {
        "image.repository": operator, "image.tag": operator_tag,
        "engineImage.repository": engine, "engineImage.tag": engine_tag,
    }  # fmt: skip
    settings = [f"--set={name}={value}" for name, value in values.items()]
    world.tools.helm(
        "install", RELEASE, str(ROOT / "charts" / "quire"), f"--namespace={SYSTEM}", "--wait", "--timeout=3m", *settings
    )


def operator_image_has_no_torch(world: World) -> None:
    """the operator's image has no torch"""
    command = [
        "exec",
        "-n",
        SYSTEM,
        f"deploy/{RELEASE}-operator",
        "--",
        "python3",
        "-c",
        "import quire_operator, torch",
    ]
    done = world.tools.kubectl(*command, check=False)
    assert "No module named 'torch'" in done.stderr, done.stderr


def apply_becomes_ready(world: World) -> None:
    """kubectl apply config/samples/tiny-cpu.yaml; Ready"""
    world.tools.kubectl("apply", "-n", NAMESPACE, "-f", str(SAMPLE))
    world.wait_ready(240)
    status = world.tiny()["status"]
    assert status["serving"] == "1/1", status
    assert {c["type"] for c in status["conditions"]} == {"Ready", "Available"}, status
    assert {f"{c['kind']}/{c['name']}" for c in status["children"]} == {
        *(f"{kind}/tiny" for kind in ("Deployment", "Service", "ServiceAccount", "NetworkPolicy")),
        "Service/tiny-engines",
        f"ControllerRevision/tiny-{status['revision']['lastGood']}",
    }


def chat_through_the_service(world: World) -> None:
    """a streamed chat through the Service, from a pod"""
    events, text = ask(world, "What is an LLMDeployment?")
    assert events > 5, events
    assert "Kubernetes resource that describes one served model" in text, text


def versions(world: World) -> dict[str, str]:
    """Of everything that an operator may write."""
    kinds = "llmd,deployments,controllerrevisions,services,serviceaccounts,networkpolicies,poddisruptionbudgets"
    objects = world.get(kinds)["items"]
    return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in objects}


def nothing_to_do_is_nothing_done(world: World) -> None:
    """at rest nothing is written: no version moves"""
    time.sleep(3)
    before = versions(world)
    time.sleep(8)
    assert versions(world) == before


def scale_subresource_works(world: World) -> None:
    """kubectl scale to 2, and back to 1"""
    for count in (2, 1):
        world.tools.kubectl("scale", "-n", NAMESPACE, "llmd/tiny", f"--replicas={count}")
        world.eventually(f"{count} engines serve", lambda n=count: world.tiny()["status"]["serving"] == f"{n}/{n}", 120)
    world.wait_ready(60)


def drift_is_corrected(world: World) -> None:
    """a child edited or deleted by hand comes back"""
    world.tools.kubectl(
        "patch", "-n", NAMESPACE, "service/tiny", "--type=merge", '-p={"spec":{"selector":{"quire.dev/role":"wrong"}}}'
    )
    world.eventually(
        "the selector is back",
        lambda: world.get("service", "tiny")["spec"]["selector"]["quire.dev/role"] == "engine",
        20,
    )
    uid = world.get("serviceaccount", "tiny")["metadata"]["uid"]
    world.tools.kubectl("delete", "-n", NAMESPACE, "serviceaccount/tiny")
    world.eventually("there is a new service account", lambda: _uid(world, "serviceaccount") not in (uid, None), 20)
    world.wait_ready(60)


def _uid(world: World, kind: str) -> str | None:
    found = world.tools.kubectl(
        "get", "-n", NAMESPACE, kind, "tiny", "-o", "jsonpath={.metadata.uid}", check=False
    ).stdout
    return found or None


def name_conflict_is_stalled(world: World) -> None:
    """a name that is taken: Stalled/NameConflict, the other's object untouched, mended once it is gone"""
    world.tools.kubectl("create", "service", "clusterip", "taken", "-n", NAMESPACE, "--tcp=80:80")
    before = world.get("service", "taken")
    manifest = good(metadata__name="taken", metadata__namespace=NAMESPACE, spec__replicas=0)
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    world.eventually("it is stalled", lambda: reason(world, "taken", "Stalled") == "NameConflict", 30)
    assert world.get("service", "taken")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    world.tools.kubectl("delete", "-n", NAMESPACE, "service/taken")
    world.eventually("it is mended", lambda: reason(world, "taken", "Ready") == "ScaledToZero", 60)
    world.tools.kubectl("delete", "-n", NAMESPACE, "llmd/taken")


def bad_source_is_stalled(world: World) -> None:
    """a model that is not there: Stalled/ModelNotFound with the engine's own sentence"""
    manifest = good(metadata__name="lost", metadata__namespace=NAMESPACE, spec__model__source__uri="file:///nowhere")
    world.tools.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    world.eventually("it is stalled", lambda: reason(world, "lost", "Stalled") == "ModelNotFound", 90)
    conditions = world.get("llmd", "lost")["status"]["conditions"]
    assert "no model at /nowhere: there is no such folder" in conditions[0]["message"], conditions
    world.tools.kubectl("delete", "-n", NAMESPACE, "llmd/lost")


def reason(world: World, name: str, condition: str) -> str:
    path = f'jsonpath={{.status.conditions[?(@.type=="{condition}")].reason}}'
    return world.tools.kubectl("get", "-n", NAMESPACE, "llmd", name, "-o", path, check=False).stdout


def operator_killed_and_back(world: World) -> None:
    """operator killed: engines serve on; changed meanwhile, seen after"""
    pods = {pod["metadata"]["uid"] for pod in world.pods()}
    world.tools.kubectl("scale", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--replicas=0")
    world.eventually("no operator", lambda: not operator_pods(world), 60)
    world.tools.kubectl(
        "patch", "-n", NAMESPACE, "llmd/tiny", "--type=merge", '-p={"spec":{"model":{"aliases":["tiny-alias"]}}}'
    )
    time.sleep(3)
    assert {pod["metadata"]["uid"] for pod in world.pods()} == pods
    world.tools.kubectl("scale", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--replicas=2")
    world.tools.kubectl("rollout", "status", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--timeout=120s")
    generation = world.tiny()["metadata"]["generation"]
    world.eventually("the change is seen", lambda: world.tiny()["status"]["observedGeneration"] == generation, 60)
    world.wait_ready(180)


def operator_pods(world: World) -> list[Any]:
    found = world.tools.kubectl("get", "pods", "-n", SYSTEM, "-l", OPERATOR, "-o", "json").stdout
    items: list[Any] = json.loads(found)["items"]
    return items


def operator_crash_changes_nothing(world: World) -> None:
    """operators deleted without grace: back, and no object written"""
    before = versions(world)
    world.tools.kubectl("delete", "pods", "-n", SYSTEM, "-l", OPERATOR, "--grace-period=0", "--force")
    world.tools.kubectl("rollout", "status", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--timeout=120s")
    world.eventually("one of the new ones works", lambda: holder(world) in _names(operator_pods(world)), 30)
    time.sleep(5)
    assert versions(world) == before


def holder(world: World) -> str:
    """The pod of the operator that works; empty while none does."""
    return identity(world).rpartition("_")[0]


def identity(world: World) -> str:
    """Of that operator: another one each time that a container is started."""
    path = "jsonpath={.spec.holderIdentity}"
    lease = world.tools.kubectl("get", "-n", SYSTEM, "lease", f"{RELEASE}-operator", "-o", path, check=False)
    return str(lease.stdout)


def _names(objects: list[Any]) -> set[str]:
    return {each["metadata"]["name"] for each in objects}


def edit_rolls_the_pods(world: World) -> None:
    """an edit rolls the pods; of the streams before, during and after, none breaks"""
    before = {pod["metadata"]["uid"] for pod in world.pods()}
    command = [*world.tools.prefix, world.tools.kubectl_path, f"--kubeconfig={world.tools.kubeconfig}"]
    command += ["exec", "-n", SYSTEM, f"deploy/{RELEASE}-operator", "--", "python3", "-c"]
    client = f"{STREAM_CLIENT}\nloop({HOST!r}, 'Tell me a story.', 30)"
    clients = [
        subprocess.Popen([*command, client], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    started = time.monotonic()
    world.tools.kubectl(
        "patch", "-n", NAMESPACE, "llmd/tiny", "--type=merge", '-p={"spec":{"engine":{"maxNumSeqs":32}}}'
    )
    generation = world.tiny()["metadata"]["generation"]
    world.eventually("the edit is seen", lambda: world.tiny()["status"].get("observedGeneration") == generation, 30)
    world.wait_ready(240)
    world.eventually("only new pods", lambda: not before & {pod["metadata"]["uid"] for pod in _all_pods(world)}, 120)
    assert time.monotonic() - started < 30, "the roll took longer than the clients looked"
    for each in clients:
        out, err = each.communicate(timeout=120)
        assert each.returncode == 0, err
        assert int(out) >= 10, out
    assert "32" in str(world.pods()[0]["spec"]["containers"][0]["command"])


def _all_pods(world: World) -> list[Any]:
    """With those that are ending."""
    items: list[Any] = world.get("pods", "-l", "quire.dev/llmdeployment=tiny")["items"]
    return items


def delete_leaves_nothing(world: World) -> None:
    """delete: every child goes, with no finalizer on anything"""
    assert not world.tiny()["metadata"].get("finalizers")
    world.tools.kubectl("delete", "-n", NAMESPACE, "llmd/tiny", "--timeout=60s")
    kinds = (
        "llmd,deployments,controllerrevisions,replicasets,pods,services,serviceaccounts,networkpolicies,"
        "poddisruptionbudgets,horizontalpodautoscalers,jobs,configmaps,secrets"
    )

    def left() -> list[str]:
        items = world.get(kinds)["items"]
        return [
            f"{o['kind']}/{o['metadata']['name']}"
            for o in items
            if o["metadata"]["name"].startswith(("tiny", "taken", "lost", "rolling", "lonely", "scaled", "refused"))
        ]

    world.eventually("nothing is left", lambda: not left(), 120)


def helm_uninstall_keeps_the_crd(world: World) -> None:
    """helm uninstall: the operator goes, the CRD and its resources stay"""
    world.tools.helm("uninstall", RELEASE, f"--namespace={SYSTEM}", "--wait")
    world.tools.kubectl("get", "crd", "llmdeployments.quire.dev")


BEFORE_IMAGES = (crd_is_structural, samples_pass_dry_run, plans_pass_dry_run, bad_resources_are_refused)
WITH_IMAGES = (
    helm_install,
    operator_image_has_no_torch,
    apply_becomes_ready,
    chat_through_the_service,
    nothing_to_do_is_nothing_done,
    scale_subresource_works,
    drift_is_corrected,
    name_conflict_is_stalled,
    bad_source_is_stalled,
    operator_killed_and_back,
    operator_crash_changes_nothing,
    edit_rolls_the_pods,
    delete_leaves_nothing,
    helm_uninstall_keeps_the_crd,
)
