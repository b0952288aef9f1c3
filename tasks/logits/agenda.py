"""The shards that are to be scored, as files of this machine: rows are tokenised once, however many engines there are.

An engine reads a shard's rows when it is at it, so none holds them all.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tasks.logits.shards import Shard
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.spans import Span


def write_agenda(folder: Path, shards: Sequence[Shard]) -> None:
    """A file a shard, named as it."""
    folder.mkdir()
    for shard in shards:
        rows = shard.rows
        np.savez(
            _path(folder, shard.name),
            row_ids=np.array([row.row_id for row in rows]),
            ids=np.concatenate([np.asarray(row.ids, np.int32) for row in rows]),
            ends=np.cumsum([len(row.ids) for row in rows]),
            response_starts=np.array([row.response_start for row in rows]),
            earlier=np.array([span for row in rows for span in row.earlier], np.int32).reshape(-1, len(Span._fields)),
            earlier_ends=np.cumsum([len(row.earlier) for row in rows]),
        )


def rows_of(folder: Path, name: str) -> list[TokenisedRow]:
    """A shard's rows as they were tokenised, without the count of their answers that are not supervised."""
    with np.load(_path(folder, name)) as file:
        ids = np.split(file["ids"], file["ends"][:-1])
        earlier = np.split(file["earlier"], file["earlier_ends"][:-1])
        row_ids, starts = file["row_ids"].tolist(), file["response_starts"].tolist()
    return [
        TokenisedRow(row_id, array("i", ids_T.tobytes()), start, tuple(Span(*span) for span in spans.tolist()))
        for row_id, ids_T, start, spans in zip(row_ids, ids, starts, earlier, strict=True)
    ]


def _path(folder: Path, name: str) -> Path:
    return folder / Path(name).with_suffix(".npz").name
