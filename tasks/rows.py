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
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from infra.store.artifacts import ArtifactReader, ArtifactRef
from infra.store.parquet import packed
from tasks.text.categories import UNNAMED

TRAIN, HELDOUT = "train/", "heldout/"  # where a seeds artifact keeps its rows
KEPT, REJECTED, FAILED = "kept/", "rejected/", "failed/"  # and an augment artifact
PASSAGES = "passages.u64"  # of an artifact that says what no training row may hold
DIFFICULTY = "difficulty"  # among the verdicts: how hard Rewriting finds a question that takes reasoning
DIFFICULTIES = ("easy", "medium", "hard")
BEFORE_REWRITING = "before rewriting"  # among the verdicts: the response that was corrected
Role = Literal["system", "user", "assistant", "tool"]
Turns = Literal["all", "last"]  # which of a conversation's answers are trained on
LAST_ALONE = "last answer alone"  # among the verdicts: why the answers before the response are not trained on
CONVERSATIONS = "conversations"  # a count of an augment artifact: rows with answers before their response
WITH_TOOLS = "with_tools"  # a count: rows that use tools; not there where no row does


class Function(BaseModel):
    """Which function is called with what: `arguments` are a JSON object, as text."""

    model_config = ConfigDict(frozen=True)

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool as OpenAI writes it; `id` is what its result names it by."""

    model_config = ConfigDict(frozen=True)

    id: str
    type: Literal["function"] = "function"
    function: Function


class Message(BaseModel):
    """One turn of a conversation: what is said in it, and the tools that an assistant calls.

    The `content` of a `tool` is the result of the call `tool_call_id` of the function `name`.
    """

    model_config = ConfigDict(frozen=True)

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""

    @model_serializer(mode="wrap")
    def _as_others_write_it(self, serialised: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is not there: templates ask whether a turn has `tool_calls`, and ids are of what is."""
        fields: dict[str, Any] = serialised(self)
        return {name: value for name, value in fields.items() if value or name in ("role", "content")}

    @property
    def is_answer(self) -> bool:
        """Whether it can be trained on: an assistant's, with something in it."""
        return self.role == "assistant" and bool(self.content.strip() or self.tool_calls)

    @property
    def texts(self) -> Iterator[str]:
        """What is said in it, and what tools are called with."""
        yield self.content
        for call in self.tool_calls:
            yield call.function.name
            yield call.function.arguments


class Row(BaseModel):
    """An instruction with its response, and where both come from.

    `scores` are Selection's (1 to 10); `verdicts` hold, by agent or check, the reason that it gave, and where the
    preservation check calls the rewritten response the right one, the response `BEFORE_REWRITING`.

    `tools` are the definitions of tools that a model may call, a JSON list in OpenAI's form; `tool_turns` the calls and
    results between the question and the response; `tool_calls` those that the response makes itself.
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
    tools: str = ""
    tool_turns: tuple[Message, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def id(self) -> str:
        """Hash of what a model sees of the row."""
        seen: list[Any] = [self.instruction, self.input, self.response, [m.model_dump() for m in self.history]]
        if self.tools or self.tool_turns or self.tool_calls:
            calls = [call.model_dump() for call in self.tool_calls]
            seen += [self.tools, [message.model_dump() for message in self.tool_turns], calls]
        return hashlib.sha256(json.dumps(seen, ensure_ascii=True).encode()).hexdigest()[:20]

    @property
    def prompt(self) -> list[Message]:
        """Everything before the response."""
        content = f"{self.instruction}\n\n{self.input}" if self.input else self.instruction
        return [*self.history, Message(role="user", content=content), *self.tool_turns]

    @property
    def messages(self) -> list[Message]:
        return [*self.prompt, Message(role="assistant", content=self.response, tool_calls=self.tool_calls)]

    @property
    def is_answered(self) -> bool:
        return bool(self.response or self.tool_calls)

    @property
    def uses_tools(self) -> bool:
        """Whether tools are defined or called in it."""
        return bool(self.tools or self.tool_calls) or any(
            message.role == "tool" or message.tool_calls for message in (*self.history, *self.tool_turns)
        )

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """The tools that a model may call, as chat templates take them."""
        return json.loads(self.tools) if self.tools else []

    @property
    def response_text(self) -> str:
        """The response in words: the calls that it makes as JSON, one a line."""
        called = (call.function for call in self.tool_calls)
        calls = [f'{{"name": {json.dumps(one.name)}, "arguments": {one.arguments}}}' for one in called]
        return "\n".join([self.response, *calls] if self.response else calls)

    @property
    def earlier_answers(self) -> list[int]:
        """Places in the conversation of the answers before the response that may be trained on."""
        if LAST_ALONE in self.verdicts:
            return []
        return [place for place, message in enumerate(self.prompt) if message.is_answer]


def _schema(message: pa.DataType, tools: Iterable[tuple[str, pa.DataType]] = ()) -> pa.Schema:
    return pa.schema(
        [
            ("id", pa.string()),
            ("instruction", pa.string()),
            ("input", pa.string()),
            ("response", pa.string()),
            ("history", pa.list_(message)),
            ("task_category", pa.string()),
            ("language", pa.string()),
            ("origin_seed", pa.string()),
            ("lineage", pa.list_(pa.string())),
            ("scores", pa.list_(pa.struct([("of", pa.string()), ("score", pa.float64())]))),  # `datasets` reads no maps
            ("verdicts", pa.list_(pa.struct([("by", pa.string()), ("verdict", pa.string())]))),
            ("database", pa.string()),
            *tools,
            ("messages", pa.list_(message)),  # what other programs train on; derived, not read back
        ]
    )


_TEXTS = [("role", pa.string()), ("content", pa.string())]
_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
_TURN = pa.struct([*_TEXTS, ("tool_calls", pa.list_(_CALL)), ("tool_call_id", pa.string()), ("name", pa.string())])
SCHEMA = _schema(pa.struct(_TEXTS))
TOOL_SCHEMA = _schema(
    _TURN, [("tools", pa.string()), ("tool_turns", pa.list_(_TURN)), ("tool_calls", pa.list_(_CALL))]
)  # of files in which a row uses tools
_ROWS_AT_ONCE = 200
_READ = [name for name in TOOL_SCHEMA.names if name != "messages"]


def to_parquet(rows: Iterable[Row], extra: dict[str, list[str]] | None = None) -> bytes:
    """Rows as one Parquet file, with optional text columns beside the schema (reject reasons)."""
    rows = list(rows)
    schema = TOOL_SCHEMA if any(row.uses_tools for row in rows) else SCHEMA
    table = pa.Table.from_pylist([_entry(row) for row in rows], schema=schema)
    for name, values in (extra or {}).items():
        table = table.append_column(name, pa.array(values, pa.string()))
    return packed(table)


def from_parquet(data: bytes) -> Iterator[Row]:
    """Inverse of `to_parquet` (columns beside the schema are left out), a few rows in memory at a time."""
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(_ROWS_AT_ONCE, columns=_READ):
        yield from rows_of(batch)


def rows_of(table: pa.Table | pa.RecordBatch) -> Iterator[Row]:
    """The rows of a table; columns beside the schema are left out."""
    return map(_row, table.to_pylist())


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
    entry = without_nulls(entry)
    entry.pop("id")
    entry["scores"] = {one["of"]: one["score"] for one in entry.get("scores", [])}
    entry["verdicts"] = {one["by"]: one["verdict"] for one in entry.get("verdicts", [])}
    for name in ("history", "tool_turns"):
        entry[name] = list(map(without_nulls, entry.get(name, [])))
    return Row.model_validate(entry)


def without_nulls(entry: dict[str, Any]) -> dict[str, Any]:
    """A row or turn as Parquet gives it, with the fields that it has."""
    return {name: value for name, value in entry.items() if value is not None}
