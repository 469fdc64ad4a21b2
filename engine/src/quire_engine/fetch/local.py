"""What is on a disk already, verified where it is: a model's folder, with our manifest or without.

Without a manifest there is no hash to compare with; what can be seen is seen: that every file of the index is there,
and that every safetensors or GGUF file is as long as its own header says.
"""

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from quire_engine.errors import ConfigFailure, EngineFailure, WeightsFailure
from quire_engine.fetch.errors import ModelNotFound, WeightsCorrupt
from quire_engine.fetch.halt import Halt
from quire_engine.fetch.layout import source_of
from quire_engine.fetch.manifest import MANIFEST, READY, Manifest, Unready, parse_manifest, read_ready, wrong_sizes
from quire_engine.fetch.source import LocalSource
from quire_engine.fetch.store import wrong_hashes
from quire_engine.gguf.container import gguf_file, open_container
from quire_engine.locate import builtin_folder

__all__ = ["Verdict", "local_folder", "verify_folder"]

LARGEST_HEADER = 100 << 20  # as the safetensors library has it
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    folder: Path
    revision: str
    files: int
    bytes: int
    hashed: bool  # False: there was no manifest to compare with


def local_folder(source: LocalSource) -> Path:
    match source.scheme:
        case "builtin":
            try:
                return builtin_folder(source.path)
            except WeightsFailure as failure:
                raise ModelNotFound(str(failure)) from None
        case "pvc":  # the pod mounts each claim there
            return Path(os.environ.get("QUIRE_PVC_ROOT", "/pvc")) / source.path
    return Path(source.path)


def verify_folder(folder: Path, *, hashes: bool, halt: Halt | None = None) -> Verdict:
    """WeightsCorrupt or ModelNotFound says what is wrong."""
    if not folder.is_dir() and gguf_file(folder) is None:
        raise ModelNotFound(f"no model at {folder}: there is no such folder")
    manifest = _manifest_of(folder)
    if manifest is None:
        return _without_manifest(folder)
    wrong = wrong_sizes(folder, manifest)
    if not wrong and hashes:
        wrong = [f"{name} has another content than {MANIFEST} says" for name in wrong_hashes(folder, manifest, halt)]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        fix = f"; mend it with `quire fetch {manifest.source} STORE --verify`" if manifest.source else ""
        raise WeightsCorrupt(f"{folder}: {'; '.join(wrong[:3])}{more}{fix}")
    return Verdict(
        folder=folder,
        revision=manifest.revision,
        files=len(manifest.files),
        bytes=manifest.bytes,
        hashed=hashes,
    )


def _manifest_of(folder: Path) -> Manifest | None:
    """Of one of ours; a manifest.json of another kind is a file like any other."""
    try:
        return read_ready(folder)
    except Unready as why:
        if (folder / READY).exists():
            raise WeightsCorrupt(f"{folder}: {why}") from None
    try:
        parse_manifest((folder / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, WeightsCorrupt):
        if source_of(folder.absolute()) is None:
            return None
    raise WeightsCorrupt(f"{folder}: {READY} is missing: the download did not end; run the same `quire fetch` again")


def _without_manifest(folder: Path) -> Verdict:
    names = _weights(folder)
    if not names and not _is_whole_gguf(folder):
        raise ModelNotFound(f"no weights in {folder}: there is no safetensors and no GGUF file")
    for name in names:
        _check_length(folder / name)
    files = [path for path in (folder, *folder.rglob("*")) if path.is_file()]
    return Verdict(
        folder=folder, revision="", files=len(files), bytes=sum(path.stat().st_size for path in files), hashed=False
    )  # fmt: skip


def _is_whole_gguf(place: Path) -> bool:
    try:
        file = gguf_file(place)
        return file is not None and bool(open_container(file).tensors)
    except ConfigFailure:
        return True  # of a kind that is not supported: the engine says so
    except EngineFailure as failure:
        raise WeightsCorrupt(str(failure)) from None


def _weights(folder: Path) -> list[str]:
    index = folder / INDEX
    if not index.exists():
        return sorted(path.name for path in folder.glob("*.safetensors"))
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise WeightsCorrupt(f"{index} cannot be read") from None


def _check_length(path: Path) -> None:
    """8 bytes of the header's length, the header, and what it describes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, size):
                raise WeightsCorrupt(f"{path} is damaged or cut short: its header would be {length:,} bytes long")
            header = json.loads(file.read(length))
        data = max((about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"), default=0)
    except FileNotFoundError:
        raise WeightsCorrupt(f"{path} is missing") from None
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError):
        raise WeightsCorrupt(f"{path} is damaged or cut short: its header cannot be read") from None
    if 8 + length + data != size:
        raise WeightsCorrupt(f"{path} has {size:,} bytes, and should have {8 + length + data:,}")
