"""The row: one schema from the seeds to the last evaluation.

A row is keyed by the hash of its content, so nothing downstream pairs rows by position. Rows travel as
Parquet files whose columns a person can read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from infra.store.artifacts import ArtifactReader, ArtifactRef
from infra.store.parquet import packed
from tasks.text.categories import UNNAMED

TRAIN, HELDOUT = "train/", "heldout/"  # where a seeds artifact keeps its rows
KEPT, REJECTED, FAILED = "kept/", "rejected/", "failed/"  # and an augment artifact
PASSAGES = "passages.u64"  # of an artifact that says what no training row may hold
BEFORE_REWRITING = "before rewriting"  # among the verdicts: the response that was corrected
Role = Literal["system", "user", "assistant"]
Turns = Literal["all", "last"]  # which of a conversation's answers are trained on
LAST_ALONE = "last answer alone"  # among the verdicts: why the answers before the response are not trained on
CONVERSATIONS = "conversations"  # a count of an augment artifact: rows with answers before their response


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True)

    role: Role
    content: str

    @property
    def is_answer(self) -> bool:
        """Whether it can be trained on: an assistant's, with something in it."""
        return self.role == "assistant" and bool(self.content.strip())


class Row(BaseModel):
    """An instruction with its response, and where both come from.

    `scores` are Selection's (1 to 10); `verdicts` hold, by agent or check, the reason that it gave, and where the
    preservation check calls the rewritten response the right one, the response `BEFORE_REWRITING`.
    """

    model_config = ConfigDict(frozen=True)

    instruction: str
    input: str = ""
    response: str = ""
    history: tuple[Message, ...] = ()
    task_category: str = UNNAMED
    language: str = "en"
    origin_seed: str = ""
    lineage: tuple[str, ...] = ("seed",)
    scores: dict[str, float] = {}
    verdicts: dict[str, str] = {}
    database: str = ""

    @property
    def id(self) -> str:
        """Hash of what a model sees of the row."""
        seen = [self.instruction, self.input, self.response, [m.model_dump() for m in self.history]]
        return hashlib.sha256(json.dumps(seen, ensure_ascii=True).encode()).hexdigest()[:20]

    @property
    def prompt(self) -> list[Message]:
        """Everything before the response."""
        content = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        return [*self.history, Message(role="user", content=content)]

    @property
    def messages(self) -> list[Message]:
        return [*self.prompt, Message(role="assistant", content=self.response)]

    @property
    def earlier_answers(self) -> list[int]:
        """Places in the conversation of the answers before the response that may be trained on."""
        if LAST_ALONE in self.verdicts:
            return []
        return [place for place, message in enumerate(self.history) if message.is_answer]


_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("response", pa.string()),
        ("history", pa.list_(_MESSAGE)),
        ("task_category", pa.string()),
        ("language", pa.string()),
        ("origin_seed", pa.string()),
        ("lineage", pa.list_(pa.string())),
        ("scores", pa.list_(pa.struct([("of", pa.string()), ("score", pa.float64())]))),  # `datasets` reads no maps
        ("verdicts", pa.list_(pa.struct([("by", pa.string()), ("verdict", pa.string())]))),
        ("database", pa.string()),
        ("messages", pa.list_(_MESSAGE)),  # what other programs train on; derived, not read back
    ]
)
_ROWS_AT_ONCE = 200
_READ = [name for name in SCHEMA.names if name != "messages"]


def to_parquet(rows: Iterable[Row], extra: dict[str, list[str]] | None = None) -> bytes:
    """Rows as one Parquet file, with optional text columns beside the schema (reject reasons)."""
    rows = list(rows)
    table = pa.Table.from_pylist([_entry(row) for row in rows], schema=SCHEMA)
    for name, values in (extra or {}).items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return packed(table)


def from_parquet(data: bytes) -> Iterator[Row]:
    """Inverse of `to_parquet` (columns beside the schema are left out), a few rows in memory at a time."""
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(_ROWS_AT_ONCE, columns=_READ):
        yield from map(_row, batch.to_pylist())


def read_rows(ref: ArtifactRef, prefix: str) -> Iterator[Row]:
    """Rows of an artifact, one file's bytes in memory at a time, digests checked."""
    for _name, data in ArtifactReader(ref).stream(prefix):
        yield from from_parquet(data)


def heldout_rows(seeds: ArtifactRef, max_rows: int | None) -> list[Row]:
    """The held-out rows of a seeds artifact in the order of their ids, at most so many."""
    return sorted(read_rows(seeds, HELDOUT), key=lambda row: row.id)[:max_rows]


def holds_conversations(rows: ArtifactRef) -> bool:
    """Whether a row of an augment artifact has answers before its response; False where there is no artifact yet.

    An artifact that does not count them, as those of before, has its rows looked at.
    """
    if not rows.exists:
        return False
    if CONVERSATIONS in rows.counts:
        return rows.counts[CONVERSATIONS] > 0
    return any(row.earlier_answers for row in read_rows(rows, KEPT))


def databases_by_input(rows: Iterable[Row]) -> dict[str, str]:
    """The database that an input (a schema) belongs to; an input of several databases belongs to none for sure."""
    found: dict[str, str] = {}
    for row in rows:
        if row.database and row.input and found.setdefault(row.input, row.database) != row.database:
            found[row.input] = ""
    return found


def _entry(row: Row) -> dict[str, Any]:
    return {
        "id": row.id,
        **row.model_dump(),
        "scores": [{"of": name, "score": score} for name, score in row.scores.items()],
        "verdicts": [{"by": name, "verdict": verdict} for name, verdict in row.verdicts.items()],
        "messages": [message.model_dump() for message in row.messages],
    }


def _row(entry: dict[str, Any]) -> Row:
    entry.pop("id")
    entry["scores"] = {one["of"]: one["score"] for one in entry["scores"] or []}
    entry["verdicts"] = {one["by"]: one["verdict"] for one in entry["verdicts"] or []}
    return Row.model_validate(entry)
