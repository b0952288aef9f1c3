"""The store as Parquet columns and back, for exchange with other trainers (after DistillKit's datasets).

Columns: `input_ids`, the scored token ids, prompt and response (uint64, as DistillKit has it); `top_k_ids` and
`top_k_logprobs`, a list of K for each supervised token, best first, natural logarithms; and, optional when
reading, `row_id`, `response_start` (without it the lists describe the last tokens of the row), `actual_logprobs`
and `earlier`, the spans of tokens that the lists describe before the response's. A list describes a token of its
span, never the one after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from infra.errors import ConfigurationError
from tasks.tokens.scored import ScoredRow
from tasks.tokens.spans import Span

_ROWS_PER_GROUP = 256
_REQUIRED = ("input_ids", "top_k_ids", "top_k_logprobs")
SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("input_ids", pa.list_(pa.uint64())),
        ("response_start", pa.int32()),
        ("actual_logprobs", pa.list_(pa.float32())),
        ("top_k_ids", pa.list_(pa.list_(pa.int32()))),
        ("top_k_logprobs", pa.list_(pa.list_(pa.float32()))),
        ("earlier", pa.list_(pa.struct([(name, pa.int32()) for name in Span._fields]))),
    ]
)


def export_parquet(rows: Iterable[ScoredRow], path: Path) -> int:
    """Write rows to one file, a group of rows in memory at a time; returns how many."""
    stream, written = iter(rows), 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while group := list(islice(stream, _ROWS_PER_GROUP)):
            columns = [
                pa.array([row.row_id for row in group]),
                _lists([np.asarray(row.ids) for row in group], pa.uint64()),
                pa.array([row.response_start for row in group], pa.int32()),
                _lists([row.actual_logprobs_R for row in group], pa.float32()),
                _matrices([row.topk_ids_RK for row in group], pa.int32()),
                _matrices([row.logprobs_RK for row in group], pa.float32()),
                pa.array([[span._asdict() for span in row.earlier] for row in group], SCHEMA.field("earlier").type),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
            written += len(group)
    return written


def import_parquet(path: Path) -> Iterator[ScoredRow]:
    """Rows of such a file; lists in any order of rank, and shorter ones filled up with −inf.

    Raises ConfigurationError, naming the row, where ids and log-probs do not belong together.
    """
    file = pq.ParquetFile(path)
    if missing := [name for name in _REQUIRED if name not in file.schema_arrow.names]:
        raise ConfigurationError(f"{path} has no column {', '.join(missing)}: expected {', '.join(_REQUIRED)}")
    number = 0
    for batch in file.iter_batches(batch_size=_ROWS_PER_GROUP):
        columns = {name: batch.column(name) for name in SCHEMA.names if name in batch.schema.names}
        for index in range(batch.num_rows):
            yield _imported(f"{path}, row {number}", {name: column[index] for name, column in columns.items()})
            number += 1


def _imported(where: str, cells: dict[str, Any]) -> ScoredRow:
    ids = np.asarray(cells["input_ids"].values.to_numpy(zero_copy_only=False), dtype=np.int64)
    topk_ids_RK, ids_counts = _padded(cells["top_k_ids"], 0, np.int32)
    logprobs_RK, counts = _padded(cells["top_k_logprobs"], -np.inf, np.float32)
    if not np.array_equal(ids_counts, counts):
        raise ConfigurationError(f"{where}: top_k_ids and top_k_logprobs have lists of different lengths")
    earlier = tuple(Span(**span) for span in cells["earlier"].as_py() or ()) if "earlier" in cells else ()
    before = sum(span.stop - span.start for span in earlier)
    start = cells["response_start"].as_py() if "response_start" in cells else len(ids) - len(counts) + before
    supervised = before + len(ids) - start
    if start < 0 or supervised != len(counts):
        raise ConfigurationError(f"{where}: {len(counts)} lists do not describe {supervised} supervised tokens")
    row_id = cells["row_id"].as_py() if "row_id" in cells else hashlib.sha256(ids.tobytes()).hexdigest()[:20]
    order_RK = np.argsort(-logprobs_RK, axis=1, kind="stable")
    topk_ids_RK = np.take_along_axis(topk_ids_RK, order_RK, axis=1)
    logprobs_RK = np.take_along_axis(logprobs_RK, order_RK, axis=1)
    actual_R = np.full(len(counts), -np.inf, np.float32)
    if "actual_logprobs" in cells:
        actual_R = cells["actual_logprobs"].values.to_numpy(zero_copy_only=False).astype(np.float32)
    row = ScoredRow(row_id, ids.tolist(), start, actual_R, topk_ids_RK, logprobs_RK, earlier)
    if not row.in_order:
        raise ConfigurationError(f"{where}: the spans in `earlier` do not follow each other before the response")
    if "actual_logprobs" not in cells:  # known only where the token is among the top K
        is_actual_RK = topk_ids_RK == ids[row.places_R, None]
        actual_R[:] = np.where(is_actual_RK, logprobs_RK, -np.inf).max(axis=1, initial=-np.inf)
    return row


def _padded(cell: Any, fill: float, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """A list of lists as a matrix, filled up to the longest, and the lists' lengths."""
    lists = cell.values
    counts = np.diff(lists.offsets.to_numpy())
    widest = int(counts.max(initial=0))
    matrix = np.full((len(counts), widest), fill, dtype=dtype)
    matrix[np.arange(widest) < counts[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return matrix, counts


def _lists(arrays: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    offsets = np.cumsum([0, *map(len, arrays)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.concatenate(arrays), kind))


def _matrices(arrays: list[np.ndarray], kind: pa.DataType) -> pa.Array:
    tokens, k = sum(map(len, arrays)), arrays[0].shape[1]
    flat = pa.array(np.concatenate(arrays).ravel(), kind)
    inner = pa.ListArray.from_arrays(pa.array(np.arange(tokens + 1) * k, pa.int32()), flat)
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, arrays)]), pa.int32()), inner)
