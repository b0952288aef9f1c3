"""Parquet by batches, in memory that does not follow from what the file claims.

A file of a megabyte can unpack to gigabytes: one text for every row, a page of zeros. So texts stay in their
dictionaries until a few rows at a time become Python's, and what no data for training looks like is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.errors import ConfigurationError

MAGIC = b"PAR1"
MOST_UNPACKED = 200  # times the file's size; text packs to a third or a tenth
LEAST_REFUSED = 2**28  # bytes: what unpacks to less is read, however often it repeats itself
LARGEST_ROW = 2**24  # bytes
_ROWS_AT_ONCE = 200
_BYTES_AT_ONCE = 2**26
_VALUE = 50  # bytes: what Python takes for the smallest value


def rows(source: str, stream: BinaryIO, columns: Collection[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbered rows with those of the `columns` that the file has.

    Raises ConfigurationError where the file is damaged or no Parquet, unpacks to more than `MOST_UNPACKED` times its
    size, or holds a value that is no text and no other of Python's.
    """
    number = 0
    try:
        file = _opened(stream, columns)
        size, unpacked = stream.seek(0, 2), 0
        wanted = [name for name in file.schema_arrow.names if name in columns]
        for batch in _batches(file, _checked(source, file, size, wanted), wanted):
            sizes = _sizes(pa.StructArray.from_arrays(batch.columns, wanted))
            unpacked += int(sizes.sum())
            if unpacked > max(LEAST_REFUSED, MOST_UNPACKED * size):
                raise _too_large(source, f"its first {number + len(sizes):,} rows")
            if len(sizes) and sizes.max() > LARGEST_ROW:
                row = number + 1 + int(sizes.argmax())
                raise ConfigurationError(f"{source}, row {row}: is larger than {LARGEST_ROW >> 20} MiB")
            step = max(1, int(_BYTES_AT_ONCE // max(sizes.max(initial=0), 1)))
            for start in range(0, batch.num_rows, step):
                for entry in _plain(source, batch.slice(start, step), number):
                    number += 1
                    yield number, entry
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from error


def _batches(file: pq.ParquetFile, rows: int, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    """Each row group by itself: Arrow joins no dictionaries inside of lists."""
    for group in range(file.metadata.num_row_groups):
        yield from file.iter_batches(rows, row_groups=[group], columns=wanted)


def filled(source: str, stream: BinaryIO) -> dict[str, int]:
    """The columns, each with how many rows have something there (all rows where the file does not say)."""
    try:
        file = pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(source, error) from error
    names = file.schema_arrow.names
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ConfigurationError(f"{source} has two columns named {twice[0]!r}: rename one")
    by_column = dict.fromkeys(names, 0)
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        found: dict[str, int] = {}
        for column in map(group.column, range(group.num_columns)):
            name = str(_name(column, names))
            known = column.path_in_schema == name and column.statistics is not None and column.statistics.has_null_count
            rows = group.num_rows - column.statistics.null_count if known else group.num_rows
            found[name] = max(found.get(name, 0), rows)
        for name, rows in found.items():
            by_column[name] += rows
    stream.seek(0)
    return by_column


def _opened(stream: BinaryIO, columns: Collection[str]) -> pq.ParquetFile:
    """The file with all texts that are read left in dictionaries."""
    schema = pq.ParquetFile(stream).schema
    paths = [schema.column(index).path for index in range(len(schema))]
    stream.seek(0)
    texts = [path for path in paths if path.split(".")[0] in columns]
    return pq.ParquetFile(stream, read_dictionary=texts, buffer_size=2**20, pre_buffer=False)


def _checked(source: str, file: pq.ParquetFile, size: int, wanted: Collection[str]) -> int:
    """How many rows may be read at once; refuses what would take memory before a batch of it can be looked at."""
    largest, values = 1.0, Counter[str]()
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        columns = [column for column in map(group.column, range(group.num_columns)) if _name(column, wanted)]
        largest = max(largest, sum(column.total_uncompressed_size for column in columns) / max(group.num_rows, 1))
        for column in columns:
            packed = max(column.total_compressed_size, 1)
            values[column.path_in_schema] += column.num_values
            is_bomb = column.total_uncompressed_size > max(LEAST_REFUSED, MOST_UNPACKED * packed)
            if is_bomb or _VALUE * values[column.path_in_schema] > max(LEAST_REFUSED, MOST_UNPACKED * size):
                raise _too_large(source, f"its column {_name(column, wanted)!r}")
    return max(1, min(_ROWS_AT_ONCE, int(_BYTES_AT_ONCE / largest)))


def _name(column: Any, names: Collection[str]) -> str | None:
    """The one of the file's columns that this leaf is a part of."""
    path = column.path_in_schema
    return next((name for name in names if path == name or path.startswith(f"{name}.")), None)


def _damaged(source: str, error: Exception) -> ConfigurationError:
    why = " ".join(str(error).split())[:200]
    return ConfigurationError(f"{source} starts like a Parquet file but is not one, or is damaged ({why})")


def _too_large(source: str, part: str) -> ConfigurationError:
    return ConfigurationError(
        f"{source} unpacks to more than {MOST_UNPACKED} times its size and {LEAST_REFUSED >> 20} MiB ({part}): "
        "it repeats itself too often to be rows to train on"
    )


def _sizes(array: pa.Array) -> np.ndarray:
    """About what each value takes once it is unpacked, in bytes."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not len(array.dictionary):
            return np.full(len(array), _VALUE)
        return _sizes(array.dictionary)[array.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    if pa.types.is_struct(kind):
        return sum(map(_sizes, array.flatten()), np.full(len(array), _VALUE))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.concatenate([[0], np.cumsum(_sizes(array.values))])[np.asarray(array.offsets)]
        return np.diff(ends) + _VALUE
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        return pc.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64) + _VALUE
    return np.full(len(array), _VALUE)


def _plain(source: str, batch: pa.RecordBatch, number: int) -> list[dict[str, Any]]:
    """Rows as Python's own values; the first one of them is row `number` + 1."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # a UnicodeDecodeError is a ValueError
        if batch.num_rows > 1:
            each = ((batch.slice(place, 1), number + place) for place in range(batch.num_rows))
            return [row for one, before in each for row in _plain(source, one, before)]
        column = next(name for name in batch.schema.names if not _is_readable(batch[name]))
        why = "no UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"a value that Python cannot hold ({error})"
        raise ConfigurationError(f"{source}, row {number + 1}, field {column!r}: holds {why}") from error
    nested = [field.name for field in batch.schema if pa.types.is_nested(field.type)]
    return [row | {name: _without_nulls(row[name]) for name in nested} for row in rows] if nested else rows


def _without_nulls(value: Any) -> Any:
    """Without the fields that an object lacks: in Parquet every object has those of all others."""
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _is_readable(column: pa.Array) -> bool:
    try:
        column.to_pylist()
    except (ValueError, OverflowError):
        return False
    return True
