"""`quire fetch` against a hub that speaks the hub's API, over real sockets, with whatever can go wrong on the way."""

import hashlib
import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.fetching import TOKEN, at, environment, fetch_here, noise, run_fetch, start_fetch
from fakes.hub import SECRET, Fault, Hub, Repo, hub
from fakes.serving import free_port

from quire_engine.fetch import transfer
from quire_engine.fetch.choose import Choice
from quire_engine.fetch.errors import (
    FetchFailure,
    InsufficientStorage,
    ModelAccessDenied,
    ModelNotFound,
    SourceUnreachable,
    WeightsCorrupt,
)
from quire_engine.fetch.progress import Meter
from quire_engine.locate import locate_model

TINY = locate_model("builtin://quire-tiny")
WEIGHTS = noise(3_000_000)
PIECE = 1 << 19


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        for name in [n for n in os.environ if n.startswith("HF_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", "/nowhere")
        monkeypatch.setattr(transfer, "PIECE", PIECE)  # so that a small file has several
        running.repos["org/model"] = Repo(
            {"config.json": b'{"model_type": "llama"}', "tokenizer.json": noise(5000, 1), "model.safetensors": WEIGHTS,
             "pytorch_model.bin": b"pickle", ".gitattributes": b"x", "1_Pooling/config.json": b"{}", "empty.txt": b""}
        )  # fmt: skip
        yield running


def assert_right(folder: Path) -> None:
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    manifest = json.loads((folder / "manifest.json").read_text())
    told = {each["path"]: each for each in manifest["files"]}
    assert set(told) == {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json", "empty.txt"}
    for path, each in told.items():
        data = (folder / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (each["size"], each["sha256"])
    assert json.loads((folder / "READY.json").read_text())["revision"] == "a" * 40
    assert not list(folder.parent.glob(".tmp-*"))


def test_a_model_arrives_whole_and_a_second_fetch_brings_nothing(fake: Hub, tmp_path: Path) -> None:
    folder = fetch_here("hf://org/model", tmp_path)
    sent = fake.sent
    again = fetch_here("org/model@main", tmp_path)
    seen = len(fake.seen)
    pinned = fetch_here(f"hf://org/model@{'a' * 40}", tmp_path)

    assert folder == again == pinned == at(tmp_path, "org/model")
    assert_right(folder)
    assert fake.sent == sent
    assert len(fake.seen) == seen, "a commit never means anything else: nobody needs to be asked"


def test_a_long_list_of_files_is_read_to_its_end(fake: Hub, tmp_path: Path) -> None:
    fake.page = 2

    assert_right(fetch_here("hf://org/model", tmp_path))


def test_the_token_goes_to_the_hub_and_nowhere_else(fake: Hub, tmp_path: Path) -> None:
    """Neither to the CDN, nor into anything that is printed or written; nor do signed URLs."""
    fake.repos["org/model"].token = TOKEN
    fake.faults.append(Fault("org/model/model.safetensors", times=1, cut_after=1000))

    done = run_fetch(fake, "hf://org/model", str(tmp_path / "store"), HF_TOKEN=TOKEN)

    assert done.returncode == 0, done.stderr
    assert {seen.token for seen in fake.seen if seen.server == "cdn"} == {None}
    assert {seen.token for seen in fake.seen if seen.server == "hub"} == {f"Bearer {TOKEN}"}
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for secret in (TOKEN, SECRET, "X-Amz"):
        assert secret not in done.stdout + done.stderr
        assert secret.encode() not in written


@pytest.mark.parametrize(
    ("source", "token", "failure", "says"),
    [
        ("hf://org/none", None, ModelNotFound, "no model org/none, or it is private"),
        ("hf://org/none", "x", ModelNotFound, "no model org/none this token can see"),
        ("hf://org/model@v9", None, ModelNotFound, "no revision v9"),
        ("hf://org/gated", None, ModelAccessDenied, "no token was given"),
        ("hf://org/gated", "x", ModelAccessDenied, "the token given may not read it"),
        ("hf://org/private", "x", ModelNotFound, "no model org/private"),
        ("hf://org/pickle", None, ModelNotFound, "only as pickle"),
        ("hf://org/hostile", None, WeightsCorrupt, "must not be written"),
        ("hf://org/clash", None, WeightsCorrupt, "twice"),
    ],
)
def test_what_is_wrong_with_a_source_is_named(
    fake: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    token: str | None,
    failure: type[FetchFailure],
    says: str,
) -> None:
    fake.repos["org/gated"] = Repo({}, gated=True, token=TOKEN)
    fake.repos["org/private"] = Repo({}, token=TOKEN)
    fake.repos["org/pickle"] = Repo({"pytorch_model.bin": b"x", "config.json": b"{}"})
    fake.repos["org/hostile"] = Repo({"../../etc/passwd.safetensors": b"x", "model.safetensors": b"x"})
    fake.repos["org/clash"] = Repo({"model.safetensors": b"x", "a.json": b"{}", "a.json/b.json": b"{}"})
    if token:
        monkeypatch.setenv("HF_TOKEN", token)

    with pytest.raises(failure, match=says):
        fetch_here(source, tmp_path)

    assert not list(tmp_path.rglob("READY.json"))


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([Fault("/resolve/", status=429, headers={"Retry-After": "0"})], id="429"),
        pytest.param(
            [Fault("/api/", status=500), Fault("/tree/", status=502), Fault(".safetensors", status=503)], id="5xx"
        ),
        pytest.param([Fault("org/model/model", times=6, cut_after=100_000)], id="cut"),
        pytest.param([Fault("/tokenizer.json", times=2, cut_after=10)], id="small file cut"),
        pytest.param([Fault("org/model/model", times=2, cut_after=0)], id="closed before the first byte"),
        pytest.param([Fault("org/model/model", wrong=True)], id="one wrong byte, once"),
        pytest.param([Fault("/tokenizer.json", wrong=True)], id="one wrong byte in a small file"),
        pytest.param([Fault("org/model/model", etag="another")], id="another ETag"),
        pytest.param([Fault("org/model/model", times=99, no_ranges=True)], id="no ranges"),
        pytest.param([Fault("org/model/model", times=3, no_ranges=True, cut_after=700_000)], id="no ranges, and cut"),
        pytest.param([Fault("/org/model/model", times=1, status=403)], id="a signature that has expired"),
    ],
)
def test_what_goes_wrong_in_passing_is_got_over(fake: Hub, tmp_path: Path, faults: list[Fault]) -> None:
    fake.faults = [f for f in faults if f.status != 403]
    folder = fetch_here("hf://org/model", tmp_path / "first")
    for fault in fake.faults:
        assert fault.times < 99

    assert_right(folder)


def test_copies_with_etags_of_their_own_are_one_file(fake: Hub, tmp_path: Path) -> None:
    """As those of servers that make them of a file's time. The hash judges, and what arrived is kept."""
    original, asked = fake.note, []

    def note(seen: object) -> Fault:
        asked.append(seen)
        fault = original(seen)  # type: ignore[arg-type]
        return Fault("", etag=f"copy-{len(asked) % 3}") if getattr(seen, "server", "") == "cdn" else fault

    fake.note = note  # type: ignore[method-assign]

    assert_right(fetch_here("hf://org/model", tmp_path))
    assert fake.sent < 1.5 * len(WEIGHTS)


def test_a_signature_that_expires_is_asked_for_anew(fake: Hub, tmp_path: Path) -> None:
    """The CDN's address is used again for the next ranges, until it is refused."""
    served = []
    original = fake.note

    def note(seen: object) -> Fault:
        fault = original(seen)  # type: ignore[arg-type]
        if getattr(seen, "server", "") == "cdn":
            served.append(seen)
            if len(served) == 3:
                return Fault("", status=403)
        return fault

    fake.note = note  # type: ignore[method-assign]

    assert_right(fetch_here("hf://org/model", tmp_path, connections=1))
    assert (
        sum(seen.server == "hub" and "resolve" in seen.path and "safetensors" in seen.path for seen in fake.seen) == 2
    )


@pytest.mark.parametrize(
    ("fault", "failure", "says"),
    [
        (Fault("org/model/model", times=99, wrong=True), WeightsCorrupt, "arrived twice with another content"),
        (Fault("/tree/", times=99, status=503), SourceUnreachable, "answers 503 .tried 4 times"),
        (Fault("org/model/model", times=99, status=500), SourceUnreachable, "HTTP 500"),
        (Fault("org/model/model", times=99, status=404), ModelNotFound, "listed, but not there"),
        (Fault("/resolve/", times=99, status=403), ModelAccessDenied, "may not be read"),
        (Fault("/api/", status=429, headers={"Retry-After": "999"}), SourceUnreachable, "come back in 999 s"),
        (Fault("org/model/model", times=99, cut_after=0), SourceUnreachable, "tried"),
    ],
)  # fmt: skip
def test_what_stays_wrong_ends_the_fetch_and_nothing_is_loadable(
    fake: Hub, tmp_path: Path, fault: Fault, failure: type[FetchFailure], says: str
) -> None:
    fake.faults.append(fault)

    with pytest.raises(failure, match=says):
        fetch_here("hf://org/model", tmp_path)

    assert not list(tmp_path.rglob("READY.json"))
    fault.times = 0
    assert_right(fetch_here("hf://org/model", tmp_path))


def test_a_server_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    with pytest.raises(SourceUnreachable, match=r"cannot be reached: .*tried 4 times"):
        fetch_here("hf://org/model", tmp_path)


def test_too_little_room_is_said_before_the_first_byte(
    fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:4], 100, *real[5:]))  # blocks that are free
    monkeypatch.setattr(os, "statvfs", lambda _: few)

    with pytest.raises(InsufficientStorage, match=r"2.9 MiB are still to come, and .* has room for 400.0 KiB"):
        fetch_here("hf://org/model", tmp_path)

    assert fake.sent == 0


def test_what_is_there_already_needs_no_room(fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = Fault("model.safetensors", times=99, status=404)
    fake.faults.append(fault)
    with pytest.raises(ModelNotFound):
        fetch_here("hf://org/model", tmp_path, connections=1)
    fault.times = 0
    real = os.statvfs(tmp_path)
    few = os.statvfs_result((*real[:4], 3_000_000 // real.f_frsize + 1, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: few)

    assert_right(fetch_here("hf://org/model", tmp_path))


def test_an_unfinished_download_goes_on_where_it_was(fake: Hub, tmp_path: Path) -> None:
    """What arrived is not asked for again; what changed on the disk meanwhile is found out."""
    fault = Fault("org/model/model", times=99, status=404)
    fake.faults += [Fault("org/model/model", times=3), fault]
    with pytest.raises(ModelNotFound):
        fetch_here("hf://org/model", tmp_path, connections=1)
    before, fault.times = fake.sent, 0

    assert_right(fetch_here("hf://org/model", tmp_path))

    assert before >= 3 * PIECE
    assert fake.sent - before < len(WEIGHTS) - 2 * PIECE


def test_a_damaged_part_of_an_unfinished_download_is_fetched_again(fake: Hub, tmp_path: Path) -> None:
    fault = Fault("org/model/model", times=99, status=404)
    fake.faults += [Fault("org/model/model", times=3), fault]
    with pytest.raises(ModelNotFound):
        fetch_here("hf://org/model", tmp_path, connections=1)
    fault.times = 0
    (part,) = tmp_path.rglob("model.safetensors")
    with part.open("r+b") as file:
        file.write(b"wrong")

    assert_right(fetch_here("hf://org/model", tmp_path))


@pytest.mark.parametrize("damage", ["flipped", "short", "missing", "no READY"])
def test_what_is_damaged_on_the_disk_is_mended(fake: Hub, tmp_path: Path, damage: str) -> None:
    folder = fetch_here("hf://org/model", tmp_path)
    weights = folder / "model.safetensors"
    match damage:
        case "flipped":
            weights.write_bytes(WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]))
        case "short":
            weights.write_bytes(WEIGHTS[:-1])
        case "missing":
            weights.unlink()
        case _:
            (folder / "READY.json").unlink()
    sent = fake.sent

    assert_right(fetch_here("hf://org/model", tmp_path, verify=damage == "flipped"))

    assert fake.sent - sent == (0 if damage == "no READY" else len(WEIGHTS)), "only what is damaged comes again"


def test_a_branch_that_moves_is_another_folder_and_offline_means_the_last_one(
    fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch_here("hf://org/model", tmp_path)
    fake.repos["org/model"].refs["main"] = "c" * 40
    second = fetch_here("hf://org/model", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = len(fake.seen)

    assert (first.name, second.name) == ("a" * 40, "c" * 40)
    assert fetch_here("hf://org/model", tmp_path) == second
    assert fetch_here(f"hf://org/model@{'a' * 40}", tmp_path) == first
    with pytest.raises(SourceUnreachable, match="HF_HUB_OFFLINE forbids"):
        fetch_here("hf://org/model@v2", tmp_path)
    assert len(fake.seen) == seen


def test_a_choice_has_a_folder_of_its_own(fake: Hub, tmp_path: Path) -> None:
    whole = fetch_here("hf://org/model", tmp_path)
    some = fetch_here("hf://org/model", tmp_path, choice=Choice(exclude=("1_Pooling/*",)))

    assert some != whole
    assert some.name.startswith("a" * 40 + "+")
    assert not (some / "1_Pooling").exists()
    assert_right(whole)


@pytest.mark.parametrize("by_flag", [True, False])
def test_progress_is_told_as_lines_as_a_file_and_at_a_port(fake: Hub, tmp_path: Path, by_flag: bool) -> None:
    fake.faults.append(Fault("org/model/model", times=99, slow_s=0.05))
    status, port = tmp_path / "status.json", free_port()
    process = start_fetch(
        fake,
        "org/model",
        str(tmp_path / "s"),
        f"--status-file={status}",
        *([f"--status-port={port}"] if by_flag else []),
        **({} if by_flag else {"QUIRE_FETCH_STATUS_PORT": str(port)}),
    )
    phases = set()
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1) as answer:
                phases.add(json.load(answer)["phase"])
        except OSError:
            pass  # not yet, or no more
        time.sleep(0.02)
    out, err = process.communicate()

    assert process.returncode == 0, err
    assert out.splitlines()[-1] == str(at(tmp_path / "s", "org/model"))
    assert "downloading" in phases
    last = json.loads(status.read_text())
    assert last == json.loads(err.splitlines()[-1])
    assert (last["phase"], last["percent"], last["bytes"]) == ("ready", 100.0, last["totalBytes"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(fake: Hub, tmp_path: Path, number: signal.Signals) -> None:
    """The lock is free at once, and the next run goes on."""
    fake.faults.append(Fault("org/model/model", times=99, slow_s=0.2))
    process = start_fetch(fake, "org/model", str(tmp_path))
    while fake.sent < 300_000:
        time.sleep(0.02)
    process.send_signal(number)
    _, err = process.communicate(timeout=10)

    assert process.returncode == 25
    assert err.splitlines()[-1].startswith(f"quire fetch: Interrupted: {number.name}")
    fake.faults.clear()
    started = time.monotonic()
    assert_right(fetch_here("hf://org/model", tmp_path))
    assert time.monotonic() - started < 10, "waited for a lock that nobody has"


def test_a_failure_is_one_line_and_an_exit_code(fake: Hub, tmp_path: Path) -> None:
    done = run_fetch(fake, "hf://org/none", str(tmp_path), "--quiet")

    assert done.returncode == 20
    assert done.stdout == ""
    assert done.stderr.startswith("quire fetch: ModelNotFound: ")
    assert done.stderr.count("\n") == 1


def test_resolve_prints_the_revision_without_the_weights(fake: Hub) -> None:
    fake.repos["org/tiny"] = Repo({path.name: path.read_bytes() for path in TINY.iterdir()})

    done = run_fetch(fake, "resolve", "hf://org/tiny")

    told = json.loads(done.stdout)
    assert (told["source"], told["revision"]) == ("hf://org/tiny", "a" * 40)
    assert told["architecture"] == "LlamaForCausalLM"
    assert told["weightBytes"] > 5_000_000
    assert told["quantization"] == ""
    assert fake.sent < 10_000


def test_two_files_of_bytes_that_were_there_count_as_done_and_not_as_rate(fake: Hub, tmp_path: Path) -> None:
    meter = Meter()

    fetch_here("hf://org/model", tmp_path, meter=meter)

    assert meter.counts == (meter.arrived, meter.arrived)


def test_the_hubs_own_client_downloads_from_the_fake(fake: Hub, tmp_path: Path) -> None:
    """It keeps the fake honest."""
    script = (
        "import sys; from huggingface_hub import snapshot_download; "
        "print(snapshot_download('org/model', local_dir=sys.argv[1], endpoint=sys.argv[2]))"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "theirs"), fake.url],
        env=environment(fake, HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path / "home")),
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "theirs" / "model.safetensors").read_bytes() == WEIGHTS
    shutil.rmtree(tmp_path / "theirs")
