"""Held-out rows whose reference SQL does not run: left out when seeds are read, before anything is trained.

A reference is run as evaluation runs the answers that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from infra.sandbox.sql import QueryError, ReadOnlyDatabase
from tasks.rows import Row
from tasks.seeds.account import Account
from tasks.text.answers import sql_in

FAILS = "its reference SQL fails on its database"
_NAMED = 100


def running(
    rows: Iterable[Row], databases: Mapping[str, str], account: Account, failing: list[dict[str, str]]
) -> Iterator[Row]:
    """The rows whose reference runs on its database (or that have none, or use tools); of the first others, `failing`
    says why.

    `databases` are dumps by name. Rows that are left out go into `account`.
    """
    opened = {name: ReadOnlyDatabase(dump) for name, dump in databases.items()}  # a process each, once it is asked
    for row in rows:
        if row.database in opened and not row.uses_tools:
            try:
                opened[row.database].run(sql_in(row.response))
            except QueryError as error:
                account.left_out[FAILS] += 1
                if len(failing) < _NAMED:
                    described = {"row": row.id, "instruction": row.instruction[:200], "database": row.database}
                    failing.append({**described, "why": str(error)[:200]})
                continue
        yield row


def named(failing: Sequence[Mapping[str, str]]) -> str:
    """The first of the rows that were left out, in words."""
    first = failing[0]
    return f"first is {first['instruction'][:60]!r} on {first['database']!r}: {first['why']}"
