"""A model's name becomes a folder: fetched if it has to be, with progress on the terminal, before anything else starts."""

import logging
from dataclasses import dataclass
from pathlib import Path

from quire_engine.errors import WeightsFailure
from quire_engine.fetch.bring import Fetch, bring
from quire_engine.fetch.choose import Choice
from quire_engine.fetch.errors import FetchFailure
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.leases import hold
from quire_engine.fetch.progress import Meter, Teller
from quire_engine.fetch.source import FETCHED, HubSource, LocalSource, S3Source, Source, is_hub_name, parse_source
from quire_engine.locate import default_store, locate_model, manifest_of

__all__ = ["Arrival", "arrive"]

log = logging.getLogger("quire.fetch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    folder: Path
    names: tuple[str, ...]  # by which clients may call it; empty: by its folder


def arrive(model: str, download_dir: str | None, include: tuple[str, ...]) -> Arrival:
    """WeightsFailure, with the fetch's own reason before it, if it cannot be had."""
    scheme, separator, _ = model.partition("://")
    fetched = scheme in FETCHED if separator else is_hub_name(model) and not Path(model).expanduser().exists()
    folder = _fetched(model, download_dir, include) if fetched else locate_model(model)
    if manifest_of(folder) is None:
        return Arrival(folder=folder, names=())
    hold(folder)
    manifest = manifest_of(folder)  # gc looks for leases after it has removed READY.json
    name = _name(manifest.source) if manifest else None
    return Arrival(folder=folder, names=tuple(dict.fromkeys([name, model])) if name else ())


def _fetched(model: str, download_dir: str | None, include: tuple[str, ...]) -> Path:
    store = Path(download_dir).expanduser() if download_dir else default_store()
    meter, halt = Meter(), Halt()
    try:
        wanted = Fetch(source=parse_source(model), store=store, choice=Choice(include=include), stale=True)
        with Teller(meter, every_s=10.0):
            folder = bring(wanted, meter, halt)
    except FetchFailure as failure:
        raise WeightsFailure(f"{failure.reason}: {failure}") from None
    log.info("%s is at %s", model, folder)
    return folder


def _name(source: str) -> str | None:
    try:
        parsed: Source = parse_source(source)
    except FetchFailure:
        return None
    match parsed:
        case HubSource(repo=repo):
            return repo
        case S3Source(bucket=bucket, prefix=prefix):
            return prefix.rpartition("/")[2] or bucket
        case LocalSource():
            return None
    return parsed.url.split("/")[-2]
