"""The parts of local mode, each alone: rolling, logs, files, devices, memory, tables, the state folder."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes.resources import good, spoiled
from hypothesis import given
from hypothesis import strategies as st

from quire_api.deployment import LLMDeployment
from quire_api.errors import InvalidInput
from quire_operator.backends.local import LocalBackend
from quire_operator.documents import load_profiles
from quire_operator.local.devices import free_gpus, gpus, threads
from quire_operator.local.fit import misfits
from quire_operator.local.logs import KEPT, RotatingLog, follow, last_lines
from quire_operator.local.rolling import Member, next_steps
from quire_operator.local.state import MARK, FolderTaken, StateFolder, process_start
from quire_operator.local.tables import age, table
from quire_operator.local.watch import Files
from quire_operator.local.words import explain, row
from quire_operator.planner.observed import Key, Observed, digest
from quire_operator.planner.plan import Apply, Create, Scale
from quire_operator.reconcile import Refused
from quire_router import Registry, Strategy

# the router


def test_the_router_hears_of_a_resource_at_once_and_lets_everybody_in(tmp_path: Path) -> None:
    """There are no keys on one machine, so the groups of a resource are left out."""
    told: list[Registry] = []
    backend = LocalBackend(StateFolder(tmp_path), told.append, "http://here/v1", lambda key: None)

    backend.put(LLMDeployment.parse(good(spec__access={"groups": ["staff"]}, spec__routing={"strategy": "RoundRobin"})))

    model = told[-1].find("quire-tiny")
    assert model is not None
    assert (model.resource, model.groups, model.strategy) == ("default/good", (), Strategy.ROUND_ROBIN)


# devices


def test_an_edit_that_needs_more_gpus_than_there_are_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    state = StateFolder(tmp_path)
    state.take()
    backend = LocalBackend(state, lambda registry: None, "http://here/v1", lambda key: None)
    gpus_of = {
        ranks: backend.render(
            LLMDeployment.parse(good(spec__accelerator__profile="nvidia", spec__parallelism={"tensor": ranks}))
        ).objects[0]
        for ranks in (1, 4)
    }
    key = backend.put(LLMDeployment.parse(good()))
    child = Key("Deployment", "good")

    async def edit() -> Observed:
        try:
            await backend.execute(key, Create(child, gpus_of[1]))
            await backend.execute(key, Scale(child, 1))
            with pytest.raises(Refused, match="1 replica needs 4 GPUs, and this machine has 2"):
                await backend.execute(key, Apply(child, gpus_of[4]))
            seen = backend.observe(key)
            assert seen is not None
            return seen[1]
        finally:
            await backend.stop()
            state.release()

    observed = asyncio.run(edit())

    assert observed.objects[child].applied == digest(gpus_of[1])
    assert [instance.current for instance in observed.instances] == [True]


# rolling


@given(
    old=st.lists(st.booleans(), max_size=5),
    current=st.lists(st.booleans(), max_size=5),
    wanted=st.integers(0, 5),
    spare=st.booleans(),
)
def test_a_roll_ends_with_what_is_wanted_and_as_many_serve_as_did(
    old: list[bool], current: list[bool], wanted: int, spare: bool
) -> None:
    """Every engine that is started becomes ready at some time; an engine more than wanted runs only with room to spare."""
    members = [Member(number=n, current=n >= len(old), ready=ready) for n, ready in enumerate(old + current)]
    floor = min(wanted, sum(m.ready for m in members))
    most = max(len(members), wanted + spare)

    for _ in range(40):
        steps = next_steps(members, wanted, frozenset(), spare)
        members = [m for m in members if m.number not in steps.retire]
        members += [Member(number=number, current=True, ready=False) for number in steps.start]
        serving = sum(m.ready for m in members)
        assert len(members) <= most
        assert serving >= floor - (not spare)
        if not steps.start and not steps.retire:
            if all(m.ready for m in members):
                break
            waiting = next(m for m in members if not m.ready)
            members = [Member(number=m.number, current=m.current, ready=m.ready or m is waiting) for m in members]

    assert sum(m.current for m in members) == len(members) == wanted


def test_a_new_engine_has_a_number_that_no_ending_one_has() -> None:
    members = [Member(number=0, current=False, ready=True)]

    steps = next_steps(members, 1, frozenset({1, 2}))

    assert steps.start == (3,)
    assert steps.retire == ()


def test_of_a_scale_down_those_go_that_do_not_serve_then_the_highest() -> None:
    members = [Member(number=n, current=True, ready=n != 1) for n in range(4)]

    assert next_steps(members, 2, frozenset()).retire == (1, 3)


# logs


def test_logs_are_bounded_and_the_last_lines_span_files(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", most_bytes=100)

    for number in range(100):
        log.write(b"line %04d\n" % number)

    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["a.log", "a.log.1", "a.log.2"]
    assert len(files) == KEPT
    assert all(file.stat().st_size <= 100 for file in files)
    assert log.last_line == "line 0099"
    assert last_lines(tmp_path / "a.log", 15).splitlines() == [b"line %04d" % n for n in range(85, 100)]
    log.close()


def test_following_a_log_goes_over_its_rotation(tmp_path: Path) -> None:
    log = RotatingLog(tmp_path / "a.log", most_bytes=50)
    log.write(b"before\n")
    lines = iter([b"x" * 45 + b"\n", b"y" * 45 + b"\n"])

    def goes_on() -> bool:
        """Whenever the reader has read all there is, one more line comes."""
        line = next(lines, None)
        if line is not None:
            log.write(line)
        return line is not None

    text = b"".join(follow(tmp_path / "a.log", goes_on, pause_s=0))

    assert text == b"x" * 45 + b"\n" + b"y" * 45 + b"\n"
    log.close()


# files


def write(path: Path, *resources: dict[str, object]) -> None:
    path.write_text(yaml.safe_dump_all(resources))


def test_files_say_what_is_new_changed_and_gone(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", good(metadata__name="a", spec__model__name="a"))
    write(tmp_path / "b.yaml", good(metadata__name="b", spec__model__name="b"))
    files = Files([str(tmp_path)])
    first = files.read()

    write(tmp_path / "a.yaml", good(metadata__name="a", spec__model__name="a", spec__replicas=2))
    (tmp_path / "b.yaml").unlink()
    second = files.read()
    (tmp_path / "a.yaml").unlink()
    third = files.read()

    assert [d.metadata.name for d in first.put] == ["a", "b"]
    assert [(d.metadata.name, d.spec.replicas) for d in second.put] == [("a", 2)]
    assert [key.name for key in second.removed] == ["b"]
    assert [key.name for key in third.removed] == ["a"]


def test_files_that_became_invalid_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    write(path, good())
    files = Files([str(path)])
    files.read()
    before = dict(files.resources)

    path.write_text("a: [")
    with pytest.raises(InvalidInput, match="not YAML"):
        files.read()

    assert files.resources == before


@pytest.mark.parametrize(
    "changes", [{"spec.model.name": "same"}, {"spec.model.name": "x", "spec.model.aliases": ["same"]}]
)
def test_two_resources_with_one_model_name_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    write(
        tmp_path / "a.yaml",
        good(metadata__name="a", spec__model__name="same"),
        spoiled({"metadata.name": "b", **changes}),
    )

    with pytest.raises(InvalidInput, match="same: two resources serve this model name; rename one"):
        Files([str(tmp_path)]).read()


# the machine


def test_gpus_are_those_that_may_be_seen(tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "null"):
        (tmp_path / name).touch()

    assert gpus(None, tmp_path) == ("0", "2", "10")
    assert gpus("1, GPU-3f", tmp_path) == ("1", "GPU-3f")
    assert gpus("", tmp_path) == gpus("-1", tmp_path) == ()
    assert free_gpus(("0", "2", "10"), {"2"}) == ["0", "10"]


def test_engines_share_the_processors() -> None:
    cores = len(os.sched_getaffinity(0))

    assert threads(1) == cores
    assert threads(10 * cores) == 1


def test_a_model_that_does_not_fit_is_a_sentence_with_numbers() -> None:
    deployments = [
        LLMDeployment.parse(good(spec__engine__kvCacheGiB=3.0)),
        LLMDeployment.parse(good(metadata__name="second", spec__replicas=3, spec__engine__kvCacheGiB=2.0)),
    ]

    problems = misfits(deployments, 8 << 30)

    assert misfits(deployments, 9 << 30) == []
    assert problems == [
        "second: 3 engines with 0.00 GiB of weights and 2.00 GiB of KV cache need 6.00 GiB, besides 3.00 GiB for the others; "
        "8.00 GiB of memory are free: lower spec.replicas or kvCacheGiB, or take a smaller model"
    ]


# profiles


def test_profiles_of_a_file_stand_beside_those_that_are_built_in(tmp_path: Path) -> None:
    (tmp_path / "profiles.yaml").write_text("mig-20: {resource: nvidia.com/mig-3g.20gb, memoryGiB: 20}")

    profiles = load_profiles(tmp_path / "profiles.yaml")

    assert set(profiles) == {"cpu", "nvidia", "mig-20"}
    assert (profiles["mig-20"].memory_gib, profiles["mig-20"].device) == (20, "cuda")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mig: {resorce: x}", 'profiles.yaml: mig.resorce: unknown field; did you mean "resource"?'),
        ("mig: {memoryGiB: 0}", "profiles.yaml: mig.memoryGiB: must be greater than 0"),
        ("mig: 20", "profiles.yaml: mig: "),
        ("[mig]", "profiles are a mapping from names, not ['mig']"),
        ("mig: {", "not YAML"),
    ],
)
def test_a_mistake_in_a_profile_is_named(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "profiles.yaml").write_text(text)

    with pytest.raises(InvalidInput) as refused:
        load_profiles(tmp_path / "profiles.yaml")

    assert says in str(refused.value)


# the state folder


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "s")
    state.take()
    state.claim("http://here/v1")

    with pytest.raises(FolderTaken, match=f"pid {os.getpid()}"):
        StateFolder(tmp_path / "s").take()

    owner = StateFolder(tmp_path / "s").owner()
    assert owner is not None
    assert (owner.pid, owner.url) == (os.getpid(), "http://here/v1")
    state.release()
    assert StateFolder(tmp_path / "s").owner() is None


def test_what_a_killed_owner_left_is_ended_and_no_stranger_is(tmp_path: Path) -> None:
    """The record names a stranger, too: his pid with another start time."""
    killed = (
        "import os, subprocess, sys; from pathlib import Path; from quire_operator.local.state import *;"
        f"s = StateFolder(Path({str(tmp_path / 's')!r})); s.take();"
        f"p = subprocess.Popen(['sleep', '60'], start_new_session=True, stdout=-3, stderr=-3, env={{**os.environ, {MARK!r}: str(s.path)}});"
        "s.started('left-0', p.pid); print(p.pid, s.sockets, flush=True); os.kill(os.getpid(), 9)"
    )
    said = subprocess.run([sys.executable, "-c", killed], capture_output=True, text=True).stdout.split()
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    record = tmp_path / "s" / "processes.json"
    other = f'{{"name": "stranger-0", "pid": {stranger.pid}, "started": 1}}'
    record.write_text(record.read_text().replace('"engines": [', f'"engines": [{other}, '))
    state = StateFolder(tmp_path / "s")

    ended = state.take()

    assert ended == ["left-0"]
    assert process_start(int(said[0])) == 0 or Path(f"/proc/{said[0]}/stat").read_text().split()[2] == "Z"
    assert not Path(said[1]).exists()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()
    state.release()


# words


def picture(**status: object) -> dict[str, object]:
    resource = good()
    resource["spec"]["replicas"] = 1
    resource["status"] = status
    return {"resource": resource, "wanted": 1, "replicasFrom": "the YAML file", "engines": [], "held": 0, "inFlight": 0}


def test_a_row_and_an_explanation_of_what_nobody_has_looked_at_yet() -> None:
    cells = row(picture(), 0.0, wide=False)

    assert cells == ("good", "quire-tiny", "0/1", "Unknown", "0s")
    assert "1 replica is wanted, because the YAML file says so." in explain(picture(), {})


def test_an_explanation_has_the_last_decisions_where_there_are_any() -> None:
    text = explain(picture(), {}, ["12:00  1 -> 2", "    more requests than one engine carries"])

    assert "\n\n12:00  1 -> 2\n    more requests than one engine carries\n" in text


def test_tables_line_up_with_and_without_colours() -> None:
    plain = table(("A", "STATUS"), [("one", "Serving"), ("eleven", "x")], colours=False)
    painted = table(("A", "STATUS"), [("one", "Serving"), ("eleven", "x")], colours=True)

    assert plain.splitlines() == ["A        STATUS", "one      Serving", "eleven   x"]
    assert "\x1b[32mServing\x1b[0m" in painted
    assert [age(s) for s in (-1, 5, 119, 125, 7200, 172800)] == ["0s", "5s", "119s", "2m", "2h", "2d"]
