"""Benchmark files, from a path, storage or the hub, and their fields: what is no such field is told by its place."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from infra.errors import ConfigurationError
from tasks.seeds import sources
from tasks.shipped import DATA


def digest(source: str | None) -> str | None:
    """sha256 of a source's bytes: what goes into a fingerprint."""
    return hashlib.sha256(_bytes(source)).hexdigest() if source else None


def entries(source: str, what: str = "questions") -> list[tuple[str, dict[str, Any]]]:
    """A file's objects, each with where it stands; `what` they are."""
    text = whole_text(source)
    try:
        found = json.loads(text) if text.lstrip().startswith("[") else _json_lines(text)
    except RecursionError as error:
        raise ConfigurationError(f"{source} is nested too deeply to hold {what}") from error
    except ValueError as error:
        raise ConfigurationError(f"{source} is neither a JSON list nor JSON lines: {error}") from error
    if not found or not all(isinstance(entry, dict) for entry in found):
        raise ConfigurationError(f"{source} holds no {what}: expected JSON objects")
    return [(f"{source}, entry {place}", entry) for place, entry in enumerate(found, 1)]


def _json_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]  # splitlines() splits inside strings


def needed(where: str, entry: Mapping[str, Any], field: str) -> Any:
    """A field's value; ConfigurationError where there is none."""
    if is_missing(value := entry.get(field)):
        raise ConfigurationError(f"{where}: no `{field}`, which this benchmark needs")
    return value


def is_missing(value: Any) -> bool:
    """Whether it is null, or NaN, which pandas writes for null."""
    return value is None or value != value


def text_of(where: str, entry: Mapping[str, Any], field: str, *, or_empty: bool = False) -> str:
    """A field that is one text; ConfigurationError where it is none."""
    value = needed(where, entry, field)
    if not isinstance(value, str) or not (value.strip() or or_empty):
        raise ConfigurationError(f"{where}: `{field}` should be a text, not {str(value)[:50]!r}")
    return value


def texts_of(where: str, entry: Mapping[str, Any], field: str, *, or_empty: bool = False) -> tuple[str, ...]:
    """A list of texts, itself or as JSON in a text; one text is a list of one."""
    value = listed(needed(where, entry, field))
    texts = tuple("" if or_empty and text is None else text for text in (value if isinstance(value, list) else [value]))
    if not (texts or or_empty) or not all(isinstance(text, str) and (text.strip() or or_empty) for text in texts):
        raise ConfigurationError(f"{where}: `{field}` should be a list of texts, not {str(value)[:50]!r}")
    return texts


def listed(value: Any) -> Any:
    """The list that a text is as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def whole_text(source: str) -> str:
    """A file's text."""
    try:
        return _bytes(source).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{source} is no UTF-8 text: {error.reason} at byte {error.start}") from error


def _bytes(source: str) -> bytes:
    if source in DATA:
        return DATA[source].heldout.read_bytes()
    if source.startswith(sources.HUB) and source.count("/") < 2:
        raise ConfigurationError(f"{source!r} names no file of the hub: expected hub:OWNER/DATASET/FILE")
    files = sources.find(source, "benchmarks").files
    if len(files) != 1:
        raise ConfigurationError(f"{source} is {len(files)} files: name one of them")
    with sources.local(files[0], "benchmarks") as path:
        return path.read_bytes()
