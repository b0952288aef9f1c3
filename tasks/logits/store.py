"""The top-K store: rows scored by the teacher, sharded, keyed by row id.

A shard is one Parquet file (zstd). Columns: `row_id`; `ids`, the token ids that were scored (prompt and
response); `response_start`; and for each of the R response tokens `actual_logprob` (R), `topk_ids` and
`topk_logprobs` (R·K, row-major, best first), natural logarithms in float32. Shards are written whole, so a
shard that is there is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.artifacts import ArtifactReader, ArtifactRef

SHARDS = "shards/"
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("response_start", pa.int32()),
        ("actual_logprob", pa.list_(pa.float32())),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_logprobs", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True)
class ScoredRow:
    """A row as the teacher saw it. R response tokens, K kept: entry r describes token `response_start` + r."""

    row_id: str
    ids: Sequence[int]
    response_start: int
    actual_logprobs_R: np.ndarray
    topk_ids_RK: np.ndarray
    logprobs_RK: np.ndarray


def encode_shard(rows: Sequence[ScoredRow]) -> bytes:
    """Rows as one shard."""
    columns = [
        [row.row_id for row in rows],
        [list(row.ids) for row in rows],
        [row.response_start for row in rows],
        [row.actual_logprobs_R.astype(np.float32) for row in rows],
        [row.topk_ids_RK.astype(np.int32).ravel() for row in rows],
        [row.logprobs_RK.astype(np.float32).ravel() for row in rows],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def decode_shard(data: bytes) -> Iterator[ScoredRow]:
    """Inverse of `encode_shard`."""
    table = pq.read_table(pa.BufferReader(data))
    for batch in table.to_batches():
        columns = [batch.column(name) for name in _SCHEMA.names]
        for index in range(batch.num_rows):
            row_id, ids, start, actual, topk_ids, logprobs = (column[index] for column in columns)
            actual_R = actual.values.to_numpy()
            yield ScoredRow(
                row_id.as_py(),
                ids.values.to_numpy(),
                start.as_py(),
                actual_R,
                topk_ids.values.to_numpy().reshape(len(actual_R), -1),
                logprobs.values.to_numpy().reshape(len(actual_R), -1),
            )


class TopKReader:
    """Streams a store's rows, digests checked, one shard in memory at a time."""

    def __init__(self, ref: ArtifactRef):
        self._reader = ArtifactReader(ref)
        self.k: int = self._reader.record.spec["k"]
        self.tokenizer_digest: dict[str, str] = self._reader.record.spec["tokenizer"]

    def __iter__(self) -> Iterator[ScoredRow]:
        for _name, data in self._reader.stream(SHARDS):
            yield from decode_shard(data)
