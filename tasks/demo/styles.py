"""SQL for a request, in many equivalent styles: keyword case, aliases, counting, ranges, joins, ordering.

Style variety is part of what distillation has to cope with: the training answers come in all styles, and a
student that sees one style per request learns from single draws what the teacher knows as a distribution.
"""

import random
from dataclasses import dataclass
from typing import Literal

from tasks.demo.requests import SqlRequest
from tasks.demo.schemas import Database, SqlTable

_KEYWORDS = frozenset(
    {"SELECT", "FROM", "WHERE", "AND", "BETWEEN", "GROUP", "BY", "HAVING", "ORDER", "ASC", "DESC", "LIMIT"}
    | {"COUNT", "AVG", "MAX", "MIN", "SUM", "DISTINCT", "INNER", "JOIN", "ON", "AS"}
)


@dataclass(frozen=True)
class RequestStyle:
    """One way of writing. The default is the reference style."""

    lower_case: bool = False
    naming: Literal["bare", "table", "alias", "as_alias"] = "bare"
    join: Literal["join", "inner", "where"] = "join"
    count_star: bool = True
    between: bool = True
    value_first: bool = True
    explicit_ascending: bool = False
    extreme_by_subquery: bool = False
    semicolon: bool = False


REFERENCE_STYLE = RequestStyle()


def sample_style(rng: random.Random) -> RequestStyle:
    """A style as an author picks it: mostly upper case and bare names."""
    return RequestStyle(
        lower_case=rng.random() < 0.3,
        naming=rng.choices(("bare", "table", "alias", "as_alias"), (0.55, 0.15, 0.15, 0.15))[0],
        join=rng.choices(("join", "inner", "where"), (0.6, 0.2, 0.2))[0],
        count_star=rng.random() < 0.7,
        between=rng.random() < 0.6,
        value_first=rng.random() < 0.75,
        explicit_ascending=rng.random() < 0.5,
        extreme_by_subquery=rng.random() < 0.25,
        semicolon=rng.random() < 0.3,
    )


class _Names:
    """How one query refers to its tables and columns under a style."""

    def __init__(self, style: RequestStyle, *, joins: bool) -> None:
        # A join needs qualified names: two tables may share a column name.
        self._naming = "table" if joins and style.naming == "bare" else style.naming

    def source(self, table: SqlTable) -> str:
        """The table as it stands in FROM."""
        if self._naming in ("bare", "table"):
            return table.name
        return f"{table.name} {'AS ' if self._naming == 'as_alias' else ''}{table.name[0]}"

    def column(self, table: SqlTable, column: str) -> str:
        if self._naming == "bare":
            return column
        return f"{table.name if self._naming == 'table' else table.name[0]}.{column}"


def _lower_keywords(sql: str) -> str:
    words = sql.replace("(", " ( ").split(" ")
    lowered = " ".join(word.lower() if word in _KEYWORDS else word for word in words)
    return lowered.replace(" ( ", "(")


def _direction(request: SqlRequest, style: RequestStyle) -> str:
    if request.direction == "DESC":
        return " DESC"
    return " ASC" if style.explicit_ascending else ""


def _single_table(request: SqlRequest, table: SqlTable, style: RequestStyle) -> str:
    names = _Names(style, joins=False)
    label, number, category = (
        names.column(table, column) for column in (table.label.name, request.number, request.category)
    )
    from_table = f"FROM {names.source(table)}"
    count = "COUNT(*)" if style.count_star else f"COUNT({names.column(table, 'id')})"
    equal = f"{category} = '{request.value}'"
    compare = f"{number} {request.comparison} {request.low}"
    aggregate = f"{request.aggregate}({number})"
    order = f"ORDER BY {number}{_direction(request, style)}"
    match request.family:
        case "filter_equal":
            return f"SELECT {label} {from_table} WHERE {equal}"
        case "filter_compare":
            return f"SELECT {label} {from_table} WHERE {compare}"
        case "filter_between":
            inside = f"{number} BETWEEN {request.low} AND {request.high}"
            if not style.between:
                inside = f"{number} >= {request.low} AND {number} <= {request.high}"
            return f"SELECT {label} {from_table} WHERE {inside}"
        case "filter_two":
            both = (equal, compare) if style.value_first else (compare, equal)
            return f"SELECT {label} {from_table} WHERE {' AND '.join(both)}"
        case "count_all":
            return f"SELECT {count} {from_table}"
        case "count_where":
            return f"SELECT {count} {from_table} WHERE {equal}"
        case "count_distinct":
            return f"SELECT COUNT(DISTINCT {category}) {from_table}"
        case "aggregate_all":
            return f"SELECT {aggregate} {from_table}"
        case "aggregate_where":
            return f"SELECT {aggregate} {from_table} WHERE {equal}"
        case "group_count":
            return f"SELECT {category}, {count} {from_table} GROUP BY {category}"
        case "group_aggregate":
            return f"SELECT {category}, {aggregate} {from_table} GROUP BY {category}"
        case "group_having":
            return f"SELECT {category} {from_table} GROUP BY {category} HAVING {count} > {request.limit}"
        case "order_all":
            return f"SELECT {label} {from_table} {order}"
        case "order_top":
            return f"SELECT {label} {from_table} {order} LIMIT {request.limit}"
        case "order_extreme":
            if style.extreme_by_subquery:
                extreme = "MAX" if request.direction == "DESC" else "MIN"
                inner = f"SELECT {extreme}({request.number}) FROM {table.name}"
                return f"SELECT {label} {from_table} WHERE {number} = ({inner})"
            return f"SELECT {label} {from_table} {order} LIMIT 1"
    raise ValueError(f"unknown request family {request.family!r}")


def _joined(request: SqlRequest, child: SqlTable, parent: SqlTable, style: RequestStyle) -> str:
    names = _Names(style, joins=True)
    assert child.foreign, f"{child.name} has no foreign column"
    key = f"{names.column(child, child.foreign.name)} = {names.column(parent, 'id')}"
    label, parent_label = names.column(child, child.label.name), names.column(parent, parent.label.name)
    conditions = []
    if style.join == "where":
        source = f"FROM {names.source(child)}, {names.source(parent)}"
        conditions.append(key)
    else:
        keyword = "INNER JOIN" if style.join == "inner" else "JOIN"
        source = f"FROM {names.source(child)} {keyword} {names.source(parent)} ON {key}"
    if request.family == "join_filter":
        conditions.append(f"{names.column(parent, request.category)} = '{request.value}'")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    match request.family:
        case "join_list":
            return f"SELECT {label}, {parent_label} {source}{where}"
        case "join_filter":
            return f"SELECT {label} {source}{where}"
        case "join_count":
            count = "COUNT(*)" if style.count_star else f"COUNT({names.column(child, 'id')})"
            return f"SELECT {parent_label}, {count} {source}{where} GROUP BY {parent_label}"
    raise ValueError(f"unknown join family {request.family!r}")


def render_sql(request: SqlRequest, database: Database, style: RequestStyle = REFERENCE_STYLE) -> str:
    """The request as SQL in this style. All styles of one request return the same rows."""
    table = database.table(request.table)
    parent = database.parent_of(table)
    if request.family.startswith("join_"):
        assert parent, f"{request.family} was asked of {table.name}, which has no parent"
        sql = _joined(request, table, parent, style)
    else:
        sql = _single_table(request, table, style)
    return (_lower_keywords(sql) if style.lower_case else sql) + (";" if style.semicolon else "")
