"""`quire up` and `quire plan` as a user runs them: real processes."""

import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import yaml
from fakes.resources import bad_resources, good, spoiled
from fakes.serving import Running, children, free_port, run_quire, serving

SAMPLE = "config/samples/tiny-cpu.yaml"
GREETING = "Hello! I am quire-tiny, the small model that ships with Quire. How can I help you?"


def chat(server: Running, text: str) -> str:
    status, done = server.post("/v1/chat/completions", temperature=0, messages=[{"role": "user", "content": text}])
    assert status == 200, done
    return str(done["choices"][0]["message"]["content"])


def tree(pid: int) -> list[int]:
    """All processes below `pid`."""
    return [p for child in children(pid) for p in (child, *tree(child))]


def write(folder: Path, *resources: dict[str, object]) -> str:
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump_all(resources))
    return str(path)


@pytest.mark.xdist_group("up")
def test_up_serves_the_sample_survives_a_crash_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, "up", "-f", SAMPLE, ready="model:quire-tiny") as server:
        assert chat(server, "Hello!") == GREETING
        assert "Serving  1 of 1 engines serve quire-tiny" in server.log.read_text()
        processes = tree(server.process.pid)
        assert len(processes) == 3  # the engine's API process, its engine process, and the one that tries grammars

        os.kill(processes[0], signal.SIGKILL)  # the engine's API process

        deadline = time.monotonic() + 30
        while "Restarting" not in server.log.read_text() or not _answers(server):
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
        assert chat(server, "Hello!") == GREETING
        processes = tree(server.process.pid)
        assert server.stop(signal.SIGINT) == 0
    assert [p for p in processes if Path(f"/proc/{p}").exists()] == []
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["logs", "owner.json"]
    assert (tmp_path / "state" / "owner.json").read_text() == ""


def _answers(server: Running) -> bool:
    return server.post("/v1/completions", prompt="a", max_tokens=1)[0] == 200


@pytest.mark.xdist_group("up")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_no_engine_outlives_its_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    """Killed, or its terminal closed."""
    with serving(tmp_path, "up", "-f", SAMPLE, ready="model:quire-tiny") as server:
        processes = tree(server.process.pid)

        server.stop(number)

        deadline = time.monotonic() + 15
        while left := [p for p in processes if _runs(p)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.xdist_group("up")
def test_ctrl_c_finishes_streams_first(tmp_path: Path) -> None:
    with serving(tmp_path, "up", "-f", SAMPLE, ready="model:quire-tiny") as server:
        lines: list[bytes] = []
        begun = threading.Event()

        def read() -> None:
            body = {
                "model": "quire-tiny",
                "stream": True,
                "temperature": 0,
                "messages": [{"role": "user", "content": "Tell me a story."}],
            }
            data = json.dumps(body).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
                sock.sendall(head + b"content-length: %d\r\n\r\n%s" % (len(data), data))
                for line in sock.makefile("rb"):
                    lines.append(line.strip())
                    begun.set()

        thread = threading.Thread(target=read)
        thread.start()
        begun.wait(20)
        code = server.stop(signal.SIGINT)
        thread.join(20)

    assert code == 0
    assert b"data: [DONE]" in lines


@pytest.mark.xdist_group("up")
def test_two_models_and_two_replicas_behind_one_endpoint(tmp_path: Path) -> None:
    small = {"spec.engine.kvCacheGiB": 0.05}
    first = spoiled({**small, "metadata.name": "first", "spec.model.name": "quire-tiny", "spec.replicas": 2})
    second = spoiled({**small, "metadata.name": "second", "spec.model.name": None, "spec.model.aliases": ["other"]})
    with serving(tmp_path, "up", "-f", write(tmp_path, first, second), ready="model:other", seconds=90) as server:
        status, _, body = server.request("GET", "/v1/models")

        assert [m["id"] for m in json.loads(body)["data"]] == ["quire-tiny", "second", "other"]
        assert status == 200
        deadline = time.monotonic() + 60
        while "2 of 2 engines serve quire-tiny" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
        assert chat(server, "Hello!") == GREETING


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"spec.model.source.uri": "file:///nowhere"},
            "ModelNotFound  good-0: quire serve: no model at /nowhere: there is no such folder",
        ),
        (
            {"spec.engine.maxModelLen": 4096},
            "EngineRejectedConfig  good-0: quire serve: --max-model-len 4096 is more than the 2048",
        ),
        (
            {"spec.accelerator.profile": "nvidia"},
            "DeviceUnavailable  good-0: quire serve: --device cuda, but torch sees no GPU",
        ),
    ],
)
def test_a_model_that_cannot_start_ends_up_with_a_sentence(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    done = run_quire("up", "-f", write(tmp_path, spoiled(changes)), "--port=0")

    assert done.returncode == 1
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_engines_of_several_gpus_are_refused_where_there_are_too_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    resource = spoiled({"spec.accelerator.profile": "nvidia", "spec.parallelism": {"tensor": 2}, "spec.replicas": 2})

    with serving(tmp_path, "up", "-f", write(tmp_path, resource), ready="/livez") as server:
        deadline = time.monotonic() + 20
        while "or spec.parallelism" not in (said := server.log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)

    assert "2 replicas need 4 GPUs, and this machine has 3: lower spec.replicas or spec.parallelism" in said


def test_a_port_in_use_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()

        done = run_quire("up", "-f", SAMPLE, f"--port={port}")

    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == f"quire up: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --host or --port"
    )


@pytest.mark.parametrize("case", bad_resources(), ids=lambda case: case["name"])
def test_plan_refuses_what_kubectl_refuses(
    tmp_path: Path, case: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    from quire_api.command import main

    path = write(tmp_path, spoiled(case["set"]))  # type: ignore[arg-type]

    code = main(["plan", "-f", path])

    shown = capsys.readouterr()
    assert code == 2
    assert shown.out == ""
    assert shown.err.startswith(f"quire plan: {path}: ")
    assert str(case.get("quire", case.get("says"))) in shown.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not YAML"),
        ("- 1", "a resource is a mapping with apiVersion"),
        ("", "no LLMDeployment in it"),
        ("kind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {}", "kind: must be 'LLMDeployment'"),
    ],
)
def test_a_file_that_holds_no_resource_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)

    done = run_quire("plan", "-f", str(path))

    assert done.returncode == 2
    assert f"quire plan: {path}" in done.stderr
    assert says in done.stderr


def test_two_resources_of_one_name_are_refused(tmp_path: Path) -> None:
    done = run_quire("plan", "-f", write(tmp_path, good(), good()))

    assert done.returncode == 2
    assert "good: two resources have this name" in done.stderr


@pytest.mark.parametrize("sample", sorted(Path("config/samples").glob("*.yaml")), ids=lambda p: p.name)
def test_the_plan_of_each_sample_is_the_golden_one(sample: Path) -> None:
    """After a wanted change: `quire plan -f SAMPLE > tests/quire_operator/golden/SAMPLE`."""
    golden = Path("tests/quire_operator/golden") / sample.name

    done = run_quire("plan", "-f", str(sample))

    assert done.stdout == golden.read_text()
