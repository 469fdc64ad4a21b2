"""Where a model's folder is: a folder, a GGUF file, `file:///path`, `pvc://claim/path`, `builtin://name`, or what was fetched.

Nobody is asked here. A folder that a fetch has begun and not finished, or whose files are not as long as its manifest
says, is refused before anything of it is read.
"""

import os
from pathlib import Path

from quire_engine.errors import WeightsFailure
from quire_engine.fetch.errors import ModelNotFound, WeightsCorrupt
from quire_engine.fetch.layout import LOCK, TEMPORARY, source_of
from quire_engine.fetch.listing import RESERVED
from quire_engine.fetch.manifest import Manifest, Unready, parse_manifest, read_ready, wrong_sizes
from quire_engine.fetch.source import FETCHED, is_hub_name, parse_source
from quire_engine.fetch.store import finished_in, is_store, known_place, wrong_hashes
from quire_engine.gguf.container import gguf_file

__all__ = ["builtin_folder", "check_hashes", "default_store", "locate_model", "manifest_of"]

IMAGE_MODELS = Path("/models")  # where Dockerfile.engine puts models/


def default_store() -> Path:
    """Where models are fetched to, unless --download-dir says otherwise."""
    cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if cache.startswith("~"):
        raise WeightsFailure("there is no home to keep models in: give --download-dir, or set $HOME or $XDG_CACHE_HOME")
    return Path(cache) / "quire" / "models"


def locate_model(model: str, store: Path | None = None) -> Path:
    """The folder, or the GGUF file that was named; WeightsFailure in one sentence when there is none."""
    scheme, separator, rest = model.partition("://")
    if scheme in FETCHED and separator:
        return _fetched(model, store or default_store())
    if not separator:
        folder = Path(model).expanduser()
        folder = folder.resolve() if folder.is_symlink() else folder  # as `quire fetch --link` makes one
        named = is_hub_name(model) and not folder.exists()
        return _fetched(model, store or default_store()) if named else _existing(folder)
    if scheme == "file":
        return _existing(Path(rest))
    if scheme == "pvc":
        return _existing(Path(os.environ.get("QUIRE_PVC_ROOT", "/pvc")) / rest.strip("/"))
    if scheme == "builtin":
        return builtin_folder(rest)
    raise WeightsFailure(
        f"{model}: {scheme}:// is not supported yet; use a folder, hf://org/model, s3://bucket/prefix, "
        "https://.../manifest.json or builtin://quire-tiny"
    )


def manifest_of(folder: Path) -> Manifest | None:
    """Of a fetched model, its sizes checked; None for a folder that no fetch has made."""
    folder = folder.parent if folder.is_file() else folder
    try:
        manifest = read_ready(folder)
    except Unready as why:
        if not _is_ours(folder):
            return None
        raise WeightsFailure(f"{folder} is no finished model: {why}; {_mend(folder)}") from None
    wrong = wrong_sizes(folder, manifest)
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise WeightsFailure(f"{folder} is damaged: {wrong[0]}{more}; {_mend(folder, manifest)}")
    return manifest


def check_hashes(folder: Path) -> None:
    """Of every file; WeightsFailure names what differs, or that there is nothing to compare with."""
    folder = folder.parent if folder.is_file() else folder
    manifest = manifest_of(folder)
    if manifest is None:
        raise WeightsFailure(
            f"{folder} has no manifest.json to compare with: fetch it with `quire fetch`, or leave out --verify-weights"
        )
    wrong = wrong_hashes(folder, manifest)
    if wrong:
        more = f", and so have {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise WeightsFailure(
            f"{folder} is damaged: {wrong[0]} has another content than manifest.json says{more}; "
            f"{_mend(folder, manifest, ' --verify')}"
        )


def builtin_folder(name: str) -> Path:
    checkout = next((p / "models" for p in Path(__file__).resolve().parents if (p / "models" / name).is_dir()), None)
    for models in (IMAGE_MODELS, checkout):
        if models and (models / name / "config.json").is_file():
            return models / name
    raise WeightsFailure(f"builtin://{name}: no such model ships with this engine; builtin://quire-tiny does")


def _existing(folder: Path) -> Path:
    if is_store(folder):
        return _only_one(folder)
    manifest_of(folder)
    if gguf_file(folder) is not None or (folder / "config.json").is_file():
        return folder
    seen = "there is no config.json in it" if folder.is_dir() else "there is no such folder"
    raise WeightsFailure(f"no model at {folder}: {seen}")


def _only_one(store: Path) -> Path:
    found = [each.folder for each in finished_in(store)]
    if len(found) == 1:
        return _existing(found[0])
    if not found:
        raise WeightsFailure(f"{store} holds no finished model: run `quire fetch SOURCE {store}`")
    listed = ", ".join(map(str, found[:10]))
    raise WeightsFailure(f"{store} holds {len(found)} models; give the path of one: {listed}")


def _fetched(model: str, store: Path) -> Path:
    try:
        place = known_place(store, parse_source(model), "")
    except ModelNotFound as failure:
        raise WeightsFailure(str(failure)) from None
    if place is None or not place.final.is_dir():
        raise WeightsFailure(
            f"{model} is not in {store}: run `quire fetch {model} {store}`, and give the folder it prints"
        )
    return _existing(place.final)


def _is_ours(folder: Path) -> bool:
    """A fetch has left something there: an unfinished download, or a lock beside it."""
    if folder.name.startswith(TEMPORARY) or (folder / RESERVED[1]).exists():
        return True
    try:
        parse_manifest((folder / RESERVED[0]).read_bytes(), "")
        return True
    except (OSError, WeightsCorrupt):
        return folder.parent.is_dir() and any(folder.parent.glob(f"{LOCK}{folder.name}.*"))


def _mend(folder: Path, manifest: Manifest | None = None, flag: str = "") -> str:
    known = source_of(folder.absolute())
    if known is not None:
        return f"run `quire fetch {known[0]} {known[1]}{flag}`"
    source = manifest.source if manifest and manifest.source else "SOURCE"
    return f"copy it again from where it came, or run `quire fetch {source} STORE`"
