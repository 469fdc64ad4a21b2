"""The API keys of a file: who is who, of which groups, with which limits. Only digests are in the file, and compared.

keys:
  - name: research            # in metrics and messages; the key itself is nowhere
    sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    groups: [staff]
    requestsPerMinute: 60
    tokensPerMinute: 100000
    maxOutputTokens: 2048
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from quire_api.base import Strict
from quire_router.limits import Limits
from quire_router.registry import Model
from quire_router.replies import Refusal

__all__ = ["Key", "KeyEntry", "Keys", "KeysFile", "hash_of"]


class KeyEntry(Strict):
    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._-]+$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    groups: tuple[str, ...] = ()
    requests_per_minute: Annotated[int | None, Field(ge=1)] = None
    tokens_per_minute: Annotated[int | None, Field(ge=1)] = None
    max_output_tokens: Annotated[int | None, Field(ge=1)] = None


class KeysFile(Strict):
    keys: tuple[KeyEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    name: str
    groups: tuple[str, ...]
    limits: Limits

    def may_use(self, model: Model) -> bool:
        return not model.groups or not set(model.groups).isdisjoint(self.groups)


ANYBODY = Key(name="", groups=(), limits=Limits())


class Keys:
    def __init__(self, entries: tuple[KeyEntry, ...] | None = None) -> None:
        """None: no file, and everybody may come in."""
        self._by_digest = None if entries is None else {bytes.fromhex(e.sha256): _key(e) for e in entries}

    def admit(self, authorization: bytes | None) -> Key | Refusal:
        if self._by_digest is None:
            return ANYBODY
        scheme, _, secret = (authorization or b"").partition(b" ")
        found = self._by_digest.get(hashlib.sha256(secret.strip()).digest()) if scheme.lower() == b"bearer" else None
        return found or Refusal(status=401, message="no valid API key: send one as `Authorization: Bearer KEY`")


def hash_of(secret: str) -> str:
    """What a file has of a key."""
    return hashlib.sha256(secret.strip().encode()).hexdigest()


def _key(entry: KeyEntry) -> Key:
    limits = Limits(
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
        max_output_tokens=entry.max_output_tokens,
    )
    return Key(name=entry.name, groups=entry.groups, limits=limits)
