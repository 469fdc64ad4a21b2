"""The hub's API: a revision becomes a commit, a commit a list of files. $HF_ENDPOINT may name a mirror.

The token ($HF_TOKEN, or the file that `hf auth login` wrote) goes to the endpoint alone, never to the CDN behind it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPMessage
from pathlib import Path
from typing import Any
from urllib.parse import quote

from quire_engine.fetch.client import Client, Document, Explain, onward, origin
from quire_engine.fetch.errors import ModelAccessDenied, ModelNotFound, SourceUnreachable, WeightsCorrupt, shown
from quire_engine.fetch.listing import Check, Listing, RemoteFile, Target, check_name
from quire_engine.fetch.source import HubSource, is_web_address

__all__ = ["list_hub"]

COMMIT = re.compile(r"[0-9a-f]{40,64}")
SHA256 = re.compile(r"[0-9a-f]{64}")
NEXT = re.compile(r'<([^>]+)>\s*;[^,]*rel="?next"?')
MOST_PAGES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hub:
    endpoint: str
    headers: Mapping[str, str]

    def at(self, path: str) -> Target:
        return Target(url=self.endpoint + path, headers=self.headers)


def list_hub(source: HubSource, client: Client) -> Listing:
    hub = _from_environment()
    explain = _explainer(source, hub)
    about = client.document(
        hub.at(f"/api/models/{source.repo}/revision/{quote(source.revision, safe='')}"), explain
    ).json(f"what {hub.endpoint} says of {source.repo}")
    commit = about.get("sha") if isinstance(about, dict) else None
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise WeightsCorrupt(f"{hub.endpoint} names no commit for {source}: does it speak the hub's API?")
    files = []
    for entry in _tree(hub, source, commit, client, explain):
        if entry.get("type") == "file":
            files.append(_file(hub, source, commit, entry))
    return Listing(revision=commit, files=tuple(files))


def _from_environment() -> _Hub:
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if not is_web_address(endpoint):
        raise SourceUnreachable(f"HF_ENDPOINT is {shown(endpoint)}, which is no web address: write it as https://host")
    token = _token()
    return _Hub(endpoint=endpoint, headers={"Authorization": f"Bearer {token}"} if token else {})


def _token() -> str | None:
    token = os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN")
    if not token:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
        path = os.environ.get("HF_TOKEN_PATH") or f"{home}/token"
        try:
            token = Path(os.path.expanduser(path)).read_text()  # Path's own raises where nobody has a home
        except (OSError, UnicodeDecodeError):
            return None
    token = token.strip()
    if not token.isascii() or any(c.isspace() for c in token):
        raise ModelAccessDenied("the hub's token has spaces or foreign letters in it: was the wrong file given?")
    return token or None


def _tree(hub: _Hub, source: HubSource, commit: str, client: Client, explain: Explain) -> list[dict[str, Any]]:
    """All entries; the hub gives a thousand or so at a time."""
    target = hub.at(f"/api/models/{source.repo}/tree/{commit}?recursive=true")
    entries: list[dict[str, Any]] = []
    for _ in range(MOST_PAGES):
        page = client.document(target, explain)
        listed = page.json(f"the list of files of {source}")
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise WeightsCorrupt(f"the list of files of {source} is no list: does {hub.endpoint} speak the hub's API?")
        entries += listed
        following = _next(page, target.url)
        if following is None:
            return entries
        # A mirror may hand on the links of the hub behind it; the token is not theirs.
        target = Target(url=following, headers=hub.headers if origin(following) == origin(hub.endpoint) else {})
    raise WeightsCorrupt(f"the list of files of {source} does not end")


def _next(page: Document, url: str) -> str | None:
    found = NEXT.search(page.headers.get("Link", ""))
    return onward(url, found[1]) if found else None


def _file(hub: _Hub, source: HubSource, commit: str, entry: Mapping[str, Any]) -> RemoteFile:
    try:
        path, lfs = check_name(str(entry["path"])), entry.get("lfs")
        size = int(lfs["size"] if lfs else entry["size"])
        digest = str(lfs["oid"]).removeprefix("sha256:") if lfs else str(entry["oid"])
    except (KeyError, TypeError, ValueError):
        raise WeightsCorrupt(f"the list of files of {source} has an entry without path, size or oid") from None
    if size < 0 or not (SHA256 if lfs else COMMIT).fullmatch(digest):
        raise WeightsCorrupt(f"the list of files of {source} has a size or an oid for {path} that cannot be")
    target = hub.at(f"/{source.repo}/resolve/{commit}/{quote(path)}")
    return RemoteFile(
        path=path, size=size, check=Check(kind="sha256" if lfs else "git", hex=digest), target=lambda: target
    )  # fmt: skip


def _explainer(source: HubSource, hub: _Hub) -> Explain:
    def explain(status: int, headers: HTTPMessage) -> Exception | None:
        code = headers.get("X-Error-Code", "")
        page = f"{shown(hub.endpoint)}/{source.repo}"
        if code == "GatedRepo":
            have = "the token given may not read it" if hub.headers else "no token was given ($HF_TOKEN)"
            return ModelAccessDenied(f"{source} is gated: {have}; accept its terms at {page}")
        if code == "RevisionNotFound":
            return ModelNotFound(f"{source.repo} is there, but has no revision {source.revision}; see {page}")
        if code == "RepoNotFound" or status in (404, 410):  # the hub says 401 of what may be private
            hidden = " this token can see" if hub.headers else ", or it is private and needs a token ($HF_TOKEN)"
            return ModelNotFound(f"{shown(hub.endpoint)} has no model {source.repo}{hidden}")
        if status in (401, 403):
            have = "refuses the token given" if hub.headers else "wants a token, and none was given ($HF_TOKEN)"
            return ModelAccessDenied(f"{shown(hub.endpoint)} {have} for {source}: HTTP {status}")
        return None

    return explain
