"""The process in which SQL runs that a model wrote: one database in memory, read-only, bounded (`infra.sandbox.sql`).

A line of JSON in, a line out. First {"dump", "timeout_s", "max_rows"}, answered by {} or {"error"}; then a query a
line, answered by {"rows"} or {"error"}. Ends when nobody writes to it any more. Standard library only: it starts in
milliseconds, and may be killed at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sqlite3
import sys
import threading
import time
from typing import Any

_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_FORBIDDEN_FUNCTIONS = frozenset({"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer"})
_MAX_VALUE_BYTES = 100_000  # one `instr` or `replace` takes quadratic time and cannot be interrupted
_MAX_RESULT_BYTES = 16 << 20
_MAX_SQL_BYTES = 10_000  # and so bounds how many of these one query can hold
_MAX_HEAP_BYTES = 256 << 20
_MAX_MEMORY_BYTES = 1 << 30  # of the whole process
_INSTRUCTIONS_BETWEEN_CHECKS = 1_000


def main() -> None:
    threading.Thread(target=_end_with, args=[os.getppid()], daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = json.loads(sys.stdin.readline())
    try:
        connection = opened(setup["dump"])
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
        _say({"error": str(error) or type(error).__name__})
        return
    _say({})
    for line in sys.stdin:
        _say(answer(connection, json.loads(line), setup["timeout_s"], setup["max_rows"]))


def opened(dump: str) -> sqlite3.Connection:
    """The database, which lets nothing through but reading."""
    connection = sqlite3.connect(":memory:")
    connection.execute(f"PRAGMA hard_heap_limit={_MAX_HEAP_BYTES}")
    connection.execute("PRAGMA temp_store=MEMORY")  # it sorts in memory: no query writes a temporary file
    connection.executescript(dump)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_VALUE_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, _MAX_SQL_BYTES)
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.set_authorizer(_authorize)
    return connection


def answer(connection: sqlite3.Connection, sql: str, timeout_s: float, max_rows: int) -> dict[str, Any]:
    """Rows of one SELECT, or why there are none."""
    deadline = time.monotonic() + timeout_s
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _INSTRUCTIONS_BETWEEN_CHECKS)
    late = {"error": f"took longer than {timeout_s:g} s"}
    rows: list[list[Any]] = []
    size = 0
    try:
        with contextlib.closing(connection.execute(sql)) as cursor:
            if cursor.description is None:
                return {"error": "is no query"}
            for row in cursor:
                rows.append([_plain(value) for value in row])
                size += sum(len(value) for value in row if isinstance(value, str | bytes))
                if len(rows) > max_rows:
                    return {"error": f"returns more than {max_rows} rows"}
                if size > _MAX_RESULT_BYTES:
                    return {"error": f"returns more than {_MAX_RESULT_BYTES >> 20} MiB"}
                if time.monotonic() > deadline:
                    return late
    except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError, OverflowError) as error:
        return late if str(error) == "interrupted" else {"error": str(error) or type(error).__name__}
    return {"rows": rows}


def _plain(value: Any) -> Any:
    """As JSON has it: bytes as an object with their hexadecimal digits."""
    return {"hex": value.hex()} if isinstance(value, bytes) else value


def _authorize(action: int, _first: str | None, second: str | None, *_rest: str | None) -> int:
    if action not in _READING:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK


def _say(reply: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()


def _end_with(parent: int) -> None:
    """A query runs on while nobody reads: end when the process that asked is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
