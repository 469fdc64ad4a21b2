"""`quire fetch` from an S3 server over HTTP, and from a manifest on a web server."""

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from fakes.fetching import at, fetch_here, noise
from fakes.hub import Repo, hub
from moto.server import ThreadedMotoServer

from quire_engine.fetch.errors import ModelAccessDenied, ModelNotFound, SourceUnreachable, WeightsCorrupt
from quire_engine.fetch.listing import Check
from quire_engine.fetch.local import verify_folder
from quire_engine.fetch.s3 import list_s3
from quire_engine.fetch.source import S3Source

WEIGHTS = noise(6 << 20)
KEY = "AKIATHESECRETKEYOFTESTS"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    client = botocore.session.get_session().create_client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="models")
    put = functools.partial(client.put_object, Bucket="models")
    put(Key="team/m/config.json", Body=b"{}")
    put(Key="team/m/model.safetensors", Body=WEIGHTS)
    put(Key="team/m/pytorch_model.bin", Body=b"pickle")
    put(Key="team/m2/config.json", Body=b"{}")
    yield client
    for each in client.list_objects_v2(Bucket="models")["Contents"]:
        client.delete_object(Bucket="models", Key=each["Key"])
    client.delete_bucket(Bucket="models")
    client.close()


def test_the_revision_that_was_asked_for_comes_or_none(bucket: Any, tmp_path: Path) -> None:
    revision = list_s3(S3Source(bucket="models", prefix="team/m")).revision
    there = fetch_here("s3://models/team/m", tmp_path / "one", revision=revision)
    bucket.put_object(Bucket="models", Key="team/m/model.safetensors", Body=b"another")

    again = fetch_here("s3://models/team/m", tmp_path / "one", revision=revision)

    assert again == there
    with pytest.raises(ModelNotFound, match=f"was {revision} when it was asked for"):
        fetch_here("s3://models/team/m", tmp_path / "two", revision=revision)


def test_a_prefix_arrives_whole_and_only_once(bucket: Any, tmp_path: Path) -> None:
    folder = fetch_here("s3://models/team/m", tmp_path)

    assert folder.parent == tmp_path / "s3" / "models" / "team" / "m"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "manifest.json",
        "READY.json",
    }
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert verify_folder(folder, hashes=True).files == 2
    assert fetch_here("s3://models/team/m/", tmp_path) == folder
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_changed_object_is_another_revision(bucket: Any, tmp_path: Path) -> None:
    first = fetch_here("s3://models/team/m", tmp_path)
    bucket.put_object(Bucket="models", Key="team/m/config.json", Body=b'{"changed": 1}')

    second = fetch_here("s3://models/team/m", tmp_path)

    assert second != first
    assert (second / "config.json").read_text() == '{"changed": 1}'
    assert (first / "config.json").read_text() == "{}"


def test_an_object_in_parts_has_no_md5_and_arrives_all_the_same(bucket: Any, tmp_path: Path) -> None:
    where = {"Bucket": "models", "Key": "team/m/model.safetensors"}
    upload = bucket.create_multipart_upload(**where)["UploadId"]
    parts = []
    for number, part in enumerate((WEIGHTS[: 5 << 20], WEIGHTS[5 << 20 :]), 1):
        told = bucket.upload_part(**where, UploadId=upload, PartNumber=number, Body=part)
        parts.append({"ETag": told["ETag"], "PartNumber": number})
    bucket.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})

    folder = fetch_here("s3://models/team/m", tmp_path)

    told = {each["path"]: each for each in json.loads((folder / "manifest.json").read_text())["files"]}
    assert told["model.safetensors"]["sha256"] == hashlib.sha256(WEIGHTS).hexdigest()


def test_the_best_checksum_that_the_store_has_is_compared(bucket: Any) -> None:
    bucket.put_object(Bucket="models", Key="team/m/model.safetensors", Body=WEIGHTS, ChecksumAlgorithm="SHA256")
    listing = list_s3(S3Source(bucket="models", prefix="team/m"))

    checks = {file.path: file.check for file in listing.pin(listing.files)}

    assert checks["config.json"] == Check(kind="md5", hex=hashlib.md5(b"{}").hexdigest())
    assert checks["model.safetensors"] == Check(kind="sha256", hex=hashlib.sha256(WEIGHTS).hexdigest())


def test_what_is_wrong_with_a_bucket_is_named(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match="NoSuchBucket"):
        fetch_here("s3://nobody/m", tmp_path)
    with pytest.raises(ModelNotFound, match="nothing at s3://models/none"):
        fetch_here("s3://models/none", tmp_path)
    with pytest.raises(ModelNotFound, match="no weights"):
        fetch_here("s3://models/team/m2", tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "missing")
    with pytest.raises(ModelAccessDenied, match="no usable AWS credentials"):
        fetch_here("s3://models/team/m", tmp_path)


def test_a_bucket_that_may_not_be_read_is_denied(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{refusing.server_address[1]}")
        with pytest.raises(ModelAccessDenied, match="AccessDenied"):
            fetch_here("s3://models/team/m", tmp_path)
        refusing.shutdown()


class _Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store_on_the_web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder that `quire fetch` made, behind Python's own web server, which knows no ranges."""
    with hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        running.repos["org/model"] = Repo({"config.json": b"{}", "model.safetensors": WEIGHTS})
        fetch_here("hf://org/model", tmp_path / "origin")
    folder = at(tmp_path / "origin", "org/model")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder))) as web:
        threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{web.server_address[1]}/manifest.json"
        web.shutdown()


def test_a_fetched_folder_can_be_fetched_from_any_web_server(
    store_on_the_web: tuple[Path, str], tmp_path: Path
) -> None:
    origin, url = store_on_the_web

    folder = fetch_here(url, tmp_path / "copy")

    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (
        json.loads((folder / "manifest.json").read_text())["files"]
        == json.loads((origin / "manifest.json").read_text())["files"]
    )


def test_a_web_server_with_other_bytes_than_its_manifest_is_found_out(
    store_on_the_web: tuple[Path, str], tmp_path: Path
) -> None:
    origin, url = store_on_the_web
    (origin / "config.json").write_bytes(b"[]")

    with pytest.raises(WeightsCorrupt, match=r"config.json arrived twice"):
        fetch_here(url, tmp_path / "copy")

    (origin / "config.json").write_bytes(b"{} ")
    with pytest.raises(SourceUnreachable, match="should have 2 bytes, and the server has 3"):
        fetch_here(url, tmp_path / "copy")
    with pytest.raises(ModelNotFound, match="there is no manifest"):
        fetch_here(url.replace("manifest", "x/manifest"), tmp_path / "copy")
