"""Bring the user's data into storage: training seeds, held-out rows, and databases to run SQL on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from infra import storage
from infra.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.errors import ConfigurationError
from infra.models import DEMO
from infra.sandbox import QueryError, ReadOnlyDatabase
from tasks.rows import HELDOUT, TRAIN, Row, to_parquet
from tasks.seeds.formats import parse, read_bytes
from tasks.seeds.references import with_running_references

KIND = "seeds"
STAGE_VERSION = 3
DATABASES = "databases/"
_ROWS_PER_FILE = 10_000
_NAMED = 100  # rows that were left out


@dataclass(frozen=True)
class Sources:
    """Where the data lie. `demo` as `seeds` means the shipped SQL domain with all three."""

    seeds: str
    heldout: str | None
    databases: str | None

    @staticmethod
    def of(seeds: str, heldout: str | None, databases: str | None) -> Sources:
        if seeds != "demo":
            return Sources(seeds, heldout, databases)
        return Sources(
            str(DEMO / "seeds.jsonl"), heldout or str(DEMO / "heldout.jsonl"), databases or str(DEMO / "databases")
        )


def load(sources: Sources, *, heldout_share: float, response_required: bool) -> ArtifactRef:
    """The seeds artifact for the sources' content (where it lies does not matter).

    Without `heldout`, a share of the seeds chosen by their hash is held out of everything before evaluation.
    """
    seeds = read_bytes(sources.seeds)
    heldout = read_bytes(sources.heldout) if sources.heldout else None
    databases = read_databases(sources.databases) if sources.databases else {}
    spec = {
        "seeds": hashlib.sha256(seeds).hexdigest(),
        "heldout": hashlib.sha256(heldout).hexdigest() if heldout is not None else heldout_share,
        "databases": {name: hashlib.sha256(dump.encode()).hexdigest() for name, dump in databases.items()},
        "response_required": response_required,
    }
    work = Workspace(KIND, STAGE_VERSION, spec, {})
    if found := work.find():
        return found
    rows = _distinct(parse(sources.seeds, seeds, response_required=response_required))
    if heldout is not None:
        heldout_rows = _distinct(parse(str(sources.heldout), heldout, response_required=True))
    else:
        rows, heldout_rows = _split(rows, heldout_share)
    heldout_rows, left_out = with_running_references(heldout_rows, databases)
    for prefix, part in ((TRAIN, rows), (HELDOUT, heldout_rows)):
        for start in range(0, len(part), _ROWS_PER_FILE):
            work.put(f"{prefix}{start // _ROWS_PER_FILE:05}.parquet", to_parquet(part[start : start + _ROWS_PER_FILE]))
    for name, dump in databases.items():
        work.put(f"{DATABASES}{name}.sql", dump.encode())
    counts = {"seeds": len(rows), "heldout": len(heldout_rows), "databases": len(databases)}
    counts["heldout_references_fail"] = len(left_out)
    return work.publish((TRAIN, HELDOUT, DATABASES), counts, {"heldout_references_fail": left_out[:_NAMED]})


def read_databases(where: str) -> dict[str, str]:
    """SQL dumps by name from a folder or s3:// prefix of `*.sql` files; each is loaded once to see that it can be."""
    if where.startswith("s3://"):
        prefix = where.rstrip("/") + "/"
        names = [name for name in storage.keys(prefix) if name.endswith(".sql")]
        dumps = {Path(name).stem: (storage.get(prefix + name) or b"").decode() for name in names}
    else:
        dumps = {path.stem: path.read_text() for path in sorted(Path(where).expanduser().glob("*.sql"))}
    if not dumps:
        raise ConfigurationError(f"databases: {where} holds no *.sql dumps")
    for name, dump in dumps.items():
        try:
            ReadOnlyDatabase(dump).check()
        except QueryError as error:
            raise ConfigurationError(f"databases: {name}.sql in {where} does not load ({error})") from error
    return dumps


def open_databases(seeds: ArtifactRef) -> dict[str, ReadOnlyDatabase]:
    """The databases of a seeds artifact, ready to query."""
    reader = ArtifactReader(seeds)
    return {
        name.removeprefix(DATABASES).removesuffix(".sql"): ReadOnlyDatabase(data.decode())
        for name, data in reader.stream(DATABASES)
    }


def _distinct(rows: list[Row]) -> list[Row]:
    return list({row.id: row for row in rows}.values())


def _split(rows: list[Row], share: float) -> tuple[list[Row], list[Row]]:
    threshold = int(share * 2**32)
    heldout = [row for row in rows if int(row.id[:8], 16) < threshold and row.response]
    if not heldout:
        heldout = sorted((row for row in rows if row.response), key=lambda row: row.id)[:1]
    chosen = {row.id for row in heldout}
    train = [row for row in rows if row.id not in chosen]
    if not heldout or not train:
        raise ConfigurationError(
            f"{len(rows)} seeds are too few to hold some out for evaluation: add seeds, or give `heldout`"
        )
    return train, heldout
