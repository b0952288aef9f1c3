"""Label noise of the demo LLM: the mistakes that a real LLM makes when it writes SQL.

Two kinds, because the pipeline meets them differently. *Broken* SQL does not run, and selection and
verification nearly always see it. *Wrong* SQL runs and answers another question than the one that was
asked; some of it survives into the training rows, where it is what distilling a teacher's distribution
averages out.
"""

import dataclasses
import random
import re

from tasks.demo.requests import AGGREGATE_WORDS, SqlRequest
from tasks.demo.schemas import Database


def _wrong_requests(request: SqlRequest, database: Database, rng: random.Random) -> list[SqlRequest]:
    table = database.table(request.table)
    parent = database.parent_of(table)
    filtered = parent if request.family == "join_filter" and parent else table
    wrong: list[SqlRequest] = []
    if request.comparison:
        wrong.append(dataclasses.replace(request, comparison="<" if request.comparison == ">" else ">"))
    if request.direction:
        wrong.append(dataclasses.replace(request, direction="ASC" if request.direction == "DESC" else "DESC"))
    if request.aggregate:
        others = [name for name in AGGREGATE_WORDS if name != request.aggregate]
        wrong.append(dataclasses.replace(request, aggregate=rng.choice(others)))
    if request.value:
        others = [v for v in filtered.column(request.category).values if v != request.value]
        wrong.append(dataclasses.replace(request, value=rng.choice(others)))
    if request.number:
        others = [column.name for column in table.columns if column.name != request.number]
        wrong.append(dataclasses.replace(request, number=rng.choice(others)))
    if request.category and request.family != "join_filter":
        others = [column.name for column in table.columns if column.name != request.category]
        wrong.append(dataclasses.replace(request, category=rng.choice(others)))
    if request.limit:
        wrong.append(dataclasses.replace(request, limit=request.limit + rng.choice((1, 2))))
    if request.high:
        wrong.append(dataclasses.replace(request, family="filter_compare", comparison=">", high=0))
    return wrong


def wrong_request(request: SqlRequest, database: Database, rng: random.Random) -> SqlRequest:
    """A plausible misreading: another comparator, column, aggregate, value, direction or limit, or another table."""
    wrong = _wrong_requests(request, database, rng)
    if wrong:
        return rng.choice(wrong)
    needs_parent = request.family.startswith("join_")
    others = [
        table.name for table in database.tables if table.name != request.table and (table.foreign or not needs_parent)
    ]
    return dataclasses.replace(request, table=rng.choice(others)) if others else request


def break_sql(sql: str, rng: random.Random) -> str:
    """The same SQL with one mistake that keeps it from running."""
    column = re.search(r"(?<=\s)[a-z_.]*[a-z](?=\s+(?:=|>|<|BETWEEN|between|FROM|from)\b|,)", sql)
    breaks = [
        lambda: re.sub(r"\b(FROM|from)\b", "FORM", sql, count=1),
        lambda: sql.rstrip(";") + ")",
        lambda: re.sub(r"\b(SELECT|select)\b", "SELECT FROM", sql, count=1),
    ]
    if column:
        breaks.append(lambda: sql[: column.end()] + "_value" + sql[column.end() :])
    return rng.choice(breaks)()
