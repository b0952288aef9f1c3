"""SQL from a model: read-only, bounded, compared by what it returns."""

import time

import pytest

from infra.sandbox import QueryError, ReadOnlyDatabase

DUMP = "CREATE TABLE t(id INTEGER, name TEXT); INSERT INTO t VALUES (1,'a'),(2,'b'),(3,'c');"


@pytest.fixture(scope="module")
def database() -> ReadOnlyDatabase:
    return ReadOnlyDatabase(DUMP, timeout_s=0.5, max_rows=100)


def test_a_select_returns_its_rows(database: ReadOnlyDatabase) -> None:
    assert database.run("SELECT id FROM t WHERE name > 'a' ORDER BY id") == ((2,), (3,))


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE t",
        "DELETE FROM t",
        "INSERT INTO t VALUES (9, 'x')",
        "UPDATE t SET name = 'x'",
        "CREATE TABLE u(x)",
        "ATTACH DATABASE '/etc/passwd' AS x",
        "PRAGMA writable_schema = 1",
        "SELECT load_extension('x.so')",
        "VACUUM INTO '/tmp/stolen.db'",
        "SELECT 1; DROP TABLE t",
        "BEGIN; DELETE FROM t",
        "not sql",
        "",
        "SELECT '\x00'",
        "SELECT randomblob(100000000)",
        "SELECT hex(zeroblob(100000000))",
    ],
)
def test_whatever_is_no_bounded_reading_is_refused_and_changes_nothing(database: ReadOnlyDatabase, sql: str) -> None:
    with pytest.raises(QueryError):
        database.run(sql)
    assert database.run("SELECT count(*) FROM t") == ((3,),)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000000000) SELECT max(x) FROM r",
    ],
)
def test_endless_queries_are_stopped(database: ReadOnlyDatabase, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"longer than 0\.5 s"):
        database.run(sql)
    assert time.monotonic() - started < 5


def test_too_many_rows_are_refused(database: ReadOnlyDatabase) -> None:
    with pytest.raises(QueryError, match="more than 100 rows"):
        database.run("SELECT 1 FROM t a, t b, t c, t d, t e")


def test_results_are_compared_as_multisets_unless_ordered(database: ReadOnlyDatabase) -> None:
    same = database.same_result
    assert same("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC")
    assert not same("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC")
    assert not same("SELECT id FROM t", "SELECT DISTINCT 1 FROM t")
    assert not same("SELECT id FROM t", "SELECT nonsense")
    with pytest.raises(QueryError):
        same("SELECT nonsense", "SELECT 1")
