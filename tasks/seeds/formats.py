"""Seed files in the formats that people have, recognised by content and not by name.

Alpaca (`instruction`, `input`, `output`) and Self-Instruct (`instruction`, `instances`) as JSON or JSONL,
chat messages (`messages`) as JSONL, and Parquet with either set of columns. Anything else, and any row that
does not fit, raises one ConfigurationError that names file, row and field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from infra import storage
from infra.errors import ConfigurationError
from tasks.language import language_of
from tasks.rows import Message, Row

_ACCEPTED = (
    "Alpaca ('instruction', 'input', 'output'), Self-Instruct ('instruction', 'instances') or chat rows ('messages')"
)


def read_bytes(source: str) -> bytes:
    """A local file or an s3:// object."""
    if source.startswith("s3://"):
        data = storage.get(source)
        if data is None:
            raise ConfigurationError(f"seeds: {source} does not exist")
        return data
    path = Path(source).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"seeds: there is no file {source!r}")
    return path.read_bytes()


def parse(source: str, data: bytes, *, response_required: bool) -> list[Row]:
    """All rows of a seed file. `source` is what errors call it."""
    rows: list[Row] = []
    for number, entry in _entries(source, data):
        rows.extend(_rows(f"{source}, row {number}", entry, response_required))
    if not rows:
        raise ConfigurationError(f"{source} holds no rows")
    return rows


def _entries(source: str, data: bytes) -> Iterator[tuple[int, Any]]:
    if data[:4] == b"PAR1":
        try:
            table = pq.read_table(pa.BufferReader(data))
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigurationError(f"{source} starts like a Parquet file but is not one ({error})") from error
        yield from enumerate(table.to_pylist(), 1)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{source} is neither Parquet nor UTF-8 text (byte {error.start}): save it as JSONL in UTF-8"
        ) from error
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{source}, line {error.lineno}: not valid JSON ({error.msg})") from error
        return
    number = 0
    for line_number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        number += 1
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigurationError(
                f"{source}, row {number} (line {line_number}): not valid JSON ({error.msg} at column {error.colno})"
            ) from error


def _rows(where: str, entry: Any, response_required: bool) -> Iterator[Row]:
    if not isinstance(entry, dict):
        raise ConfigurationError(f"{where}: expected an object with fields, found {type(entry).__name__}")
    if entry.get("messages") is not None:
        yield _checked(where, "messages", _from_messages(where, entry), response_required)
    elif entry.get("instances") is not None:
        yield from _from_self_instruct(where, entry, response_required)
    elif "instruction" in entry:
        row = _row(where, entry, entry, entry.get("input"), entry.get("output"))
        yield _checked(where, "output", row, response_required)
    else:
        fields = ", ".join(sorted(map(str, entry))) or "none"
        raise ConfigurationError(f"{where}: fields {fields} are none of the known formats: {_ACCEPTED}")


def _from_self_instruct(where: str, entry: dict[str, Any], response_required: bool) -> Iterator[Row]:
    instances = entry["instances"]
    if not isinstance(instances, list) or not instances:
        raise ConfigurationError(f"{where}, field 'instances': expected a non-empty list")
    if "category" not in entry and entry.get("is_classification") is True:
        entry = {**entry, "category": "classification"}
    for index, instance in enumerate(instances):
        here = f"{where}, instance {index + 1}"
        if not isinstance(instance, dict):
            raise ConfigurationError(f"{here}: expected an object with 'input' and 'output'")
        row = _row(here, entry, instance, instance.get("input"), instance.get("output"))
        yield _checked(here, "output", row, response_required)


def _from_messages(where: str, entry: dict[str, Any]) -> Row:
    turns = entry["messages"]
    if not isinstance(turns, list) or not turns:
        raise ConfigurationError(f"{where}, field 'messages': expected a non-empty list of turns")
    messages = []
    for index, turn in enumerate(turns):
        known = isinstance(turn, dict) and turn.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(turn.get("content"), str):
            raise ConfigurationError(
                f"{where}, field 'messages', turn {index + 1}: "
                "expected 'role' (system, user or assistant) and 'content' (text)"
            )
        content = _whole_text(f"{where}, field 'messages', turn {index + 1}", turn["content"])
        messages.append(Message(role=turn["role"], content=content))
    response = messages.pop().content if messages[-1].role == "assistant" else ""
    if not messages or messages[-1].role != "user":
        raise ConfigurationError(f"{where}, field 'messages': no user turn before the answer")
    row = _row(where, entry, {"instruction": messages[-1].content}, None, response)
    return row.model_copy(update={"history": tuple(messages[:-1])})


def _row(where: str, entry: dict[str, Any], part: dict[str, Any], context: Any, response: Any) -> Row:
    instruction = _text(where, "instruction", part.get("instruction", entry.get("instruction")))
    if not instruction:
        raise ConfigurationError(f"{where}, field 'instruction': is empty")
    row = Row(
        instruction=instruction,
        input=_text(where, "input", context),
        response=_text(where, "output", response),
        task_category=_text(where, "category", entry.get("category")) or "general",
        language=language_of(instruction),
        database=_text(where, "database", entry.get("database")),
    )
    return row.model_copy(update={"origin_seed": row.id})


def _text(where: str, field: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ConfigurationError(f"{where}, field {field!r}: expected text, found {type(value).__name__}")
    return _whole_text(f"{where}, field {field!r}", value).strip()


def _whole_text(where: str, value: str) -> str:
    """The text, refused where JSON's escapes left half a character in it, which no file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(value[error.start]):04x}"
        raise ConfigurationError(f"{where}: {half} at {error.start} is half of a character: write it whole") from error
    return value


def _checked(where: str, field: str, row: Row, response_required: bool) -> Row:
    if response_required and not row.response:
        raise ConfigurationError(
            f"{where}, field {field!r}: has no response, and augmentation is off: "
            "add the response or switch augmentation on"
        )
    return row
