"""SQL from a model: read-only, bounded, compared by what it returns."""

import time
import tracemalloc
from pathlib import Path

import pytest

from infra.sandbox.sql import QueryError, ReadOnlyDatabase, orders_its_rows

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
        "SELECT writefile('/tmp/stolen.db', 'x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT LOAD_EXTENSION('x.so', 'f')",
        "SELECT edit('x')",
        "SELECT fts3_tokenizer('simple')",
        "DETACH DATABASE main",
        "ATTACH DATABASE ':memory:' AS x",
        "ATTACH DATABASE '/tmp/stolen.db' AS x",
        "PRAGMA hard_heap_limit = 0",
        "PRAGMA query_only = 0",
        "SELECT * FROM pragma_table_info('t')",
        "WITH RECURSIVE r(x) AS (SELECT 'a' UNION ALL SELECT x || x FROM r) SELECT length(x) FROM r",
        "PRAGMA table_info(t)",
        "SELECT * FROM pragma_database_list",
        "CREATE TEMP TABLE u AS SELECT 1",
        "CREATE VIRTUAL TABLE u USING fts5(x)",
        "CREATE TRIGGER u AFTER INSERT ON t BEGIN SELECT 1; END",
        "ALTER TABLE t RENAME TO u",
        "REPLACE INTO t VALUES (1, 'x')",
        "WITH x AS (SELECT 1) DELETE FROM t",
        "/* SELECT */ DELETE FROM t",
        "DELETE FROM t RETURNING id",
        "VACUUM",
        "ANALYZE",
        "REINDEX",
        "SAVEPOINT x",
        "COMMIT",
        "SELECT 1; SELECT 2",
        ".shell touch /tmp/stolen.db",
        ".read /etc/passwd",
        "SELECT ?",
        "SELECT :name",
        "SELECT '\ud800'",
        "SELECT '" + "a" * 2_000_000 + "'",
        "SELECT " + "(" * 5_000 + "1" + ")" * 5_000,
        "SELECT " + "+".join(["1"] * 5_000),
        "SELECT 1" + " UNION SELECT 1" * 1_000,
        "SELECT replace(hex(zeroblob(40000)), '0', hex(zeroblob(40000)))",
        "SELECT group_concat(hex(zeroblob(40000))) FROM t, t, t",
        "SELECT abs(-9223372036854775808)",
    ],
)
def test_whatever_is_no_bounded_reading_is_refused_and_changes_nothing(database: ReadOnlyDatabase, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError) as refused:
        database.run(sql)
    assert str(refused.value)
    assert time.monotonic() - started < 5
    assert database.run("SELECT count(*) FROM t") == ((3,),)
    assert database.run("SELECT name FROM sqlite_master") == (("t",),)
    assert not Path("/tmp/stolen.db").exists()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT count(*) FROM r",
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000000000) SELECT max(x) FROM r",
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION SELECT x + 1 FROM r) SELECT x FROM r ORDER BY x LIMIT 1",
        "SELECT count(*) FROM " + ", ".join(f"t t{n}" for n in range(20)) + " WHERE t0.id + t19.id > 100",
        "SELECT sum(length(randomblob(90000))) FROM " + ", ".join(f"t t{n}" for n in range(20)),
    ],
)
def test_endless_queries_are_stopped(database: ReadOnlyDatabase, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"longer than 0\.5 s"):
        database.run(sql)
    assert time.monotonic() - started < 5


def test_a_query_that_takes_ten_seconds_is_stopped_at_the_limit_of_production() -> None:
    database = ReadOnlyDatabase(DUMP)
    ten_seconds = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 200000000) SELECT max(x) FROM r"
    started = time.monotonic()
    with pytest.raises(QueryError, match="longer than 2 s"):
        database.run(ten_seconds)
    assert 1.9 < time.monotonic() - started < 6
    assert database.run("SELECT count(*) FROM t") == ((3,),)


def test_too_many_rows_are_refused(database: ReadOnlyDatabase) -> None:
    with pytest.raises(QueryError, match="more than 100 rows"):
        database.run("SELECT 1 FROM t a, t b, t c, t d, t e")


HUGE = {
    "rows": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT zeroblob(100000) FROM r",
    "texts": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) SELECT hex(zeroblob(50000)) FROM r",
    "columns": "SELECT " + ", ".join(["zeroblob(100000)"] * 1_900),
    "sorted": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000) "
    "SELECT hex(randomblob(50000)) AS y FROM r ORDER BY y",
    "kept apart": "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000) "
    "SELECT DISTINCT hex(randomblob(50000)) FROM r",
}


@pytest.mark.parametrize("sql", HUGE.values(), ids=HUGE)
def test_a_huge_result_is_stopped_before_it_fills_the_memory(sql: str) -> None:
    database = ReadOnlyDatabase(DUMP)  # as in production: two seconds, ten thousand rows
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises(QueryError, match=r"more than 16 MiB|longer than 2 s|MemoryError|too (big|large)|out of memory"):
        database.run(sql)
    assert time.monotonic() - started < 10
    _, peak = tracemalloc.get_traced_memory()  # what Python holds; SQLite's own is capped
    tracemalloc.stop()
    assert peak < 300 << 20
    assert database.run("SELECT 1") == ((1,),)


def test_a_function_that_takes_quadratic_time_has_little_to_take_it_on(database: ReadOnlyDatabase) -> None:
    search = "SELECT instr(hex(zeroblob({})), hex(zeroblob({})) || '1')"
    started = time.monotonic()
    assert database.run(search.format(48_000, 24_000)) == ((0,),)
    with pytest.raises(QueryError, match="too big"):
        database.run(search.format(480_000, 240_000))
    assert time.monotonic() - started < 5


def test_a_large_honest_result_is_returned() -> None:
    database = ReadOnlyDatabase(DUMP)
    rows = database.run(
        "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 10000) SELECT x, 'some text' FROM r"
    )
    assert len(rows) == 10_000
    assert rows[-1] == (10_000, "some text")


def test_results_are_compared_as_multisets_unless_ordered(database: ReadOnlyDatabase) -> None:
    same = database.same_result
    assert same("SELECT id FROM t", "SELECT id FROM t ORDER BY id DESC")
    assert not same("SELECT id FROM t ORDER BY id", "SELECT id FROM t ORDER BY id DESC")
    assert not same("SELECT id FROM t", "SELECT DISTINCT 1 FROM t")
    assert not same("SELECT id FROM t", "SELECT nonsense")
    with pytest.raises(QueryError):
        same("SELECT nonsense", "SELECT 1")


@pytest.mark.parametrize(
    "reference",
    [
        "SELECT id FROM t WHERE id IN (SELECT id FROM t ORDER BY name LIMIT 3)",
        "SELECT id FROM (SELECT * FROM t ORDER BY name DESC)",
        "WITH x AS (SELECT id FROM t ORDER BY name) SELECT id FROM x",
        "SELECT id FROM t WHERE (SELECT count(*) OVER (ORDER BY id) FROM t) > 0",
        "SELECT id FROM t WHERE name <> 'order by' AND name <> '(order by it''s order by)'",
        'SELECT id AS "order by" FROM t',
        "SELECT id AS [order by] FROM t",
        "SELECT id FROM t -- order by id",
        "SELECT id /* ORDER BY id */ FROM t",
        "SELECT id FROM t /* not closed ORDER BY id",
        "SELECT id FROM t WHERE id IN (SELECT id FROM (SELECT id FROM t ORDER BY id) ORDER BY 1)",
    ],
)
def test_an_order_within_a_query_is_none_of_its_rows(database: ReadOnlyDatabase, reference: str) -> None:
    assert database.same_result(reference, "SELECT id FROM t ORDER BY id")
    assert database.same_result(reference, "SELECT id FROM t ORDER BY id DESC")


@pytest.mark.parametrize(
    "reference",
    [
        "SELECT id FROM t ORDER BY id",
        "select id from t order\n  by id",
        "SELECT id FROM t WHERE name <> ')' ORDER BY id",
        "SELECT id FROM t -- (\nORDER BY id",
        "SELECT id FROM t ORDER /* so */ BY id",
        "SELECT id FROM (SELECT id FROM t ORDER BY id DESC) ORDER BY id",
        "WITH x AS (SELECT id FROM t) SELECT id FROM x ORDER BY id LIMIT 9",
        "SELECT id FROM t WHERE id < 2 UNION ALL SELECT id FROM t WHERE id >= 2 ORDER BY id",
        "SELECT id FROM t ORDER BY (SELECT 1), id;",
    ],
)
def test_an_order_of_the_whole_counts(database: ReadOnlyDatabase, reference: str) -> None:
    assert database.same_result(reference, "SELECT id FROM t ORDER BY id")
    assert not database.same_result(reference, "SELECT id FROM t ORDER BY id DESC")


@pytest.mark.parametrize(
    "hostile", ["(" * 9_000, "'" * 9_999, "/*" * 5_000, "--" * 5_000, "[" * 9_000, "order by" * 1_200]
)
def test_hostile_queries_are_looked_at_at_once(hostile: str) -> None:
    started = time.monotonic()
    orders_its_rows(hostile)
    assert time.monotonic() - started < 1
