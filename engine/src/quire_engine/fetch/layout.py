"""Where a model lies in a store, under names that people can read and that no two models share. Pure.

    STORE/hf/org/model/<commit>/          s3/bucket/prefix.../<revision>/     https/host/path.../<revision>/
    .../.tmp-<revision>-<number>/         unfinished; the number is that of the lock it was written under
    .../.lock-<revision>.<number>         who writes
    .../.use-<revision>-<id>              who reads
    .../.refs/<branch>                    the folder that a branch or tag meant when it was last asked for

A part of a source's name that could be taken for one of these is written with %: nothing of ours begins with it.
"""

import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from quire_engine.fetch.errors import ModelNotFound
from quire_engine.fetch.source import FETCHED, HubSource, LocalSource, S3Source, Source, WebSource

__all__ = ["LOCK", "SCHEMES", "TEMPORARY", "USE", "Place", "escaped", "is_revision", "model_folder", "source_of"]

SCHEMES = FETCHED
TEMPORARY = ".tmp-"
LOCK = ".lock-"
USE = ".use-"
LONGEST = 160
_REVISION = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One revision of one model, with one choice of its files."""

    model: Path  # the folder of all its revisions
    name: str

    @property
    def final(self) -> Path:
        return self.model / self.name

    @property
    def lock(self) -> Path:
        """Without its number."""
        return self.model / f"{LOCK}{self.name}"

    def temporary(self, number: int) -> Path:
        return self.model / f"{TEMPORARY}{self.name}-{number}"

    def ref(self, name: str, mark: str) -> Path:
        return self.model / ".refs" / (escaped(name) + mark)


def model_folder(store: Path, source: Source) -> Path:
    match source:
        case HubSource(repo=repo):
            parts = ["hf", *repo.split("/")]
        case S3Source(bucket=bucket, prefix=prefix):
            parts = ["s3", bucket, *prefix.split("/")]
        case WebSource(url=url):
            address = urlsplit(url)
            parts = [address.scheme, address.netloc.lower(), *unquote(address.path).split("/")[:-1]]
        case LocalSource():
            raise ModelNotFound(f"{source} is verified where it is, and lies in no store")
    scheme, *rest = (part for part in parts if part)
    return store.joinpath(scheme, *(escaped(part) for part in rest))


def escaped(part: str) -> str:
    """One part of a path: no separator, no leading dot, not like a revision, not too long, and none like another."""
    text = quote(part, safe="@=,()[]~-_.")
    if text.startswith(".") or _REVISION.fullmatch(text):
        text = f"%{ord(text[0]):02X}{text[1:]}"
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}%~{sha256(part.encode()).hexdigest()[:16]}"
    return text


def is_revision(name: str) -> bool:
    """Whether a folder of this name, in a store, is one revision of a model."""
    return _REVISION.fullmatch(name.partition("+")[0]) is not None


def source_of(folder: Path) -> tuple[str, Path] | None:
    """The source and the store of a folder that this layout made, finished or not; None for any other folder."""
    *above, name = folder.parts
    revision = re.sub(rf"^{re.escape(TEMPORARY)}(.*)-\d+$", r"\1", name)
    at = next((i for i in range(len(above) - 1, 0, -1) if above[i] in SCHEMES), None)
    if at is None or not is_revision(revision):
        return None
    revision = revision.partition("+")[0]
    rest = "/".join(unquote(part) for part in above[at + 1 :])
    source = f"{above[at]}://{rest}" + {"hf": f"@{revision}", "s3": ""}.get(above[at], "/manifest.json")
    return source, Path(*above[:at])
