"""Augmented rows in the formats of other trainers, one row in memory at a time.

`alpaca` and `sharegpt` are those of LLaMA-Factory and axolotl, `messages` that of TRL and of provider fine-tuning.
All can be read back as seeds, as the same rows, and load with `datasets.load_dataset("json", …)`. Alpaca cannot say
tools: rows that use some are left out of it and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from infra.files import whole
from infra.store.artifacts import ArtifactReader, ArtifactRef
from infra.store.parquet import unpacked
from tasks.augment.settings import RowFormat, RowTable
from tasks.rows import FAILED, KEPT, LAST_ALONE, REJECTED, SCHEMA, Message, Row, ToolCall, read_rows
from tasks.seeds.turns import history_of, pairs_of

_PREFIX = {"kept": KEPT, "rejected": REJECTED, "failed": FAILED}
_SPEAKER = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


class ExportedRows(NamedTuple):
    """How many rows were written, and how many use tools and were left out, since the form cannot say them."""

    rows: int
    with_tools: int = 0


def export(ref: ArtifactRef, to: Path, form: RowFormat = "alpaca", table: RowTable = "kept") -> ExportedRows:
    """Write a table of an augment artifact to a file, whole or not at all."""
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
    turns = _weighed(row, [_spoken(message) for message in row.messages])
    return {"conversations": turns, "input": row.input, **({"tools": row.tools} if row.tools else {}), **about(row)}


def _spoken(message: Message) -> dict[str, Any]:
    """A turn as LLaMA-Factory writes it: a call's JSON as `function_call`, with what is said beside it, if anything."""
    if message.tool_calls:
        calls = [_called(call) for call in message.tool_calls]
        value = f"[{', '.join(calls)}]" if len(calls) > 1 else calls[0]
        beside = {"content": message.content} if message.content else {}
        return {"from": "function_call", "value": value, **beside}
    call = {"tool_call_id": message.tool_call_id} if message.role == "tool" else {}
    return {"from": _SPEAKER[message.role], "value": message.content, **call}


def _called(call: ToolCall) -> str:
    name = json.dumps(call.function.name, ensure_ascii=False)
    return f'{{"name": {name}, "arguments": {call.function.arguments}}}'


def messages(row: Row) -> dict[str, Any]:
    """`messages` of `role` and `content`, and `tools` where there are some; `input` is the end of the last question."""
    turns = _weighed(row, plain(row.messages))
    return {"messages": turns, "input": row.input, **({"tools": row.definitions} if row.tools else {}), **about(row)}


def _weighed(row: Row, turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The turns; those that are not to be trained on with OpenAI's weight 0."""
    if LAST_ALONE not in row.verdicts:
        return turns
    ours = [message.is_answer for message in row.prompt]
    return [{**turn, "weight": 0} if skip else turn for turn, skip in zip(turns, [*ours, False], strict=True)]


def plain(turns: Iterable[Message]) -> list[dict[str, Any]]:
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


def _to_jsonl(ref: ArtifactRef, prefix: str, path: Path, form: RowFormat) -> ExportedRows:
    count = left_out = 0
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        for row in read_rows(ref, prefix):
            if form == "alpaca" and row.uses_tools:
                left_out += 1
                continue
            stream.write(json.dumps(_ENTRIES[form](row), ensure_ascii=False) + "\n")
            count += 1
    return ExportedRows(count, left_out)


def _to_parquet(ref: ArtifactRef, prefix: str, path: Path, _form: RowFormat) -> ExportedRows:
    """All columns, with agent and reason of what was left out; those of tools where a row uses some."""
    schemas = [pq.read_schema(pa.BufferReader(data)) for _name, data in ArtifactReader(ref).stream(prefix)]
    first = next((schema for schema in schemas if "tools" in schema.names), next(iter(schemas), SCHEMA))
    count = 0
    with pq.ParquetWriter(path, first, compression="zstd") as writer:
        for _name, data in ArtifactReader(ref).stream(prefix):
            table = unpacked(data)
            if table.schema != first:
                table = pa.Table.from_pylist(table.to_pylist(), schema=first)
            writer.write_table(table)
            count += table.num_rows
    return ExportedRows(count)
