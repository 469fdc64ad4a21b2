"""A manifest.json on any web server, beside the files it lists: the folder of a store, served as it is."""

import hashlib
from http.client import HTTPMessage
from urllib.parse import quote, urljoin

from quire_engine.fetch.client import Client
from quire_engine.fetch.errors import ModelAccessDenied, ModelNotFound, shown
from quire_engine.fetch.listing import Check, Listing, RemoteFile, Target
from quire_engine.fetch.manifest import parse_manifest
from quire_engine.fetch.source import WebSource

__all__ = ["list_web"]


def list_web(source: WebSource, client: Client) -> Listing:
    def explain(status: int, headers: HTTPMessage) -> Exception | None:
        if status in (401, 403):
            return ModelAccessDenied(f"{shown(source.url)} answers {status}: it must be readable without a key")
        if 400 <= status < 500 and status not in (407, 408, 425, 429):
            return ModelNotFound(f"{shown(source.url)} answers {status}: there is no manifest")
        return None

    document = client.document(Target(url=source.url), explain)
    manifest = parse_manifest(document.body, shown(source.url))

    def file(path: str, size: int, sha256: str) -> RemoteFile:
        target = Target(url=urljoin(source.url, quote(path)))
        return RemoteFile(path=path, size=size, check=Check(kind="sha256", hex=sha256), target=lambda: target)

    return Listing(
        revision=hashlib.sha256(document.body).hexdigest()[:40],
        files=tuple(file(each.path, each.size, each.sha256) for each in manifest.files),
    )
