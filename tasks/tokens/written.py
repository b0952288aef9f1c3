"""Answers that a student wrote: rows for people and programs, each with its token ids exactly as they were drawn.

A text may be cut into tokens in several ways, and a model rarely writes the tokenizer's own: what it is to learn from
is what it wrote, so nothing here is tokenised again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from infra.store.parquet import packed, unpacked
from tasks.models import ModelSource
from tasks.rows import KEPT, Row, from_parquet, to_parquet
from tasks.tokens.rows import TokenisedRow, tokenizer_digests

KIND = "rollout"
EXECUTION = "execution"  # among a row's verdicts: whether the answer gives the right result
RIGHT, WRONG = "right", "wrong"
_COLUMNS = {"written_id": pa.string(), "token_ids": pa.list_(pa.int32()), "response_start": pa.int32()}
_ROWS_AT_ONCE = 200


@dataclass(frozen=True)
class Written:
    """An answer: the row that was asked, with the answer for its response, and the ids of prompt and answer.

    `tokens.row_id` is the answer's own: two answers of the same text may differ in their tokens.
    """

    row: Row
    tokens: TokenisedRow

    @property
    def is_wrong(self) -> bool:
        """Whether it was run, and gives another result than it should."""
        return self.row.verdicts.get(EXECUTION) == WRONG


def is_written(rows: ArtifactRef) -> bool:
    """Whether an artifact of rows holds a student's answers."""
    return rows.kind == KIND


def check_same_tokens(rows: ArtifactRef, teacher: ModelSource) -> None:
    """Raises ConfigurationError where a student's answers are not in the teacher's tokens."""
    if tokenizer_digests(teacher)["vocabulary"] != facts_of(rows)["tokenizer"]["vocabulary"]:
        raise ConfigurationError(other_tokens(teacher))


def other_tokens(teacher: ModelSource) -> str:
    """Why a teacher with another tokenizer cannot score a student's answers."""
    return (
        f"{teacher.name} has another tokenizer than the student, whose answers are scored as the very tokens that it "
        "wrote: choose a teacher that shares the student's, or set rounds.rounds=0"
    )


def written_parquet(answers: Sequence[Written], marks: dict[str, list[str]]) -> bytes:
    """A Parquet file that `tasks.rows` reads too; `marks` are columns of text beside it (whose, of which round)."""
    table = unpacked(to_parquet([answer.row for answer in answers], marks))
    tokens = [answer.tokens for answer in answers]
    values = [one.row_id for one in tokens], [list(one.ids) for one in tokens], [one.response_start for one in tokens]
    for (name, kind), column in zip(_COLUMNS.items(), values, strict=True):
        table = table.append_column(name, pa.array(column, kind))
    return packed(table)


def read_written(ref: ArtifactRef) -> Iterator[Written]:
    """The answers of an artifact, one file's bytes in memory at a time, digests checked."""
    for _name, data in ArtifactReader(ref).stream(KEPT):
        batches = pq.ParquetFile(pa.BufferReader(data)).iter_batches(_ROWS_AT_ONCE, columns=list(_COLUMNS))
        entries = (entry for batch in batches for entry in batch.to_pylist())
        for row, entry in zip(from_parquet(data), entries, strict=True):
            yield Written(row, TokenisedRow(entry["written_id"], entry["token_ids"], entry["response_start"]))
