"""Execution accuracy: a generated query is right when it returns what the reference returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from infra.sandbox.sql import QueryError, ReadOnlyDatabase
from tasks.rows import Row
from tasks.text.answers import sql_in


@dataclass(frozen=True)
class Mark:
    """`correct` is None where there is no database to run on, or the reference itself does not run (seeds whose
    reference fails were left out before; this one was too slow today); `wrong_result` is a digest of what a wrong
    query returns (its order left out), None where it is right or does not run."""

    correct: bool | None
    wrong_result: str | None = None


def mark(row: Row, text: str, databases: dict[str, ReadOnlyDatabase]) -> Mark:
    """The mark of one answer to `row`."""
    if row.database not in databases:
        return Mark(None)
    database = databases[row.database]
    query = sql_in(text)
    try:
        if database.same_result(sql_in(row.response), query):
            return Mark(True)
    except QueryError:
        return Mark(None)
    try:
        rows = sorted(map(repr, database.run(query)))
    except QueryError:
        return Mark(False)
    return Mark(False, hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16])
