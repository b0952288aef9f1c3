"""Tables as Parquet files in memory."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def packed(table: pa.Table) -> bytes:
    """The file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    """Inverse of `packed`."""
    return pq.read_table(pa.BufferReader(data))
