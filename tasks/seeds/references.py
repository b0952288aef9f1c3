"""Held-out rows whose reference SQL does not run: left out when seeds are read, before anything is trained.

A reference is run as evaluation runs the answers that it is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.errors import ConfigurationError
from infra.sandbox import QueryError, ReadOnlyDatabase
from tasks.answers import sql_in
from tasks.rows import Row


def with_running_references(
    rows: Sequence[Row], databases: Mapping[str, str]
) -> tuple[list[Row], list[dict[str, str]]]:
    """The rows whose reference runs on its database (or that have none), and of the others which and why.

    `databases` are dumps by name. Raises ConfigurationError where no row is left.
    """
    opened: dict[str, ReadOnlyDatabase] = {}
    kept, left_out = [], []
    for row in rows:
        if row.database in databases:
            if row.database not in opened:
                opened[row.database] = ReadOnlyDatabase(databases[row.database])
            try:
                opened[row.database].run(sql_in(row.response))
            except QueryError as error:
                told = {"row": row.id, "instruction": row.instruction[:200], "database": row.database}
                left_out.append({**told, "why": str(error)[:200]})
                continue
        kept.append(row)
    if left_out and not kept:
        raise ConfigurationError(
            f"the reference SQL of every held-out row fails on its database ({named(left_out)}): "
            "correct the references, or give the databases that they are for"
        )
    return kept, left_out


def named(left_out: Sequence[Mapping[str, str]]) -> str:
    """The first of the rows that were left out, in words."""
    first = left_out[0]
    return f"first {first['instruction'][:60]!r} on {first['database']!r}: {first['why']}"
