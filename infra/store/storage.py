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
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.files import whole
from infra.store.storage_errors import REFUSED, code_of, explain, no_store

DIGEST_KEY = "sha256"
_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_CREDENTIALS = ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey"}
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_NOT_THERE = {
    "NotImplemented",
    "501",
    "MethodNotAllowed",
    "405",
    "UnsupportedOperation",
}  # a store lacks what was asked
_ATTEMPTS = 8
_DELETED_AT_ONCE = 1000  # as many as S3 takes in one request
_SETTLED_S = 2.0  # in which every write that has begun is over
_PROBES = "probe/"
_CHUNK = 1 << 20
LINK_S = 7 * 86_400  # as long as S3 lets a signed address live


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
        retries={"mode": "adaptive", "max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS))},
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": settings.s3_addressing()},
        signature_version="s3v4",  # of links too, whose old signature some stores refuse
        # our own digests are checked, and stores of other makers stumble over what boto3 adds to every request
        **({} if endpoint is None else {name: _checksums(name) for name in _CHECKSUMS}),
    )
    session = boto3.session.Session()  # not boto3's default one, which keeps the first credentials it saw
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def _checksums(name: str) -> str:
    return os.environ.get(f"AWS_{name.upper()}", "when_required")


def client() -> Any:
    """The boto3 client for the storage that the environment names (one a process, endpoint and key pair)."""
    return _client(settings.s3_endpoint(), *map(os.environ.get, _CREDENTIALS))


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
        if isinstance(error, ClientError) and code_of(error) in _ABSENT:
            raise FileNotFoundError from error
        raise explain(error) from error
    except ValueError as error:  # of an address that is none
        raise ConfigurationError(f"S3: {error}: check AWS_ENDPOINT_URL_S3") from error
    except RecursionError as error:  # urllib3's own limit on redirects is off in boto3, which follows each
        raise no_store("sends every request on to another address, without end") from error


def ensure_bucket() -> None:
    """Create the bucket if it is not there; the first call that tells bad credentials from good ones."""
    with _explained():
        try:
            found = client().list_objects_v2(Bucket=settings.bucket(), MaxKeys=1)  # an answer to HEAD has no code
            if not found.keys() & {"Name", "KeyCount", "MaxKeys", "Contents", "IsTruncated"}:
                raise no_store("does not answer as S3 does")
        except ClientError as error:
            if code_of(error) not in _ABSENT | {"NoSuchBucket"}:
                raise
            region = client().meta.region_name
            where = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
            client().create_bucket(Bucket=settings.bucket(), **where)


def keeps_conditions() -> bool:
    """Whether the store refuses a write whose condition does not hold; asked once a process, by three small requests.

    Some stores do not know such writes, some ignore the condition. There, `put` writes, waits and looks.
    """
    return _keeps_conditions(settings.s3_endpoint(), settings.bucket())


@functools.cache
def _keeps_conditions(_endpoint: str | None, bucket: str) -> bool:
    where = {"Bucket": bucket, "Key": f"{_PROBES}{uuid.uuid4().hex}"}
    with _explained():
        try:
            for _ in range(2):
                client().put_object(**where, Body=b"", IfNoneMatch="*")
        except ClientError as error:
            if code_of(error) not in _CONDITION_FAILED | _NOT_THERE:
                raise
            return code_of(error) in _CONDITION_FAILED
        finally:
            client().delete_object(**where)
    return False


def head(uri: str) -> StoredObject | None:
    """The object's size and digest, or None where there is none."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            found = client().head_object(Bucket=bucket, Key=key)
    except FileNotFoundError:
        return None
    metadata = {name.lower(): value for name, value in found["Metadata"].items()}
    return StoredObject(key, found["ContentLength"], metadata.get(DIGEST_KEY))


def digest(uri: str) -> str:
    """sha256 of the object's bytes, read for it: of a store that keeps no metadata, or another program's object."""
    bucket, key = split_uri(uri)
    found = hashlib.sha256()
    with _explained():
        for chunk in client().get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def get(uri: str) -> bytes | None:
    """The object's bytes, or None where there is none."""
    bucket, key = split_uri(uri)
    try:
        with _explained():
            return client().get_object(Bucket=bucket, Key=key)["Body"].read()
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


def put(uri: str, data: bytes, *, only_if_absent: bool = False, only_if_match: str | None = None) -> str | None:
    """Write an object in one step; the tag of what was written. Under a condition, None where another was first."""
    bucket, key = split_uri(uri)
    extra = {"IfNoneMatch": "*"} if only_if_absent else {"IfMatch": only_if_match} if only_if_match else {}
    metadata = {DIGEST_KEY: hashlib.sha256(data).hexdigest()}
    if extra and not keeps_conditions():
        return _put_and_look(uri, data, only_if_match)
    with _explained():
        try:
            written = client().put_object(Bucket=bucket, Key=key, Body=data, Metadata=metadata, **extra)
        except ClientError as error:
            if not extra or code_of(error) not in _CONDITION_FAILED:
                raise
            return None
    return str(written["ETag"])


def _put_and_look(uri: str, data: bytes, only_if_match: str | None) -> str | None:
    """Of writers at one moment the last one wins, and each sees who that was once all have written."""
    found = get_with_etag(uri)
    if (found and found[1]) != only_if_match:
        return None
    put(uri, data)
    time.sleep(_SETTLED_S)
    found = get_with_etag(uri)
    return found[1] if found and found[0] == data else None


def link(uri: str, media_type: str) -> str:
    """An address under which a browser opens the object without a key, for a week: whoever has it can read the object.

    Signed with temporary credentials (of a role, say) it ends with those. Asks the store nothing.
    """
    bucket, key = split_uri(uri)
    shown = {"Bucket": bucket, "Key": key, "ResponseContentType": media_type}
    with _explained():
        return str(client().generate_presigned_url("get_object", Params=shown, ExpiresIn=LINK_S))


def upload(path: Path, uri: str) -> None:
    """Write a local file (multipart where it is large)."""
    bucket, key = split_uri(uri)
    with _explained():
        client().upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {DIGEST_KEY: file_digest(path)}})


def download(uri: str, path: Path) -> None:
    """Fetch an object to a local file that appears only when it is whole."""
    bucket, key = split_uri(uri)
    try:
        with whole(path) as partial, _explained():
            client().download_file(bucket, key, str(partial))
    except FileNotFoundError as error:
        raise ConfigurationError(f"{uri} does not exist") from error


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
            try:
                answer = client().delete_objects(Bucket=bucket, Delete={"Objects": batch, "Quiet": True})
            except ClientError as error:
                if code_of(error) not in _NOT_THERE:
                    raise
                for one in batch:
                    client().delete_object(Bucket=bucket, **one)
                answer = {}
        if failed := answer.get("Errors"):
            code, key = failed[0].get("Code"), failed[0].get("Key")
            where = f"s3://{bucket}/{key} and {len(failed) - 1} others" if len(failed) > 1 else f"s3://{bucket}/{key}"
            if code in REFUSED:
                raise ConfigurationError(f"S3 does not let these credentials delete {where} ({code})")
            raise TransientError(f"S3 did not delete {where} ({code}): run again")
        count += len(batch)
    return count


def file_digest(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
