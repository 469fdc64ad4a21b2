"""`quire fetch gc` and `list` where others read, write, have died, or nothing may be written. Stores made without a hub."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from quire_api.errors import InvalidInput
from quire_engine.fetch import cli
from quire_engine.fetch.gc import collect, contents
from quire_engine.fetch.layout import Place
from quire_engine.fetch.machine import myself
from quire_engine.fetch.manifest import Manifest, ManifestFile
from quire_engine.fetch.store import publish, touch

Capture = pytest.CaptureFixture[str]


def finished(store: Path, revision: str = "a" * 40) -> Path:
    place = Place(model=store / "hf" / "org" / "model", name=revision)
    place.temporary(1).mkdir(parents=True)
    (place.temporary(1) / "model.safetensors").write_bytes(b"abc")
    file = ManifestFile(path="model.safetensors", size=3, sha256=sha256(b"abc").hexdigest())
    publish(place.temporary(1), ".quire", place, Manifest(source="hf://org/model", revision=revision, files=(file,)))
    return place.final


def locked(folder: Path, *, idle_s: float) -> None:
    """By a process of a machine that cannot be seen from here."""
    lock = folder.with_name(f".lock-{folder.name}.1")
    process = {**asdict(myself()), "space": "another boot"}
    lock.write_text(json.dumps({"process": process, "released": False, "done": 1, "total": 2}))
    written = lock.stat().st_mtime - idle_s
    os.utime(lock, (written, written))


@pytest.mark.parametrize(("idle_s", "goes"), [(5.0, False), (3600.0, True)])
@pytest.mark.parametrize("unfinished", [True, False])
def test_what_a_lost_machine_was_writing_can_be_removed(
    tmp_path: Path, idle_s: float, goes: bool, unfinished: bool
) -> None:
    """Whoever beats is left alone, and whoever has not for long is gone."""
    folder = finished(tmp_path)
    locked(folder, idle_s=idle_s)
    if unfinished:
        folder = folder.rename(folder.with_name(f".tmp-{folder.name}-1"))

    cli.fetch(["gc", str(tmp_path), "--quota", "0"])

    assert folder.exists() != goes


def test_a_model_that_was_asked_for_meanwhile_stays(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    os.utime(folder / "READY.json", (1e9, 1e9))
    (candidate,) = contents(tmp_path)
    touch(folder)

    assert not collect(candidate)
    assert (folder / "READY.json").exists()


def test_what_shall_be_kept_must_be_there(tmp_path: Path) -> None:
    """A slip in --keep would remove what it was to save. A folder of models keeps all of them."""
    folder = finished(tmp_path)

    with pytest.raises(InvalidInput, match=r"--keep: there is no model at .*misspelt"):
        cli.fetch(["gc", str(tmp_path), "--quota", "0", "--keep", str(folder.parent / "misspelt")])
    cli.fetch(["gc", str(tmp_path), "--quota", "0", "--keep", str(folder.parent)])

    assert folder.exists()


def test_a_quota_below_zero_is_no_size(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="-5GiB is no size"):
        cli.fetch(["gc", str(tmp_path), "--quota=-5GiB"])


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A store with one model and a dead reader's lease, in which this process may not write."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as made:  # root's tmp_path is for root alone
        store = Path(made)
        store.chmod(0o755)
        folder = finished(store)
        (folder.parent / f".use-{folder.name}-x").write_text(json.dumps({**asdict(myself()), "started": "1"}))
        folder.parent.chmod(0o555)
        before = os.geteuid()
        if before == 0:
            os.seteuid(65534)
        try:
            yield store
        finally:
            os.seteuid(before)
            folder.parent.chmod(0o755)


def test_a_store_that_may_only_be_read_is_listed_and_not_cleared(unwritable: Path, capsys: Capture) -> None:
    assert cli.fetch(["list", str(unwritable)]) == 0
    assert cli.fetch(["gc", str(unwritable), "--quota", "0"]) == 22

    out, err = capsys.readouterr()
    assert "ready" in out
    assert "InsufficientStorage: cannot remove " in err
    assert "Permission denied" in err
