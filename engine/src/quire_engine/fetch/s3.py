"""A prefix of a bucket, at any endpoint that speaks S3.

botocore finds the credentials (keys, profile, web identity) and signs; the bytes travel as all others do, by URLs that
are signed anew for every request. A revision is the hash of keys, sizes and ETags: what changes them is another model.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from quire_engine.fetch.errors import (
    FetchFailure,
    ModelAccessDenied,
    ModelNotFound,
    SourceUnreachable,
    WeightsCorrupt,
)
from quire_engine.fetch.listing import Check, Listing, RemoteFile, Target, check_name
from quire_engine.fetch.source import S3Source

__all__ = ["list_s3"]

MD5 = re.compile(r"[0-9a-f]{32}")
SIGNED_FOR_S = 3600  # of one request, which may be long


def list_s3(source: S3Source) -> Listing:
    client = _client(source)
    found = _listed(source, client)
    if not found:
        raise ModelNotFound(f"there is nothing at {source}")
    prefix = f"{source.prefix}/" if source.prefix else ""
    seal = hashlib.sha256()
    files = []
    for entry in sorted(found, key=lambda entry: str(entry["Key"])):
        key, size, etag = str(entry["Key"]), int(entry["Size"]), str(entry.get("ETag", ""))
        if key.endswith("/"):
            continue  # a folder, as consoles make them
        seal.update(f"{key}\0{size}\0{etag}\n".encode())
        files.append(
            RemoteFile(
                path=check_name(key.removeprefix(prefix)),
                size=size,
                etag=etag or None,
                target=_signer(client, source.bucket, key),
            )
        )

    def pin(chosen: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
        with ThreadPoolExecutor(8) as pool:
            return tuple(pool.map(lambda file: _checked(file, source, prefix + file.path, client), chosen))

    return Listing(revision=seal.hexdigest()[:40], files=tuple(files), pin=pin)


def _client(source: S3Source) -> Any:
    try:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config
    except ModuleNotFoundError:
        raise ModelNotFound(f"{source}: s3:// needs botocore: pip install botocore") from None

    def make() -> Any:
        session = botocore.session.get_session()
        signed = session.get_credentials() is not None
        config = Config(
            signature_version="s3v4" if signed else UNSIGNED,  # a public bucket needs no key
            retries={"mode": "standard", "max_attempts": 5},
            connect_timeout=10,
            read_timeout=30,
            s3=session.get_config_variable("s3") or {"addressing_style": "auto"},
        )
        region = session.get_config_variable("region") or "us-east-1"
        return session.create_client("s3", config=config, region_name=region)

    return _named(source, make)


def _listed(source: S3Source, client: Any) -> list[dict[str, Any]]:
    prefix = f"{source.prefix}/" if source.prefix else ""

    def pages() -> list[dict[str, Any]]:
        paginator = client.get_paginator("list_objects_v2")
        return [
            entry
            for page in paginator.paginate(Bucket=source.bucket, Prefix=prefix)
            for entry in page.get("Contents", ())
        ]

    found: list[dict[str, Any]] = _named(source, pages)
    return found


def _signer(client: Any, bucket: str, key: str) -> Callable[[], Target]:
    def sign() -> Target:
        parameters = {"Bucket": bucket, "Key": key}
        return Target(url=client.generate_presigned_url("get_object", Params=parameters, ExpiresIn=SIGNED_FOR_S))

    return sign


def _checked(file: RemoteFile, source: S3Source, key: str, client: Any) -> RemoteFile:
    """With what the store knows of its content. An ETag is an md5 only of one part that KMS did not encrypt."""

    def head() -> Any:
        return client.head_object(Bucket=source.bucket, Key=key, ChecksumMode="ENABLED")

    about = _named(source, head)
    if str(about.get("ETag", "")) != (file.etag or ""):
        raise WeightsCorrupt(
            f"{source}: {file.path} changed while it was looked at; run it again to take what is there now"
        )
    checksum = about.get("ChecksumSHA256", "")
    if checksum and "-" not in checksum:
        return replace(file, check=Check(kind="sha256", hex=base64.b64decode(checksum).hex()))
    md5 = (file.etag or "").strip('"')
    plain = about.get("ServerSideEncryption") in (None, "AES256") and not about.get("SSECustomerAlgorithm")
    return replace(file, check=Check(kind="md5", hex=md5)) if plain and MD5.fullmatch(md5) else file


def _named(source: S3Source, do: Callable[[], Any]) -> Any:
    """What `do` returns; botocore's failures in our words, without a key in them."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        NoCredentialsError,
        PartialCredentialsError,
        ProfileNotFound,
    )

    try:
        return do()
    except ClientError as error:
        raise _refused(source, error) from None
    except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
        raise ModelAccessDenied(f"{source}: no usable AWS credentials: {error}") from None
    except (BotoCoreError, ValueError) as error:  # the latter of an endpoint that is no address
        raise SourceUnreachable(f"{source}: {error}") from None


def _refused(source: S3Source, error: Any) -> FetchFailure:
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    code = error.response.get("Error", {}).get("Code", "")
    if code in ("NoSuchBucket", "NoSuchKey", "404", "NotFound") or status == 404:
        return ModelNotFound(f"{source}: {code}: no such bucket or object")
    if status in (400, 401, 403):
        return ModelAccessDenied(f"{source}: {code}: the credentials given may not list and read it")
    return SourceUnreachable(f"{source}: HTTP {status}, {code}")
