"""Runs SQL that a model wrote: read-only, in memory, bounded in time, rows and size.

Each database lives in a process of its own (`infra.sandbox.sql_worker`), loaded from a dump into memory, so there is
no file to reach. There an authorizer allows reading and pure functions and nothing else (no ATTACH, PRAGMA, writes,
extensions), and the virtual machine is interrupted at the time limit. A single call that cannot be
interrupted outlives that by a moment: then the process is killed, and the next query has a new
one. Memory is limited for each process, so that no query takes an honest one's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

ResultRows = tuple[tuple[object, ...], ...]

_WORKER = Path(__file__).with_name("sql_worker.py")
_LOAD_S = 120.0
_MOMENT_S = 0.5
_ANSWER_BYTES = 64 << 20  # of JSON: more than the worker's own limit on a result comes to
_OPEN_AT_ONCE = 16
_QUOTED_OR_COMMENT = re.compile(
    r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL
)  # a doubled quotation mark makes two of one
_BRACKET_OR_ORDER = re.compile(r"[()]|\border\s+by\b", re.IGNORECASE)


class QueryError(Exception):
    """The query did not run: the message is SQLite's own, or names the limit that it hit."""


class ReadOnlyDatabase:
    """One database, queried many times. Its process starts with the first query, and may end in between."""

    def __init__(self, dump: str, *, timeout_s: float = 2.0, max_rows: int = 10_000):
        self._told = {"dump": dump, "timeout_s": timeout_s, "max_rows": max_rows}
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def check(self) -> None:
        """Load it; raises QueryError where the dump does not load."""
        with self._lock:
            self._started()

    def run(self, sql: str) -> ResultRows:
        """The rows that one SELECT returns; QueryError for anything else. Callable from any thread."""
        with self._lock:
            answer = self._asked(self._started(), sql, self._timeout_s)
        if "error" in answer:
            raise QueryError(answer["error"])
        return tuple(tuple(_value(value) for value in row) for row in answer["rows"])

    def close(self) -> None:
        """End its process; the next query starts another."""
        with self._lock:
            self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._end()
        # -I -S: nothing but the standard library, and no variable of ours, which may hold keys
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        weakref.finalize(self, _kill, self._process)
        _opened(self)
        answer = self._asked(self._process, self._told, _LOAD_S)
        if "error" in answer:
            self._end()
            raise QueryError(answer["error"])
        return self._process

    def _asked(self, process: subprocess.Popen[bytes], question: Any, limit_s: float) -> dict[str, Any]:
        """What the process answers; where it does not in time, or dies of the question, it ends."""
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(question).encode() + b"\n")
            process.stdin.flush()
            line = _line(process, limit_s + _MOMENT_S)
        except TimeoutError:
            self._end()
            return {"error": f"took longer than {limit_s:g} s"}
        except OSError:
            line = b""
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self._end()
        return {"error": "ended the process that it ran in, as what wants too much memory does"}

    def _end(self) -> None:
        if self._process is not None:
            _kill(self._process)
            self._process = None

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


def _line(process: subprocess.Popen[bytes], limit_s: float) -> bytes:
    """The next line that it writes, empty where it ends; TimeoutError where it takes longer."""
    assert process.stdout is not None
    deadline, found = time.monotonic() + limit_s, bytearray()
    while not found.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(process.stdout.fileno(), 1 << 20)
        if not part or len(found) > _ANSWER_BYTES:
            return b""
        found += part
    return bytes(found)


def _value(value: Any) -> Any:
    return bytes.fromhex(value["hex"]) if isinstance(value, dict) else value


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


_open: list[weakref.ref[ReadOnlyDatabase]] = []
_open_lock = threading.Lock()


def _opened(database: ReadOnlyDatabase) -> None:
    """Of many databases the processes of a few stay: the one that started first goes, unless it is at work."""
    with _open_lock:
        _open[:] = [one for one in _open if one() not in (None, database)]
        oldest = _open[: max(0, len(_open) + 1 - _OPEN_AT_ONCE)]
        _open.append(weakref.ref(database))
    for one in oldest:
        if (found := one()) and found._lock.acquire(blocking=False):
            try:
                found._end()
            finally:
                found._lock.release()
