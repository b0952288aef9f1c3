"""Augmented rows in the formats of other trainers, one row in memory at a time.

`alpaca` and `sharegpt` are those of LLaMA-Factory and axolotl, `messages` that of TRL and of provider fine-tuning.
All can be read back as seeds, as the same rows, and load with `datasets.load_dataset("json", …)`.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from infra.files import whole
from infra.store.artifacts import ArtifactReader, ArtifactRef
from infra.store.parquet import unpacked
from tasks.augment.settings import RowFormat, RowTable
from tasks.rows import FAILED, KEPT, LAST_ALONE, REJECTED, SCHEMA, Message, Row, read_rows
from tasks.seeds.turns import history_of, pairs_of

_PREFIX = {"kept": KEPT, "rejected": REJECTED, "failed": FAILED}
_SPEAKER = {"system": "system", "user": "human", "assistant": "gpt"}


def export(ref: ArtifactRef, to: Path, form: RowFormat = "alpaca", table: RowTable = "kept") -> int:
    """Write a table of an augment artifact to a file, whole or not at all; the number of rows."""
    with whole(to) as partial:
        return (_to_parquet if form == "parquet" else _to_jsonl)(ref, _PREFIX[table], partial, form)


def alpaca(row: Row) -> dict[str, Any]:
    """`instruction`, `input`, `output`; earlier turns as LLaMA-Factory's `system` and `history` of pairs.

    Turns that pairs cannot say (a system message between others) are in `messages` too.
    """
    system, pairs = pairs_of(row.history)
    whole = history_of("", pairs, Counter()) if pairs else []
    if system.strip():
        whole.insert(0, Message(role="system", content=system))
    return {
        "instruction": row.instruction,
        "input": row.input,
        "output": row.response,
        "system": system,
        "history": pairs,
        **({} if tuple(whole) == row.history else {"messages": plain(row.messages)}),
        **about(row),
    }


def sharegpt(row: Row) -> dict[str, Any]:
    """`conversations` of `from` (system, human, gpt) and `value`; `input` is the end of the last question."""
    turns = [{"from": _SPEAKER[message.role], "value": message.content} for message in row.messages]
    return {"conversations": _weighed(row, turns), "input": row.input, **about(row)}


def messages(row: Row) -> dict[str, Any]:
    """`messages` of `role` and `content`; `input` is the end of the last question."""
    return {"messages": _weighed(row, plain(row.messages)), "input": row.input, **about(row)}


def _weighed(row: Row, turns: list[dict[str, str]]) -> list[dict[str, Any]]:
    """The turns; those that are not to be trained on with OpenAI's weight 0."""
    if LAST_ALONE not in row.verdicts:
        return [*turns]
    ours = [message.is_answer for message in row.history]
    return [{**turn, "weight": 0} if skip else turn for turn, skip in zip(turns, [*ours, False, False], strict=True)]


def plain(turns: Iterable[Message]) -> list[dict[str, str]]:
    """Turns as JSON holds them."""
    return [message.model_dump() for message in turns]


_ENTRIES: dict[RowFormat, Callable[[Row], dict[str, Any]]] = {
    "alpaca": alpaca,
    "sharegpt": sharegpt,
    "messages": messages,
}


def about(row: Row) -> dict[str, Any]:
    """What tells a row apart, in every form."""
    return {"id": row.id, "category": row.task_category, "language": row.language, "database": row.database}


def _to_jsonl(ref: ArtifactRef, prefix: str, path: Path, form: RowFormat) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in read_rows(ref, prefix):
            stream.write(json.dumps(_ENTRIES[form](row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _to_parquet(ref: ArtifactRef, prefix: str, path: Path, _form: RowFormat) -> int:
    """All columns, with agent and reason of what was left out."""
    tables = (unpacked(data) for _name, data in ArtifactReader(ref).stream(prefix))
    first = next(tables, SCHEMA.empty_table())
    count = 0
    with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table)
            count += table.num_rows
    return count
