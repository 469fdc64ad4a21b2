"""A store of fetched models: what the engine takes from it and what it refuses; verify, list and gc."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.fetching import at, environment, fetch_here, run_fetch
from fakes.hub import Hub, Repo, hub
from fakes.serving import serving

from quire_engine import LLM, SamplingParams
from quire_engine.errors import WeightsFailure
from quire_engine.fetch.errors import ModelNotFound, WeightsCorrupt
from quire_engine.fetch.leases import hold, readers
from quire_engine.fetch.local import verify_folder
from quire_engine.locate import check_hashes, locate_model

TINY = locate_model("builtin://quire-tiny")
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_HOME", "/nowhere")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name in ("org/tiny", "org/other"):
            running.repos[name] = Repo({path.name: path.read_bytes() for path in TINY.iterdir()})
        yield running


@pytest.fixture
def folder(fake: Hub, tmp_path: Path) -> Path:
    return fetch_here("hf://org/tiny", tmp_path)


def test_a_model_by_name_is_fetched_and_is_the_same_model(
    fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    llm = LLM("org/tiny", kv_cache_gib=0.01, verify_weights="always")
    ours = llm.generate("An LLMDeployment", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    original = LLM(str(TINY), kv_cache_gib=0.01)

    assert ours == original.generate("An LLMDeployment", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    assert at(tmp_path / "cache" / "quire" / "models", "org/tiny").is_dir()


def test_a_server_fetches_first_and_answers_by_the_models_name(
    fake: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(fake).items():
        monkeypatch.setenv(name, value)
    options = (f"--download-dir={tmp_path / 'models'}", "--kv-cache-gib=0.01")
    with serving(tmp_path, "serve", "hf://org/tiny", *options) as server:
        status, answer = server.post("/v1/completions", model="org/tiny", prompt="Hello", max_tokens=2)

    assert status == 200, answer
    assert answer["model"] == "org/tiny"
    leases = list(tmp_path.rglob(".use-*"))
    assert leases == [], "a server that ended reads nothing"


def test_a_link_is_made_once_the_model_is_there_and_nothing_else_is_replaced(fake: Hub, tmp_path: Path) -> None:
    link, taken = tmp_path / "model", tmp_path / "taken"
    taken.write_text("mine")
    store = str(tmp_path / "store")

    refused = run_fetch(fake, "hf://org/tiny", store, f"--link={taken}")
    linked = [run_fetch(fake, f"hf://{repo}", store, f"--link={link}") for repo in ("org/other", "org/tiny")]

    assert refused.returncode == 2
    assert "is no link" in refused.stderr
    assert taken.read_text() == "mine"
    assert [done.returncode for done in linked] == [0, 0]
    assert locate_model(str(link)) == at(tmp_path / "store", "org/tiny")


def test_a_store_with_one_model_is_that_model_and_with_more_lists_them(fake: Hub, folder: Path, tmp_path: Path) -> None:
    assert locate_model(str(tmp_path)) == folder
    assert locate_model(str(folder)) == folder
    assert locate_model(f"file://{folder}") == folder
    assert locate_model("org/tiny", tmp_path) == folder

    other = fetch_here("hf://org/other", tmp_path)

    with pytest.raises(WeightsFailure, match=f"holds 2 models; give the path of one: {other}, {folder}"):
        locate_model(str(tmp_path))
    with pytest.raises(WeightsFailure, match=r"org/third is not in .*: run `quire fetch org/third"):
        locate_model("org/third", tmp_path)


@pytest.mark.parametrize("damage", ["no READY", "half of READY", "another manifest", "no manifest", "short", "missing"])
def test_what_is_not_whole_is_refused_with_the_command_that_mends_it(folder: Path, tmp_path: Path, damage: str) -> None:
    match damage:
        case "no READY":
            (folder / "READY.json").unlink()
        case "half of READY":
            (folder / "READY.json").write_text('{"format"')
        case "another manifest":
            (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + " ")
        case "no manifest":
            (folder / "manifest.json").unlink()
        case "short":
            os.truncate(folder / "model.safetensors", 5000)
        case _:
            (folder / "tokenizer.json").unlink()

    with pytest.raises(WeightsFailure, match=f"run `quire fetch hf://org/tiny@{'a' * 40} {tmp_path}`"):
        locate_model(str(folder))
    fetch_here("hf://org/tiny", tmp_path)
    assert locate_model(str(folder)) == folder


def test_a_flipped_byte_is_found_by_verify_and_before_a_load_that_asks_for_it(
    fake: Hub, folder: Path, tmp_path: Path
) -> None:
    """In any file, not only in the weights."""
    for path in sorted(folder.iterdir()):
        if path.name in ("manifest.json", "READY.json"):
            continue
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(WeightsCorrupt, match=f"{path.name} has another content"):
            verify_folder(folder, hashes=True)
        with pytest.raises(WeightsFailure, match=f"{path.name} has another content .* --verify`"):
            check_hashes(folder)
        path.write_bytes(data)
    os.truncate(folder / "config.json", 1)

    done = run_fetch(fake, "verify", str(tmp_path))

    assert done.returncode == 23
    assert "WeightsCorrupt: " in done.stderr
    with pytest.raises(WeightsFailure, match="damaged"):
        LLM(str(folder), verify_weights="always")


@pytest.mark.parametrize("name", ["manifest.json", "READY.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_store_whose_own_marks_are_damaged_does_not_pass_and_can_be_cleared(
    fake: Hub, folder: Path, tmp_path: Path, name: str, damage: str
) -> None:
    """`verify` and `list` see every revision, and not only those that look finished."""
    data = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "flipped":
        (folder / name).write_bytes(bytes([data[0] ^ 1]) + data[1:])

    done = run_fetch(fake, "verify", str(tmp_path))
    listed = json.loads(run_fetch(fake, "list", str(tmp_path), "--json").stdout)
    cleared = run_fetch(fake, "gc", str(tmp_path), "--quota", "0")

    assert (done.returncode, done.stdout) == (23, "")
    assert str(folder) in done.stderr
    assert [(each["folder"], each["finished"]) for each in listed] == [(str(folder), False)]
    assert cleared.returncode == 0
    assert not folder.exists()


def test_a_revision_of_a_store_without_any_mark_does_not_pass_for_a_plain_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "READY.json").unlink()

    with pytest.raises(WeightsCorrupt, match=r"READY\.json is missing"):
        verify_folder(folder, hashes=True)


def test_hashes_cannot_be_asked_for_where_there_are_none() -> None:
    with pytest.raises(WeightsFailure, match=r"no manifest\.json to compare with"):
        LLM("builtin://quire-tiny", verify_weights="always")


def test_a_copy_of_a_model_is_whole_wherever_it_lies(folder: Path, tmp_path: Path) -> None:
    """As it is carried into a cluster without a network."""
    copy = tmp_path / "stick" / "tiny"
    shutil.copytree(folder, copy)
    assert locate_model(str(copy)) == copy
    assert verify_folder(copy, hashes=True).hashed

    (copy / "READY.json").unlink()

    with pytest.raises(WeightsFailure, match="copy it again"):
        locate_model(str(copy))


def test_a_plain_folder_is_verified_by_its_own_lengths(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(TINY, plain)
    (plain / "manifest.json").write_text('{"of": "something else"}')
    assert locate_model(str(plain)) == plain
    assert not verify_folder(plain, hashes=True).hashed

    os.truncate(plain / "model.safetensors", 9000)
    with pytest.raises(WeightsCorrupt, match=r"has 9,000 bytes, and should have"):
        verify_folder(plain, hashes=True)
    os.truncate(plain / "model.safetensors", 4)
    with pytest.raises(WeightsCorrupt, match="cannot be read"):
        verify_folder(plain, hashes=True)
    (plain / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="no weights in"):
        verify_folder(plain, hashes=True)


def test_a_volume_is_verified_in_place_and_resolved(fake: Hub, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "claim" / "tiny")

    done = run_fetch(fake, "pvc://claim/tiny", QUIRE_PVC_ROOT=str(tmp_path))
    resolved = run_fetch(fake, "resolve", "pvc://claim/tiny", QUIRE_PVC_ROOT=str(tmp_path))

    assert done.stdout.splitlines() == [str(tmp_path / "claim" / "tiny")], done.stderr
    assert json.loads(resolved.stdout)["architecture"] == "LlamaForCausalLM"


def test_gc_keeps_what_is_in_use_and_removes_what_was_asked_for_longest_ago(
    fake: Hub, folder: Path, tmp_path: Path
) -> None:
    other = fetch_here("hf://org/other", tmp_path)
    third = fetch_here("hf://org/other", tmp_path, connections=1)
    fake.repos["org/other"].refs["main"] = "d" * 40
    third = fetch_here("hf://org/other", tmp_path)
    for age, each in enumerate((third, other, folder)):
        os.utime(each / "READY.json", (1e9 - age, 1e9 - age))  # folder's was asked for longest ago
    hold(folder)
    assert readers(folder) == 1

    dry = run_fetch(fake, "gc", str(tmp_path), "--quota", "10MiB", "--dry-run")
    assert str(other) in dry.stdout
    assert other.exists()
    done = run_fetch(fake, "gc", str(tmp_path), "--quota", "0", "--keep", str(third))
    listed = json.loads(run_fetch(fake, "list", str(tmp_path), "--json").stdout)

    assert done.returncode == 0
    assert "in use, kept" in done.stderr
    assert {each["folder"] for each in listed} == {str(folder), str(third)}
    assert locate_model(str(folder)) == folder
    assert not other.exists()


def test_gc_removes_downloads_that_nobody_goes_on_with_first(fake: Hub, folder: Path, tmp_path: Path) -> None:
    left = folder.with_name(f".tmp-{'e' * 40}-4")
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 100_000)

    done = run_fetch(fake, "gc", str(tmp_path), "--quota", "5MiB")

    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert locate_model(str(folder)) == folder
    assert [path.name for path in folder.parent.glob(".tmp-*")] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gc", "/tmp", "--quota", "lots"], "lots is no size"),
        (["gc", "/nowhere", "--quota", "1GiB"], "/nowhere is no folder"),
        (["hf://a/b"], "no folder to fetch into"),
        (["hf://a/b", "/tmp/x", "--connections", "0"], "not a number from 1 to 64"),
        (["hf://a/b", "/tmp/x", "--exlude", "y"], 'did you mean "--exclude"?'),
    ],
)
def test_a_mistake_in_the_arguments_is_exit_code_2(fake: Hub, arguments: list[str], says: str) -> None:
    done = run_fetch(fake, *arguments)

    assert done.returncode == 2
    assert says in done.stderr
