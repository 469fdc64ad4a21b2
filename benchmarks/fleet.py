#!/usr/bin/env python3
"""The operator with many resources: a real control plane (e2e/cluster), nodes and pods played by kwok.

    cold       every resource is there, nothing was made of any: the operator is started; how long until all are Ready and
               nothing is written any more
    steady     nothing happens: writes to the API server, processor and memory of the operator; one in five resources is in
               mode Builtin, and every engine of those answers /load every five seconds
    change     `replicas` of one resource after the other is changed: how long until its Deployment has the number
    restart    the operator is killed with -9 and started again: how long until it has looked at every resource

The resources are applied by the chart's roles and service account. An engine is a pod that kwok says is ready as soon as it
has a node; `/load` is answered by one server for all of them. Needs root, Go and the packages of
`scripts/system-packages.sh e2e`. The JSON goes to benchmarks/results/.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT / "e2e/cluster")]

import machine  # noqa: E402  # after the path above
from binaries import ensure_binaries, ensure_kwok  # noqa: E402
from cluster import down, left_over, up  # noqa: E402
from layout import API_PORT, BINARIES, NODE_ADDRESS, POD_RANGE, Layout  # noqa: E402
from processes import start, stop, wait_until  # noqa: E402

SYSTEM, MODELS = "quire-system", "models"
PORT = 18080
NODES, ENGINES = 10, 5
BUILTIN_EVERY = 5  # one resource in so many is scaled by its load
STEADY_S, CHANGES, CHANGE_EVERY_S = 60.0, 100, 0.5
COLD_MOST_S = 1500.0
TARGETS = {"cold_s": 600, "writes_per_s": 5, "memory_mib": 512, "change_p95_s": 1.0}

LOAD = {
    "running": 1, "waiting": 0, "kv_usage": 0.1, "kv_tokens": 100_000, "max_num_seqs": 64, "preemptions": 0, "finished": 0,
}  # fmt: skip


def resource(number: int) -> dict[str, Any]:
    builtin = {"mode": "Builtin", "min": ENGINES, "max": 2 * ENGINES}
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": f"m{number}", "namespace": MODELS},
        "spec": {
            "model": {"source": {"uri": "builtin://quire-tiny"}},
            "accelerator": {"profile": "cpu"},
            "replicas": ENGINES,
            "autoscaling": builtin if number % BUILTIN_EVERY == 0 else {"mode": "Manual"},
        },
    }


def node(number: int) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": f"n{number}", "topology.kubernetes.io/zone": f"z{number % 3}"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"n{number}", "labels": labels}}


class Bench:
    def __init__(self, layout: Layout, resources: int) -> None:
        self.layout, self.count = layout, resources
        self.operator: subprocess.Popen[bytes] | None = None
        self.log = layout.folder / "operator.log"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        command = [*self.layout.inside, str(BINARIES / "kubectl"), f"--kubeconfig={self.layout.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"kubectl {' '.join(arguments)}: {done.stderr[-2000:]}")
        return done.stdout

    def prepare(self) -> None:
        """Nodes, rights, an account, and every resource."""
        layout = self.layout
        for name, arguments in (("kwok", self._kwok()), ("engines", [sys.executable, __file__, "--engines"])):
            start(layout, name, arguments)
        # All of the pods' network is this machine, so that one server is every engine.
        subprocess.run([*layout.inside, *f"ip route add local {POD_RANGE} dev lo".split()], check=True)
        self._create([node(number) for number in range(NODES)])
        for namespace in (SYSTEM, MODELS):
            self.kubectl("create", "namespace", namespace)
        chart = subprocess.run(
            [str(BINARIES / "helm"), "template", "quire", str(ROOT / "charts/quire"), f"--namespace={SYSTEM}",
             "--kube-version=1.34.4", "--show-only=templates/rbac.yaml", "--show-only=templates/serviceaccount.yaml",
             "--show-only=templates/crd.yaml"], capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        self.kubectl("apply", "--server-side", "-f", "-", stdin=chart)
        wait_until("the CRD", lambda: "llmdeployments" in self.kubectl("api-resources", "--api-group=quire.dev"), 30)
        self._create([resource(number) for number in range(self.count)])
        token = self.kubectl("create", "token", "quire-operator", "-n", SYSTEM, "--duration=24h").strip()
        cluster = {
            "server": f"https://{NODE_ADDRESS}:{API_PORT}",
            "certificate-authority": str(layout.folder / "pki/ca.crt"),
        }
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        (layout.folder / "operator.kubeconfig").write_text(json.dumps(config))

    def start_operator(self) -> None:
        command = [sys.executable, "-m", "quire_api", "operator", f"--lease={SYSTEM}/quire-operator", f"--port={PORT}"]
        environment = {**os.environ, "KUBECONFIG": str(self.layout.folder / "operator.kubeconfig")}
        with self.log.open("ab") as log:
            self.operator = subprocess.Popen([*self.layout.inside, *command], env=environment, stdout=log, stderr=log)

    def kill_operator(self) -> None:
        assert self.operator is not None
        self.operator.send_signal(signal.SIGKILL)
        self.operator.wait()

    def looks(self) -> int:
        """How often engines have answered /load."""
        command = [*self.layout.inside, "curl", "-s", "-m", "5", "http://127.0.0.1:8000/looks"]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def said(self) -> dict[str, float]:
        """The operator's metrics: name and labels -> value; empty while it does not answer."""
        assert self.operator is not None
        if self.operator.poll() is not None:
            raise SystemExit(f"the operator has ended:\n{self.log.read_text()[-3000:]}")
        command = [*self.layout.inside, "curl", "-s", "-m", "5", f"http://127.0.0.1:{PORT}/metrics"]
        text = subprocess.run(command, capture_output=True, text=True).stdout
        lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in lines}

    def wait(self, what: Callable[[dict[str, float]], bool], seconds: float, every: float = 1.0) -> float:
        """Seconds that it took."""
        started, told = time.monotonic(), 0.0
        while not what(said := self.said()):
            took = time.monotonic() - started
            if took > seconds:
                raise SystemExit(f"not after {seconds:.0f} s:\n{self.log.read_text()[-3000:]}")
            if took - told > 15:
                told = took
                print(f"   {took:4.0f} s: {ready(said):.0f} ready, {said.get('quire_operator_queue_depth', 0):.0f} due, "
                      f"{writes(said):.0f} writes, {self.memory()['now']:.0f} MiB", flush=True)  # fmt: skip
            time.sleep(every)
        return time.monotonic() - started

    def memory(self) -> dict[str, float]:
        """MiB in memory, of the operator's process."""
        assert self.operator is not None
        lines = Path(f"/proc/{self.operator.pid}/status").read_text().splitlines()
        kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
        return {"now": round(kib["VmRSS"] / 1024, 1), "most": round(kib["VmHWM"] / 1024, 1)}

    def cpu_s(self) -> float:
        assert self.operator is not None
        return machine.cpu_s(machine.family(self.operator.pid))

    def _create(self, objects: list[dict[str, Any]]) -> None:
        self.kubectl(
            "create",
            "--validate=false",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
        )

    def _kwok(self) -> list[str]:
        return [
            str(ensure_kwok()), f"--kubeconfig={self.layout.kubeconfig}", "--manage-all-nodes", f"--cidr={POD_RANGE}",
            f"--node-ip={NODE_ADDRESS}", f"--config={HERE / 'fleet-stages.yaml'}",
        ]  # fmt: skip


def ready(said: dict[str, float]) -> float:
    return said.get('quire_operator_resources{condition="Ready",status="True"}', 0)


def writes(said: dict[str, float]) -> float:
    """The lease is not among them: it is renewed every two seconds."""
    return sum(value for name, value in said.items() if name.startswith("quire_operator_api_writes_total"))


def by_verb(before: dict[str, float], after: dict[str, float]) -> dict[str, int]:
    names = [name for name in after if name.startswith("quire_operator_api_writes_total")]
    grown = {name.partition("{")[2].rstrip("}"): int(after[name] - before.get(name, 0)) for name in names}
    return {name: count for name, count in sorted(grown.items()) if count}


def cold(bench: Bench) -> dict[str, Any]:
    cpu = 0.0
    bench.start_operator()
    began = time.monotonic()
    bench.wait(lambda said: ready(said) == bench.count and said["quire_operator_queue_depth"] == 0, COLD_MOST_S)
    until_ready, seen = time.monotonic() - began, bench.said()
    while True:  # the last statuses
        time.sleep(3)
        if writes(now := bench.said()) == writes(seen):
            break
        seen = now
    cpu = bench.cpu_s()
    said = bench.said()
    return {
        "ready_s": round(until_ready, 1),
        "cold_s": round(time.monotonic() - began - 3, 1),
        "writes": int(writes(said)),
        "by_verb": by_verb({}, said),
        "reconciles": said.get('quire_operator_reconciles_total{result="done"}'),
        "errors": said.get('quire_operator_reconciles_total{result="error"}', 0),
        "mean_reconcile_ms": round(1000 * said["quire_operator_reconcile_seconds_sum"] / said["quire_operator_reconcile_seconds_count"], 1),
        "operator_cpu_s": round(cpu, 1),
        "memory_mib": bench.memory(),
    }  # fmt: skip


def steady(bench: Bench) -> dict[str, Any]:
    before, looks, cpu, started = bench.said(), bench.looks(), bench.cpu_s(), time.monotonic()
    others = machine.Others(bench.operator.pid if bench.operator else None)
    time.sleep(STEADY_S)
    seconds, after = time.monotonic() - started, bench.said()
    return {
        "writes_per_s": round((writes(after) - writes(before)) / seconds, 2),
        "by_verb": by_verb(before, after),
        "loads_read_per_s": round((bench.looks() - looks) / seconds, 1),
        "operator_cores": round((bench.cpu_s() - cpu) / seconds, 3),
        "others_share": round(others.share(), 2),
        "memory_mib": bench.memory(),
    }


def change(bench: Bench) -> dict[str, Any]:
    """By a process in the cluster's network."""
    command = [
        *bench.layout.inside,
        sys.executable,
        __file__,
        f"--resources={bench.count}",
        f"--change={bench.layout.kubeconfig}",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


async def make_changes(kubeconfig: str, count: int) -> dict[str, Any]:
    from kubernetes.aio import client, config

    await config.load_kube_config(kubeconfig)
    rng, seconds = random.Random(1), []
    manual = [number for number in range(count) if number % BUILTIN_EVERY]
    async with client.ApiClient() as api:
        custom, apps = client.CustomObjectsApi(api), client.AppsV1Api(api)

        async def one(number: int, wanted: int) -> float:
            where = {
                "group": "quire.dev",
                "version": "v1alpha1",
                "namespace": MODELS,
                "plural": "llmdeployments",
                "name": f"m{number}",
            }
            await custom.patch_namespaced_custom_object(
                **where, body={"spec": {"replicas": wanted}}, _content_type="application/merge-patch+json"
            )
            begun = time.monotonic()
            while (await apps.read_namespaced_deployment(f"m{number}", MODELS)).spec.replicas != wanted:
                if time.monotonic() - begun > 60:
                    raise SystemExit(f"m{number} was not scaled within a minute")
                await asyncio.sleep(0.01)
            return time.monotonic() - begun

        for turn in range(CHANGES):
            seconds.append(await one(manual[turn % len(manual)], ENGINES + 1 + rng.randrange(2)))
            await asyncio.sleep(CHANGE_EVERY_S)
    cuts = statistics.quantiles(seconds, n=100)
    return {
        "changes": CHANGES,
        "p50_s": round(cuts[49], 3),
        "p95_s": round(cuts[94], 3),
        "most_s": round(max(seconds), 3),
    }


def restart(bench: Bench) -> dict[str, Any]:
    bench.kill_operator()
    bench.start_operator()
    took = bench.wait(
        lambda said: (
            said.get('quire_operator_reconciles_total{result="done"}', 0) >= bench.count
            and said["quire_operator_queue_depth"] == 0
        ),
        COLD_MOST_S,
    )
    said = bench.said()
    return {"restart_s": round(took, 1), "writes": int(writes(said)), "by_verb": by_verb({}, said),
            "memory_mib": bench.memory()}  # fmt: skip


def serve_engines() -> None:
    """What every engine answers, at every address of this machine."""
    head = b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n"
    load, looks = json.dumps(LOAD).encode(), 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal looks
        try:
            asked = await reader.readuntil(b"\r\n\r\n")
            looks += asked.startswith(b"GET /load ")
            writer.write(head + (str(looks).encode() if asked.startswith(b"GET /looks ") else load))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def main() -> None:
        server = await asyncio.start_server(talk, "0.0.0.0", 8000, backlog=1024)
        await server.serve_forever()

    asyncio.run(main())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resources", type=int, default=1000, help="each with five engines (default: %(default)s)")
    parser.add_argument("--engines", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--change", metavar="KUBECONFIG", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engines:
        serve_engines()
        return
    if arguments.change:
        print(json.dumps(asyncio.run(make_changes(arguments.change, arguments.resources))))
        return
    ensure_binaries()
    ensure_kwok()
    layout = Layout(f"fleet-{os.getpid()}")
    results: dict[str, Any] = {
        "machine": machine.describe(),
        "resources": arguments.resources,
        "engines": arguments.resources * ENGINES,
        "builtin_share": 1 / BUILTIN_EVERY,
        "targets": TARGETS,
    }
    up(layout, node=False)
    bench = Bench(layout, arguments.resources)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    try:
        bench.prepare()
        for name, measure in (
            ("cold", lambda: cold(bench)),
            ("steady", lambda: steady(bench)),
            ("change", lambda: change(bench)),
            ("restart", lambda: restart(bench)),
        ):
            results[name] = measure()
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    finally:
        if bench.operator is not None and bench.operator.poll() is None:
            bench.kill_operator()
        stop(layout, "kwok")
        down(layout)
        if left := left_over(layout):
            print("left over:\n" + "\n".join(left), flush=True)
    path = HERE / "results" / f"fleet-{arguments.resources}-{datetime.now(UTC):%Y%m%d-%H%M}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
