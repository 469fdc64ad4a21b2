"""`quire fetch resolve`: what a source is just now, without its weights."""

import json
from collections.abc import Mapping
from http.client import HTTPMessage
from pathlib import Path
from typing import Any

from quire_engine.errors import EngineFailure
from quire_engine.fetch.bring import resolve
from quire_engine.fetch.choose import Choice, choose
from quire_engine.fetch.client import Client
from quire_engine.fetch.errors import ModelAccessDenied, ModelNotFound
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.listing import RemoteFile
from quire_engine.fetch.local import local_folder, verify_folder
from quire_engine.fetch.source import LocalSource, parse_source
from quire_engine.fetch.summary import summary_line
from quire_engine.fetch.wire import Wire
from quire_engine.gguf.config import config_of
from quire_engine.gguf.container import gguf_file

__all__ = ["resolve_line"]

LARGEST_CONFIG = 4 << 20


def resolve_line(text: str, choice: Choice, halt: Halt) -> str:
    source = parse_source(text)
    if isinstance(source, LocalSource):
        return _local(source)
    client = Client(wire=Wire(), halt=halt)
    try:
        with halt.cut_off():
            listing = resolve(source, client)
            files = choose(listing.files, choice, str(source))
            config = next((file for file in files if file.path == "config.json" and file.size <= LARGEST_CONFIG), None)
            told = None if config is None else _config(config, client)
    finally:
        client.wire.close()
    return summary_line(str(source), listing.revision, [file.size for file in files], told)


def _local(source: LocalSource) -> str:
    verdict = verify_folder(local_folder(source), hashes=False)
    place = verdict.folder
    sizes = [path.stat().st_size for path in (place, *place.rglob("*")) if path.is_file()]
    file = gguf_file(place)
    try:
        config = _read(place / "config.json") if file is None else config_of(file)
    except EngineFailure:  # the engine says what is wrong with it
        config = None
    return summary_line(str(source), verdict.revision, sizes, config)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return _mapping(path.read_bytes())
    except OSError:
        return None


def _config(file: RemoteFile, client: Client) -> Mapping[str, Any] | None:
    def explain(status: int, headers: HTTPMessage) -> Exception | None:
        if status in (401, 403):
            return ModelAccessDenied(
                f"{file.path}: HTTP {status}: it is listed, but may not be read with what was given"
            )
        if status in (404, 410):
            return ModelNotFound(f"{file.path}: HTTP {status}: it is listed, but not there")
        return None

    return _mapping(client.document(file.target(), explain).body)


def _mapping(data: bytes) -> Mapping[str, Any] | None:
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
