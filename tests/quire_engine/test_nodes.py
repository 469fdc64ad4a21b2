"""Two nodes on one machine, at addresses of the loopback: the tokens of one process, and what becomes of one when the other ends."""

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes.serving import Running, children, free_port, quire, serving

from quire_api import EngineConfig
from quire_engine import LLM, SamplingParams
from quire_engine.build import build_engine
from quire_engine.core.step import StepPlan
from quire_engine.errors import ConfigFailure, RankLost
from quire_engine.process import gate, wary
from quire_engine.process.crew import Crew
from quire_engine.process.gate import Gate, Guests, knock, own_address, read_line, write_line
from quire_engine.process.link import Loaded, Step
from quire_engine.process.muster import muster
from quire_engine.process.node import run_ranks
from quire_engine.process.nodes import Nodes, nodes_of

LWS = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "1", "LWS_LEADER_ADDRESS": "leader.group"}


def nodes(environment: dict[str, str] | None = None, **options: Any) -> Nodes:
    return nodes_of(EngineConfig(model="m", **options), environment or {})


def test_ranks_are_dealt_out_node_by_node() -> None:
    group = nodes(tensor_parallel_size=4, pipeline_parallel_size=2, nnodes=2, master_addr="a")

    assert [list(group.ranks_of(node)) for node in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_no_flag_says_the_leader_worker_set_says() -> None:
    said = nodes(LWS, tensor_parallel_size=2)
    flags = nodes(LWS, tensor_parallel_size=2, node_rank=0, master_addr="10.0.0.4", master_port=5)

    assert (said.count, said.node, said.address) == (2, 1, "leader.group")
    assert (flags.count, flags.node, flags.address, flags.port) == (2, 0, "10.0.0.4", 5)
    assert nodes().count == 1


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        (
            {"nnodes": 3, "tensor_parallel_size": 4},
            {},
            "--nnodes 3 does not divide the 4 ranks .* take one of 1, 2, 4$",
        ),
        ({"tensor_parallel_size": 1}, LWS, "^LWS_GROUP_SIZE=2 in the environment does not divide the 1 ranks"),
        ({"nnodes": 2, "tensor_parallel_size": 2}, {}, "--nnodes 2 without --master-addr: give the address"),
        (
            {"nnodes": 2, "node_rank": 2, "tensor_parallel_size": 2},
            {},
            "--node-rank 2 is none of --nnodes 2: .* 0 to 1",
        ),
        ({"node_rank": 1}, {}, "--node-rank 1 is none of --nnodes 1"),
        (
            {"tensor_parallel_size": 2},
            {**LWS, "LWS_WORKER_INDEX": "5"},
            "^LWS_WORKER_INDEX=5 in the environment is none of LWS_GROUP_SIZE=2",
        ),
        ({}, {"LWS_GROUP_SIZE": "two"}, "LWS_GROUP_SIZE is 'two' in the environment"),
    ],
)
def test_nodes_that_contradict_are_refused(options: dict[str, Any], environment: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigFailure, match=says):
        nodes(environment, **options)


def test_an_engine_is_built_on_node_0_alone() -> None:
    config = EngineConfig(
        model="builtin://quire-tiny", tensor_parallel_size=2, nnodes=2, node_rank=1, master_addr="127.0.0.1"
    )

    with pytest.raises(ConfigFailure, match=r"node 1 only runs ranks .* `quire serve`"):
        build_engine(config)


def group(count: int = 2, node: int = 0, ranks: int = 2) -> Nodes:
    return Nodes(count=count, node=node, address="127.0.0.1", port=free_port(), ranks=ranks)


def test_who_is_no_node_is_sent_away_and_others_still_come() -> None:
    ours = group()
    door = Gate(ours)
    answers: list[Any] = []
    opened: list[socket.socket] = []

    def guests() -> None:
        with socket.create_connection((ours.address, ours.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert stranger.recv(100) == b""
        with pytest.raises(RankLost, match=r"node 0, at .*, has ended"):
            knock(ours, {"rank": 7})
        try:
            knock(ours, {"node": 1, "nodes": 4, "ranks": 4})
        except ConfigFailure as refusal:
            answers.append(str(refusal))
        control, answer = knock(ours, {"node": 1, "nodes": 2, "ranks": 2})
        answers.append(answer)
        opened.extend((control, knock(ours, {"rank": 1})[0]))

    visit = threading.Thread(target=guests, daemon=True)
    visit.start()
    came = door.admit(4711, 20)
    visit.join()
    for sock in (*opened, *came.nodes.values(), *came.ranks.values()):
        sock.close()

    assert "node 0 has 2 nodes with 2 ranks, node 1 4 with 4: give all the same flags" in answers[0]
    assert answers[1] == {"store_port": 4711}
    assert (list(came.nodes), list(came.ranks)) == ([1], [1])


def test_a_guest_that_dawdles_or_talks_nonsense_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "HELLO_S", 0.3)
    ours, over = group(), threading.Event()
    door = Gate(ours)
    hello = {"node": 1, "nodes": 2, "ranks": 2}
    nonsense = [
        b"[" * 9000, b"[]", b'"node"', b"7", *(json.dumps({**hello, "node": node}).encode() for node in (1.5, True, [1])),
        *(json.dumps({"rank": rank}).encode() for rank in (1.0, [1], 1)),  # rank 1 comes before its node
    ]  # fmt: skip
    opened = [socket.create_connection((ours.address, ours.port)) for _ in nonsense]
    for sock, said in zip(opened, nonsense, strict=True):
        sock.sendall(said + b"\n")
    dawdler = socket.create_connection((ours.address, ours.port))

    def dawdle() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                dawdler.sendall(b" ")

    def come() -> None:
        opened.extend(knock(ours, said)[0] for said in (hello, {"rank": 1}))

    visits = [threading.Thread(target=each, daemon=True) for each in (dawdle, come)]
    for visit in visits:
        visit.start()
    came = door.admit(4711, 20)
    over.set()
    for visit in visits:
        visit.join()
    for sock in (*opened, dawdler, *came.nodes.values(), *came.ranks.values()):
        sock.close()

    assert (list(came.nodes), list(came.ranks)) == ([1], [1])


def test_a_number_is_given_again_when_who_had_it_has_ended() -> None:
    ours, refusals, opened = group(), list[str](), list[socket.socket]()
    door = Gate(ours)
    hello = {"node": 1, "nodes": 2, "ranks": 2}

    def come() -> None:
        first, _ = knock(ours, hello)
        try:
            knock(ours, hello)
        except ConfigFailure as refusal:
            refusals.append(str(refusal))
        first.close()
        opened.extend(knock(ours, said)[0] for said in (hello, {"rank": 1}))

    visit = threading.Thread(target=come, daemon=True)
    visit.start()
    came = door.admit(4711, 20)
    visit.join()
    for sock in (*opened, *came.nodes.values(), *came.ranks.values()):
        sock.close()

    assert refusals == ["there is a node 1 already: give each machine a --node-rank of its own"]


@pytest.mark.parametrize(
    "words", [b"[1]\n", b"7\n", b'{"reason": ', b'{"reason": "r", "exit_code": [1]}\n', b"[" * 9000 + b"\n"]
)
def test_last_words_that_are_none_are_an_end_too(words: bytes) -> None:
    ours, theirs = socket.socketpair()
    heard, lost = list[str](), threading.Event()

    def hear(failure: Exception) -> None:
        heard.append(str(failure))
        lost.set()

    crew = Crew(1, 1, [], hear, Guests(nodes={1: ours}))
    theirs.sendall(words)
    told = lost.wait(5)
    crew.close()
    ours.close()
    theirs.close()

    assert told
    assert heard == ["node 1 has ended, or cannot be reached any more"]


@pytest.mark.parametrize("words", [b'{"reason', b"[1]\n"])
def test_a_first_node_that_breaks_off_has_ended(words: bytes) -> None:
    ours = replace(group(), node=1)

    def lead() -> None:
        with socket.create_server((ours.address, ours.port)) as listener:
            control, _ = listener.accept()
            read_line(control)
            write_line(control, {"store_port": 1})
            link, _ = listener.accept()
            read_line(link)
            write_line(link, {})
            control.sendall(words)
            control.recv(1)
            control.close()
            link.close()

    leader = threading.Thread(target=lead, daemon=True)
    leader.start()
    with pytest.raises(RankLost, match=r"node 0, at .* has ended, or cannot be reached any more"):
        run_ranks(ours, ["--model=builtin://quire-tiny"], lambda: None)
    leader.join()


def test_a_node_that_does_not_come_is_named() -> None:
    with pytest.raises(RankLost, match=r"node 1 has not come to .* within 0 s"):
        Gate(group()).admit(1, 0.2)


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    elsewhere = Nodes(count=2, node=0, address="192.0.2.1", port=free_port(), ranks=2)

    with pytest.raises(ConfigFailure, match=r"node 0 cannot listen on 192\.0\.2\.1:.* must be an address of its own"):
        Gate(elsewhere)


def never(rank: int, store: Any) -> Any:
    pytest.fail("ranks meet when all nodes have come")


def named(monkeypatch: pytest.MonkeyPatch, unknown: int) -> Nodes:
    """Two nodes whose first has a name, of which nothing is known when it is asked for so many times."""
    asked, really = iter(range(10**9)), socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if host != "leader.group":
            return really(host, *rest, **options)
        if next(asked) < unknown:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return really("127.0.0.1", *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return replace(group(), address="leader.group")


def test_a_name_that_is_known_only_later_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = named(monkeypatch, unknown=2)

    with pytest.raises(RankLost, match=r"node 1 has not come to leader\.group:"):
        muster(ours, [], None, never, patience_s=1)


def test_an_address_that_nobody_knows_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = named(monkeypatch, unknown=10**8)

    with pytest.raises(
        ConfigFailure, match=r"cannot listen on leader\.group:\d+: Name or service not known; --master-"
    ):
        muster(ours, [], None, never, patience_s=0.4)


def test_an_address_of_another_machine_is_a_sentence_too() -> None:
    with pytest.raises(ConfigFailure, match=r"node 0 cannot listen on 192\.0\.2\.1:"):
        muster(replace(group(), address="192.0.2.1"), [], None, never)


def test_a_way_to_a_node_without_an_address_is_a_sentence() -> None:
    with pytest.raises(RankLost, match=r"no way to node 0 at nowhere\.invalid: .*--master-addr"):
        own_address(replace(group(), address="nowhere.invalid"))


def test_messages_of_other_machines_may_name_messages_alone() -> None:
    plan = StepPlan(slots=[1], starts=[2])

    assert wary.loads(pickle.dumps(Step(plan=plan), protocol=5)).plan == plan
    assert wary.loads(pickle.dumps(Loaded(free_bytes=3))).free_bytes == 3
    for harmful in (os.system, subprocess.Popen, json.loads, knock):
        with pytest.raises(pickle.UnpicklingError, match="which none of ours does"):
            wary.loads(pickle.dumps(harmful))


# ---------------------------------------------------------------------- processes

HELLO: dict[str, Any] = {"prompt": "Hello", "max_tokens": 12, "temperature": 0}
OPTIONS = ["--kv-cache-gib=0.05", "--device=cpu", "--dtype=float32", "--nnodes=2", "--master-addr=127.0.0.2"]


@contextlib.contextmanager
def two_nodes(folder: Path, *flags: str) -> Iterator[tuple[Running, subprocess.Popen[bytes], int]]:
    """Node 0, ready; node 1, and its port."""
    (folder / "one").mkdir()
    options = [*OPTIONS, *flags, f"--master-port={free_port()}"]
    port, log = free_port(), folder / "one" / "log"
    argv = quire("serve", "builtin://quire-tiny", *options, "--node-rank=1", f"--port={port}")
    with log.open("wb") as out:
        follower = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        with serving(folder, "serve", "builtin://quire-tiny", *options) as leader:
            yield leader, follower, port
    finally:
        follower.kill()
        follower.wait()


def status(port: int, path: str) -> int:
    return Running(None, port, Path()).request("GET", path)[0]  # type: ignore[arg-type]


def test_two_nodes_give_the_tokens_of_one_process_and_end_together(tmp_path: Path) -> None:
    alone = LLM("builtin://quire-tiny", dtype="float32", device="cpu", kv_cache_gib=0.05)
    expected = alone.generate(HELLO["prompt"], SamplingParams(max_tokens=12, temperature=0), use_tqdm=False)

    with two_nodes(tmp_path, "--tensor-parallel-size=2", "--pipeline-parallel-size=2") as (leader, follower, port):
        answered = leader.post("/v1/completions", **HELLO)[1]["choices"][0]["text"]
        probes = [status(port, path) for path in ("/livez", "/readyz", "/v1/models")]
        ranks = children(follower.pid)
        ended = leader.stop()

        assert answered == expected[0].outputs[0].text
        assert probes == [200, 200, 404]
        assert len(ranks) == 2
        assert ended == 0
        assert follower.wait(5) == 0


def test_a_killed_node_is_the_end_of_the_first_within_seconds(tmp_path: Path) -> None:
    with two_nodes(tmp_path, "--tensor-parallel-size=2") as (leader, follower, _):
        (rank,) = children(follower.pid)

        killed = time.monotonic()
        os.kill(follower.pid, signal.SIGKILL)
        code = leader.process.wait(5)

        assert time.monotonic() - killed < 5
        assert code == 1
        assert "node 1 has ended, or cannot be reached any more" in leader.log.read_text()
        assert not Path(f"/proc/{rank}/cmdline").exists() or not Path(f"/proc/{rank}/cmdline").read_bytes()


def test_a_killed_rank_of_another_node_is_named_by_both(tmp_path: Path) -> None:
    with two_nodes(tmp_path, "--pipeline-parallel-size=2") as (leader, follower, _):
        os.kill(children(follower.pid)[0], signal.SIGKILL)

        assert leader.process.wait(5) == 11
        assert follower.wait(5) == 11
        assert "node 1: rank 1 was ended by SIGKILL, perhaps for want of memory" in leader.log.read_text()
        assert "rank 1 was ended by SIGKILL" in (tmp_path / "one" / "log").read_text()


def test_a_node_ends_when_the_first_is_lost(tmp_path: Path) -> None:
    with two_nodes(tmp_path, "--tensor-parallel-size=2") as (leader, follower, _):
        (engine,) = children(leader.process.pid)

        os.kill(engine, signal.SIGKILL)

        assert follower.wait(5) == 1
        assert "node 0, at 127.0.0.2:" in (tmp_path / "one" / "log").read_text()
        assert leader.process.wait(5) == 11
