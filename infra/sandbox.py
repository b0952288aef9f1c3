"""Runs SQL that a model wrote: read-only, in memory, bounded in time, rows and size.

The database is loaded from a dump into memory, so there is no file to reach; an authorizer allows reading
and pure functions and nothing else (no ATTACH, PRAGMA, writes, extensions), and the virtual machine is
interrupted at the time limit. SQLite's memory is capped for the whole process, and it sorts in memory, so that
no query fills the machine or writes a temporary file.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections import Counter

Rows = tuple[tuple[object, ...], ...]

_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"})
_MAX_VALUE_BYTES = 100_000  # one `instr` or `replace` takes quadratic time and cannot be interrupted
_MAX_RESULT_BYTES = 16 << 20
_MAX_SQL_BYTES = 10_000  # and so bounds how many of these one query can hold
_MAX_HEAP_BYTES = 256 << 20
_INSTRUCTIONS_BETWEEN_CHECKS = 1_000
_QUOTED_OR_COMMENT = re.compile(
    r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL
)  # a doubled quotation mark makes two of one
_BRACKET_OR_ORDER = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)


class QueryError(Exception):
    """The query did not run: the message is SQLite's own, or names the limit that it hit."""


class ReadOnlyDatabase:
    """One database, loaded once, queried many times."""

    def __init__(self, dump: str, *, timeout_s: float = 2.0, max_rows: int = 10_000):
        self._timeout_s = timeout_s
        self._max_rows = max_rows
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.execute(f"PRAGMA hard_heap_limit={_MAX_HEAP_BYTES}")
        self._connection.execute("PRAGMA temp_store=MEMORY")
        self._connection.executescript(dump)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL_BYTES)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        self._connection.set_authorizer(_authorize)

    def run(self, sql: str) -> Rows:
        """The rows that one SELECT returns; QueryError for anything else. Callable from any thread."""
        with self._lock:
            return self._run(sql)

    def _run(self, sql: str) -> Rows:
        deadline = time.monotonic() + self._timeout_s
        self._connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS_BETWEEN_CHECKS)
        try:
            with contextlib.closing(self._connection.execute(sql)) as cursor:
                is_query = cursor.description is not None
                rows = self._fetched(cursor, deadline)
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError, OverflowError) as error:
            if str(error) == "interrupted":
                raise self._late() from error
            raise QueryError(str(error) or type(error).__name__) from error
        if not is_query:
            raise QueryError("is no query")
        return rows

    def _fetched(self, cursor: sqlite3.Cursor, deadline: float) -> Rows:
        rows: list[tuple[object, ...]] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if len(rows) > self._max_rows:
                raise QueryError(f"returns more than {self._max_rows} rows")
            if size > _MAX_RESULT_BYTES:
                raise QueryError(f"returns more than {_MAX_RESULT_BYTES >> 20} MiB")
            if time.monotonic() > deadline:
                raise self._late()
        return tuple(rows)

    def _late(self) -> QueryError:
        return QueryError(f"took longer than {self._timeout_s:g} s")

    def same_result(self, reference: str, candidate: str) -> bool:
        """Execution accuracy: does the candidate return what the reference returns?

        Row order counts where the reference itself orders its rows (and not a part of it); otherwise rows compare as
        multisets. A candidate that does not run is wrong; a reference that does not run raises QueryError.
        """
        expected = self.run(reference)
        try:
            actual = self.run(candidate)
        except QueryError:
            return False
        if orders_its_rows(reference):
            return expected == actual
        return Counter(expected) == Counter(actual)


def orders_its_rows(sql: str) -> bool:
    """Whether a query's outermost SELECT has an ORDER BY: no sub-query, window, aggregate, text or comment."""
    depth = 0
    for found in _BRACKET_OR_ORDER.finditer(_QUOTED_OR_COMMENT.sub(" ", sql)):
        if found.group() in "()":
            depth += 1 if found.group() == "(" else -1
        elif depth == 0:
            return True
    return False


def _authorize(action: int, _first: str | None, second: str | None, *_rest: str | None) -> int:
    if action not in _READING:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK
