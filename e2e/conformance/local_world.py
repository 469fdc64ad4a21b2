"""The world of one machine: `quire up` on a folder of files, and the commands beside it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from fakes.serving import children, free_port, quire
from streams import ManyStreams

__all__ = ["LocalWorld", "local_world"]


class LocalWorld:
    name = "quire up"

    def __init__(self, folder: Path, state: Path, port: int, said: Path) -> None:
        self._folder, self._state, self._port, self._said = folder, state, port, said

    def apply(self, resource: dict[str, Any]) -> None:
        """As an editor saves; AssertionError with what `quire up` has against it."""
        name, before = resource["metadata"]["name"], self._said.stat().st_size
        generation = ((self.resource(name) or {}).get("metadata") or {}).get("generation", 0)
        fresh = self._folder / f".{name}.new"
        fresh.write_text(yaml.safe_dump(resource))
        fresh.replace(self._folder / f"{name}.yaml")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with self._said.open("rb") as said:
                said.seek(before)
                complaints = [line for line in said.read().decode().splitlines() if line.startswith("quire up: ")]
            if complaints:
                raise AssertionError("; ".join(complaints))
            now = (self.resource(name) or {}).get("metadata", {}).get("generation", 0)
            if now != generation:
                return
            time.sleep(0.1)
        raise AssertionError(f"{name}: the change of the file was not seen")

    def scale(self, name: str, replicas: int) -> None:
        self._run("scale", name, f"--replicas={replicas}")

    def delete(self, name: str) -> None:
        (self._folder / f"{name}.yaml").unlink()

    def resource(self, name: str) -> dict[str, Any] | None:
        return next((p["resource"] for p in self._pictures() if p["resource"]["metadata"]["name"] == name), None)

    def engines(self, name: str) -> list[str]:
        picture = next((p for p in self._pictures() if p["resource"]["metadata"]["name"] == name), None)
        return [f"{e['name']} since {e['since']}" for e in picture["engines"]] if picture else []

    def signal(self, name: str, number: int) -> None:
        picture = next(p for p in self._pictures() if p["resource"]["metadata"]["name"] == name)
        os.kill(children(picture["engines"][0]["pid"])[0], number)

    def answer(self, model: str, question: str) -> str:
        return self._run("chat", model, question, "--temperature=0").strip()

    def stream(self, model: str, count: int) -> ManyStreams:
        return ManyStreams("127.0.0.1", self._port, model, count)

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(quire(*arguments, f"--state={self._state}"), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def _pictures(self) -> list[dict[str, Any]]:
        from quire_operator.local.client import find

        with contextlib.suppress(http.client.HTTPException):
            return find(self._state, "").pictures()
        return []


@contextlib.contextmanager
def local_world() -> Iterator[LocalWorld]:
    """Runs a first small resource of its own, for `quire up` wants one; Ctrl-C must end it with 0."""
    with tempfile.TemporaryDirectory() as root:
        folder, state, said, port = Path(root, "yaml"), Path(root, "state"), Path(root, "said"), free_port()
        folder.mkdir()
        idle = {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": "idle"},
            "spec": {"model": {"source": {"uri": "builtin://quire-tiny"}}, "replicas": 0},
        }
        (folder / "idle.yaml").write_text(json.dumps(idle))
        with said.open("wb") as out:
            process = subprocess.Popen(
                quire("up", "-f", str(folder), f"--port={port}", f"--state={state}"), stdout=out, stderr=out
            )
        world = LocalWorld(folder, state, port, said)
        try:
            deadline = time.monotonic() + 60
            while b"endpoint" not in said.read_bytes():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            yield world
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0, said.read_text()
        except BaseException:
            print(said.read_text()[-3000:], flush=True)
            raise
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
