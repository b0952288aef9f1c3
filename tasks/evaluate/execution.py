"""Execution accuracy: a generated query is right when it returns what the reference returns."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from infra.sandbox import QueryError, ReadOnlyDatabase
from tasks.rows import Row

_FENCED = re.compile(r"```(?:\w+)?\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True)
class Mark:
    """`correct` is None where there is no database to run on; `wrong_result` is a digest of what a wrong query
    returns (its order left out), None where it is right or does not run."""

    correct: bool | None
    wrong_result: str | None = None


def mark(row: Row, text: str, databases: dict[str, ReadOnlyDatabase]) -> Mark:
    """The mark of one answer to `row`."""
    if row.database not in databases:
        return Mark(None)
    database, query = databases[row.database], bare_code(text)
    if database.same_result(row.response, query):
        return Mark(True)
    try:
        rows = sorted(map(repr, database.run(query)))
    except QueryError:
        return Mark(False)
    return Mark(False, hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16])


def bare_code(text: str) -> str:
    """The code in an answer: what stands in its first fence, else all of it."""
    fenced = _FENCED.search(text)
    return (fenced.group(1) if fenced else text).strip()
