"""SQL from a model runs in a process of its own: nothing outlives its limit, and nobody pays for another's query."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from infra.sandbox import sql
from infra.sandbox.sql import QueryError, ReadOnlyDatabase
from tests.support.wait import wait_for

DUMP = "CREATE TABLE t(id INTEGER, name TEXT, raw BLOB); INSERT INTO t VALUES (1,'a',x'00ff'),(2,NULL,NULL);"
ENDLESS_CALL = "SELECT length(printf('%.*c', 2000000000, 'x'))"  # which SQLite does not interrupt


def _pid(database: ReadOnlyDatabase) -> int:
    database.run("SELECT 1")
    assert database._process is not None
    return database._process.pid


def test_a_call_that_cannot_be_interrupted_ends_at_the_limit_and_the_next_query_runs() -> None:
    database = ReadOnlyDatabase(DUMP, timeout_s=0.5)
    _pid(database)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(QueryError, match=r"longer than 0\.5 s|too big|ended the process that it ran in"):
            database.run(ENDLESS_CALL)
        assert time.monotonic() - began < 3
        assert database.run("SELECT id FROM t") == ((1,), (2,))


def test_a_process_that_does_not_answer_is_killed_at_the_limit() -> None:
    database = ReadOnlyDatabase(DUMP, timeout_s=0.5)
    stopped = _pid(database)
    os.kill(stopped, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(QueryError, match=r"longer than 0\.5 s"):
        database.run("SELECT 1")
    assert time.monotonic() - began < 3
    assert not psutil.pid_exists(stopped)
    assert database.run("SELECT count(*) FROM t") == ((2,),)


def test_honest_queries_beside_hostile_ones_get_their_memory_and_their_answer() -> None:
    hostile = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 5000) "
    hostile += "SELECT count(*) FROM (SELECT DISTINCT hex(randomblob(45000)) FROM r)"
    greedy, honest = [ReadOnlyDatabase(DUMP) for _ in range(3)], ReadOnlyDatabase(DUMP)
    refused: list[str] = []

    def ask(database: ReadOnlyDatabase) -> None:
        for _ in range(2):
            try:
                database.run(hostile)
            except QueryError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=ask, args=(database,)) for database in greedy]
    for thread in threads:
        thread.start()
    sort = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r LIMIT 200) "
    sort += "SELECT count(*) FROM (SELECT DISTINCT hex(randomblob(45000)) FROM r)"
    while any(thread.is_alive() for thread in threads):
        assert honest.run(sort) == ((200,),)
    assert refused, "the hostile ones hit no limit: this proves nothing"


def test_values_come_back_as_sqlite_has_them() -> None:
    database = ReadOnlyDatabase(DUMP)
    assert database.run("SELECT raw, name, 1, 1.0, 9223372036854775807, 'é\u2028', 1e999 FROM t LIMIT 1") == (
        (b"\x00\xff", "a", 1, 1.0, 2**63 - 1, "é\u2028", float("inf")),
    )
    assert isinstance(database.run("SELECT 1.0")[0][0], float)


def test_a_process_that_was_killed_is_replaced() -> None:
    database = ReadOnlyDatabase(DUMP)
    os.kill(_pid(database), signal.SIGKILL)
    wait_for(lambda: database._process is None or database._process.poll() is not None)
    assert database.run("SELECT count(*) FROM t") == ((2,),)


def test_it_has_no_variable_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    database = ReadOnlyDatabase(DUMP)
    process = psutil.Process(_pid(database))
    assert "OPENAI_API_KEY" not in process.environ()
    assert process.cwd() == os.getcwd()


def test_a_dump_that_does_not_load_is_said_and_leaves_no_process() -> None:
    database = ReadOnlyDatabase("CREATE TABLE t(x); INSERT INTO nowhere VALUES (1);")
    with pytest.raises(QueryError, match="no such table: nowhere"):
        database.check()
    assert database._process is None


def test_of_many_databases_the_processes_of_a_few_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "_open", [])
    many = [ReadOnlyDatabase(DUMP) for _ in range(sql._OPEN_AT_ONCE + 4)]
    for database in many:
        assert database.run("SELECT count(*) FROM t") == ((2,),)
    assert sum(database._process is not None for database in many) == sql._OPEN_AT_ONCE
    assert many[0].run("SELECT count(*) FROM t") == ((2,),)


def test_it_ends_with_whoever_asked_it(tmp_path: Path) -> None:
    program = "\n".join(
        [
            "import sys, time, threading; from infra.sandbox.sql import ReadOnlyDatabase",
            f"d = ReadOnlyDatabase({DUMP!r}, timeout_s=600); d.run('SELECT 1'); print(d._process.pid, flush=True)",
            f"d.run({ENDLESS_CALL!r})",
            "time.sleep(600)",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as asker:
        assert asker.stdout is not None
        pid = int(asker.stdout.readline())
        asker.kill()
    wait_for(lambda: not psutil.pid_exists(pid))
