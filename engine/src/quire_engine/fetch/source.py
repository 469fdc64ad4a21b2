"""Where a model comes from, as users write it: text -> one of the frozen types below. Nothing is asked of anybody here."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from quire_engine.fetch.errors import ModelNotFound

__all__ = [
    "FETCHED",
    "HubSource",
    "LocalSource",
    "S3Source",
    "Source",
    "WebSource",
    "is_hub_name",
    "is_web_address",
    "parse_source",
]

FETCHED = ("hf", "s3", "https", "http")  # schemes whose bytes have to be brought
NOT_YET = {
    "gs": "copy it to an s3:// bucket, or a volume (pvc://)",
    "oci": "unpack the image onto a volume (pvc://) or an s3:// bucket",
}
KNOWN = "hf://org/model[@revision], s3://bucket/prefix, https://host/path/manifest.json, file:///path, pvc://claim/path, builtin://name"

_REPO_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}"
_REPO = re.compile(rf"({_REPO_PART}/)?{_REPO_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    repo: str
    revision: str = "main"  # a branch, a tag or a commit

    def __str__(self) -> str:
        return f"hf://{self.repo}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def pinned(self) -> bool:
        """The revision is a commit: it will never mean anything else."""
        return _COMMIT.fullmatch(self.revision) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Source:
    bucket: str
    prefix: str  # without slashes at its ends; may be empty

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSource:
    url: str  # of a manifest.json

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSource:
    """Verified where it is, never copied."""

    scheme: str  # file, pvc or builtin
    path: str  # an absolute path; claim/path; a name

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


Source = HubSource | S3Source | WebSource | LocalSource


def is_hub_name(text: str) -> bool:
    """`org/model` or `org/model@revision`, as people type it to `vllm serve`."""
    repo, at, revision = text.partition("@")
    return repo.count("/") == 1 and bool(_REPO.fullmatch(repo)) and (not at or bool(_REVISION.fullmatch(revision)))


def is_web_address(url: str) -> bool:
    """Whether it can be asked at all: urlsplit lets much pass, and says so only when its parts are looked at."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def parse_source(text: str) -> Source:
    """ModelNotFound, with what is known, for anything else."""
    if not text:
        raise ModelNotFound(f"the source is empty; known are {KNOWN}")
    scheme, separator, rest = text.partition("://")
    if not separator:
        if Path(text).is_absolute() or text.startswith((".", "~")) or Path(text).is_dir():
            try:
                return LocalSource(scheme="file", path=str(Path(text).expanduser().absolute()))
            except RuntimeError:  # nobody of that name, or a user without a home
                raise ModelNotFound(f"{_safe(text)}: there is no such home") from None
        if is_hub_name(text):
            return _hub(text, text)
        raise ModelNotFound(f"{_safe(text)} is no source; known are {KNOWN}")
    match scheme:
        case "hf":
            return _hub(rest, text)
        case "s3":
            return _s3(rest, text)
        case "https" | "http":
            return _web(text)
        case "file" if rest.startswith("/"):
            return LocalSource(scheme=scheme, path=rest)
        case "pvc" | "builtin" if rest.strip("/") and ".." not in rest.split("/"):
            return LocalSource(scheme=scheme, path=rest.strip("/"))
    if scheme in NOT_YET:
        raise ModelNotFound(f"{_safe(text)}: {scheme}:// is not supported yet; {NOT_YET[scheme]}")
    raise ModelNotFound(f"{_safe(text)} is no source; known are {KNOWN}")


def _hub(rest: str, text: str) -> HubSource:
    repo, at, revision = rest.strip("/").partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or (at and (not _REVISION.fullmatch(revision) or ".." in revision)):
        raise ModelNotFound(f"{_safe(text)} is no model of the hub: hf://org/model or hf://org/model@revision")
    return HubSource(repo=repo, revision=revision or "main")


def _s3(rest: str, text: str) -> S3Source:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise ModelNotFound(f"{_safe(text)}: {_safe(bucket)!r} is no name of a bucket; s3://bucket/prefix")
    return S3Source(bucket=bucket, prefix=prefix.strip("/"))


def _web(text: str) -> WebSource:
    if "@" in text.partition("://")[2].partition("/")[0]:
        raise ModelNotFound("an address with a user in it would show in every list of processes: leave it out")
    if not is_web_address(text):
        raise ModelNotFound(f"{_safe(text)} is no web address: https://host[:port]/path/manifest.json")
    parts = urlsplit(text)
    if not parts.path.endswith("/manifest.json") or parts.query or parts.fragment:
        raise ModelNotFound(
            f"{_safe(text)}: a web address must end with /manifest.json, a list of files with size and sha256; "
            "every folder that `quire fetch` made has one"
        )
    return WebSource(url=text)


def _safe(text: str) -> str:
    """What a user typed, without a user or a query in it, on one line."""
    scheme, separator, rest = text.partition("://")
    rest = rest.partition("?")[0]
    if "@" in rest.partition("/")[0]:
        rest = rest.partition("@")[2]
    return "".join(c if c.isprintable() else "?" for c in scheme + separator + rest)[:200]
