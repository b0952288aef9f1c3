"""Run SQL of unknown quality on a demo database, read-only, and compare two queries by what they return.

The demo LLM server's verification agent and the demo's build use it. (The pipeline's own metric has its own
sandbox.)
"""

import sqlite3
from collections import Counter
from functools import cache

from infra.demo.schemas import Database, dump_sql

_STEP_LIMIT = 200  # of 1,000 virtual machine steps each: ample for 30-row tables, an end for a runaway query.
_ROW_LIMIT = 5_000
_READ_ACTIONS = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION})

Rows = tuple[tuple[object, ...], ...]


def _allow_reading_only(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _READ_ACTIONS else sqlite3.SQLITE_DENY


@cache
def _connection(database: Database) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(dump_sql(database))
    connection.set_authorizer(_allow_reading_only)
    return connection


def run_sql(database: Database, sql: str) -> Rows:
    """The rows that `sql` returns. Raises sqlite3.Error if it cannot run, writes, or runs away."""
    connection = _connection(database)
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return int(ticks > _STEP_LIMIT)

    connection.set_progress_handler(tick, 1_000)
    return tuple(connection.execute(sql).fetchmany(_ROW_LIMIT))


def rows_match(expected: Rows, actual: Rows, *, ordered: bool) -> bool:
    """Equal as lists when the request asks for an order, as multisets otherwise; 5 and 5.0 are the same value."""
    return expected == actual if ordered else Counter(expected) == Counter(actual)


def same_result(database: Database, reference_sql: str, sql: str) -> bool:
    """Does `sql` run and return what the reference returns? The order counts if the reference orders its rows."""
    try:
        actual = run_sql(database, sql)
    except (sqlite3.Error, sqlite3.Warning, ValueError):
        return False
    return rows_match(run_sql(database, reference_sql), actual, ordered="order by" in reference_sql.lower())
