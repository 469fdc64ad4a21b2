"""manifest.json and READY.json: what a finished model consists of, and the word that it is finished.

manifest.json   every file with size and sha256, as computed while it was written
READY.json      written last; names the manifest by its hash, so that half of one pair never passes
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_engine.fetch.errors import WeightsCorrupt
from quire_engine.fetch.listing import RESERVED, check_name

__all__ = [
    "MANIFEST",
    "READY",
    "Manifest",
    "ManifestFile",
    "Unready",
    "parse_manifest",
    "read_ready",
    "ready_text",
    "wrong_sizes",
]

MANIFEST = RESERVED[0]
READY = RESERVED[1]
FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Unready(Exception):
    """The folder is no finished model; why, in a few words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    source: str
    revision: str
    files: tuple[ManifestFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    def text(self) -> str:
        listed = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files]
        about = {"format": FORMAT, "source": self.source, "revision": self.revision, "bytes": self.bytes}
        return json.dumps({**about, "files": listed}, indent=1) + "\n"


def parse_manifest(data: bytes, where: str) -> Manifest:
    """WeightsCorrupt unless it is one of ours; every name in it is safe to write afterwards."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise WeightsCorrupt(f"{where} is no JSON") from None
    if not isinstance(told, dict) or told.get("format") != FORMAT or not isinstance(told.get("files"), list):
        raise WeightsCorrupt(
            f'{where} is no manifest of weights: expected {{"format": {FORMAT}, "files": [{{"path", "size", "sha256"}}, ...]}}'
        )
    files = tuple(_file(each, where) for each in told["files"])
    if len({file.path for file in files}) != len(files):
        raise WeightsCorrupt(f"{where} lists a file twice")
    return Manifest(source=str(told.get("source", "")), revision=str(told.get("revision", "")), files=files)


def _file(told: Any, where: str) -> ManifestFile:
    path, size, sha256 = (told.get(k) for k in ("path", "size", "sha256")) if isinstance(told, dict) else (None,) * 3
    if not isinstance(path, str) or type(size) is not int or size < 0 or not _SHA256.fullmatch(str(sha256)):
        raise WeightsCorrupt(f"{where} has an entry without a path, a size or a sha256: {str(told)[:100]}")
    return ManifestFile(path=check_name(path), size=size, sha256=str(sha256))


def ready_text(manifest_text: str, about: Mapping[str, Any]) -> str:
    seal = hashlib.sha256(manifest_text.encode()).hexdigest()
    return json.dumps({"format": FORMAT, "manifestSha256": seal, **about}, indent=1) + "\n"


def read_ready(folder: Path) -> Manifest:
    """The manifest of a finished model; Unready says what is missing."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError:
        raise Unready(f"{MANIFEST} is missing: the download did not end") from None
    try:
        ready = json.loads((folder / READY).read_bytes())
    except OSError:
        raise Unready(f"{READY} is missing: the download did not end") from None
    except ValueError:
        raise Unready(f"{READY} cannot be read") from None
    if not isinstance(ready, dict) or ready.get("manifestSha256") != hashlib.sha256(data).hexdigest():
        raise Unready(f"{READY} and {MANIFEST} do not belong together")
    try:
        return parse_manifest(data, str(folder / MANIFEST))
    except WeightsCorrupt as error:
        raise Unready(str(error)) from None


def wrong_sizes(folder: Path, manifest: Manifest) -> list[str]:
    """A sentence for each file that is missing, or of another size than the manifest has."""
    wrong = []
    for file in manifest.files:
        try:
            size = (folder / file.path).stat().st_size
        except OSError:
            wrong.append(f"{file.path} is missing")
            continue
        if size != file.size:
            wrong.append(f"{file.path} has {size:,} bytes, and should have {file.size:,}")
    return wrong
