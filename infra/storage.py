"""S3-compatible object storage through boto3: bytes, files and folders, each object with its sha256.

An object is written in one PUT (or one multipart upload), so it is there whole or not at all, and carries
its digest as metadata: that is what lets a killed stage see which shards are finished.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from infra import settings
from infra.errors import ConfigurationError, DistilflowError, TransientError

DIGEST_KEY = "sha256"
_REFUSED = {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403", "Forbidden", "ExpiredToken"}
_CREDENTIALS = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_DELETED_AT_ONCE = 1000  # as many as S3 takes in one request


@dataclass(frozen=True)
class StoredObject:
    """What is known of an object without reading it. `sha256` is None where another program wrote it."""

    key: str
    size: int
    sha256: str | None


@dataclass(frozen=True)
class Listed:
    """What a listing says of an object. `name` is relative to what was listed, `modified` in seconds since 1970."""

    name: str
    size: int
    modified: float
    etag: str


@functools.cache
def _client(endpoint: str | None, *_credentials: str | None) -> Any:
    config = Config(
        retries={"mode": "adaptive", "max_attempts": 8},
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": "path"} if endpoint else {},
    )
    session = boto3.session.Session()  # not boto3's default one, which keeps the first credentials it saw
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def client() -> Any:
    """The boto3 client for the storage that the environment names (one a process, endpoint and key pair)."""
    return _client(settings.s3_endpoint(), *map(os.environ.get, _CREDENTIALS))


def explain(error: Exception) -> DistilflowError:
    """Turn what boto3 raised into the one sentence that a user can act on."""
    where = settings.s3_endpoint() or "AWS S3"
    if isinstance(error, NoCredentialsError):
        return ConfigurationError(f"no credentials for S3 at {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code in _REFUSED:
            return ConfigurationError(
                f"S3 at {where} refused the credentials ({code}): "
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use the bucket "
                f"{settings.bucket()!r}"
            )
        if code == "NoSuchBucket":
            return ConfigurationError(
                f"S3 at {where} has no bucket {settings.bucket()!r}: create it or set DISTILFLOW_BUCKET"
            )
        return TransientError(f"S3 at {where} answered {code or error}: run again, finished work is kept")
    return TransientError(f"S3 at {where} cannot be reached ({error}): check AWS_ENDPOINT_URL_S3 and the server")


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` as (bucket, key)."""
    parsed = urlparse(uri)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise ConfigurationError(f"{uri!r} is no S3 address: expected s3://BUCKET/KEY")
    return parsed.netloc, parsed.path.lstrip("/")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """boto3's errors as ours; FileNotFoundError where there is no such object."""
    try:
        yield
    except (ClientError, BotoCoreError, boto3.exceptions.S3UploadFailedError) as error:
        if isinstance(error, ClientError) and str(error.response["Error"]["Code"]) in _ABSENT:
            raise FileNotFoundError from error
        raise explain(error) from error


def ensure_bucket() -> None:
    """Create the bucket if it is not there; the first call that tells bad credentials from good ones."""
    with _explained():
        try:
            client().head_bucket(Bucket=settings.bucket())
        except ClientError as error:
            if str(error.response["Error"]["Code"]) not in _ABSENT | {"NoSuchBucket"}:
                raise
            client().create_bucket(Bucket=settings.bucket())


def head(uri: str) -> StoredObject | None:
    """The object's size and digest, or None where there is none."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            found = client().head_object(Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    return StoredObject(key, found["ContentLength"], found["Metadata"].get(DIGEST_KEY))


def get(uri: str) -> bytes | None:
    """The object's bytes, or None where there is none."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            return client().get_object(Bucket=bucket, Key=key)["Body"].read()
    except FileNotFoundError:
        return None


def get_range(uri: str, start: int, length: int) -> bytes | None:
    """At most `length` bytes of the object from `start` on (fewer where it ends), or None where there is none."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            try:
                found = client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + length - 1}")
            except ClientError as error:
                if str(error.response["Error"]["Code"]) not in {"InvalidRange", "416"}:
                    raise
                return b""
            return found["Body"].read()
    except FileNotFoundError:
        return None


def get_with_etag(uri: str) -> tuple[bytes, str] | None:
    """The object's bytes and the tag of this version of it, for `put(only_if_match=…)`."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            found = client().get_object(Bucket=bucket, Key=key)
            return found["Body"].read(), found["ETag"]
    except FileNotFoundError:
        return None


def get_with_age(uri: str) -> tuple[bytes, str, float] | None:
    """As `get_with_etag`, and the seconds since it was written, all by the server's clock."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            found = client().get_object(Bucket=bucket, Key=key)
            return found["Body"].read(), found["ETag"], _date(found) - found["LastModified"].timestamp()
    except FileNotFoundError:
        return None


def now() -> float:
    """The server's clock in seconds since 1970: ages of objects are told by it, so that no two clocks are compared."""
    with _explained():
        return _date(client().head_bucket(Bucket=settings.bucket()))


def _date(response: Any) -> float:
    return parsedate_to_datetime(response["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()


def put(uri: str, data: bytes, *, only_if_absent: bool = False, only_if_match: str | None = None) -> bool:
    """Write an object in one step. Under a condition, returns False where another writer was first."""
    bucket, key = split_uri(uri)
    extra = {"IfNoneMatch": "*"} if only_if_absent else {"IfMatch": only_if_match} if only_if_match else {}
    metadata = {DIGEST_KEY: hashlib.sha256(data).hexdigest()}
    with _explained():
        try:
            client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata, **extra)
        except ClientError as error:
            if not extra or str(error.response["Error"]["Code"]) not in _CONDITION_FAILED:
                raise
            return False
    return True


def upload(path: Path, uri: str) -> None:
    """Write a local file (multipart where it is large)."""
    bucket, key = split_uri(uri)
    with _explained():
        client().upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {DIGEST_KEY: file_digest(path)}})


def download(uri: str, path: Path) -> None:
    """Fetch an object to a local file that appears only when it is whole."""
    bucket, key = split_uri(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with _explained():
            client().download_file(bucket, key, str(partial))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{uri} does not exist") from error
    partial.rename(path)


def keys(prefix_uri: str) -> Iterator[str]:
    """Names below a prefix, relative to it, in order."""
    for found in listed(prefix_uri):
        yield found.name


def listed(prefix_uri: str) -> Iterator[Listed]:
    """Objects below a prefix, in the order of their names, one page of the listing in memory at a time."""
    bucket, prefix = split_uri(prefix_uri)
    with _explained():
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                name, modified = found["Key"][len(prefix) :], found["LastModified"].timestamp()
                yield Listed(name, found["Size"], modified, found["ETag"])


def folders(prefix_uri: str) -> Iterator[str]:
    """Names of the folders right below a prefix, without what is in them."""
    bucket, prefix = split_uri(prefix_uri)
    with _explained():
        for page in client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for found in page.get("CommonPrefixes", []):
                yield found["Prefix"][len(prefix) : -1]


def delete(uri: str) -> None:
    """Delete one object (nothing happens where there is none)."""
    bucket, key = split_uri(uri)
    with _explained():
        client().delete_object(Bucket=bucket, Key=key)


def delete_all(prefix_uri: str, names: Iterable[str]) -> int:
    """Delete objects by their names below a prefix, in batches in the order given; returns how many."""
    bucket, prefix = split_uri(prefix_uri)
    rest, count = iter(names), 0
    while batch := [{"Key": prefix + name} for name in itertools.islice(rest, _DELETED_AT_ONCE)]:
        with _explained():
            answer = client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
        if failed := answer.get("Errors"):
            code, key = failed[0].get("Code"), failed[0].get("Key")
            where = f"s3://{bucket}/{key} and {len(failed) - 1} others" if len(failed) > 1 else f"s3://{bucket}/{key}"
            if code in _REFUSED:
                raise ConfigurationError(f"S3 does not let these credentials delete {where} ({code})")
            raise TransientError(f"S3 did not delete {where} ({code}): run again")
        count += len(batch)
    return count


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
