"""The demo domain's requests: 18 families of questions, how people phrase them, and which are held out.

A `Request` is the meaning; `phrase` turns it into English (here), `parse.parse` turns English back, and
`styles.render_sql` writes the SQL. The training split and the held-out split differ in the *combination* of
table and family: every table and every family is trained on, but 2 of 7 pairings never are, so that a model
must combine what it knows about a table with what it knows about a kind of question.
"""

import random
from dataclasses import dataclass
from string import Formatter

from tasks.demo.schemas import DATABASES, TABLE_NAMES, Database, SqlTable, table_rows


@dataclass(frozen=True)
class SqlRequest:
    """What is asked. Fields that a family has no use for stay empty."""

    family: str
    table: str
    number: str = ""
    category: str = ""
    value: str = ""
    comparison: str = ""  # ">" or "<"
    low: int = 0
    high: int = 0
    aggregate: str = ""  # AVG, MAX, MIN or SUM
    direction: str = ""  # ASC or DESC
    limit: int = 0


CATEGORY_OF_FAMILY: dict[str, str] = {
    "filter_equal": "sql-filter",
    "filter_compare": "sql-filter",
    "filter_between": "sql-filter",
    "filter_two": "sql-filter",
    "count_all": "sql-aggregate",
    "count_where": "sql-aggregate",
    "count_distinct": "sql-aggregate",
    "aggregate_all": "sql-aggregate",
    "aggregate_where": "sql-aggregate",
    "group_count": "sql-group",
    "group_aggregate": "sql-group",
    "group_having": "sql-group",
    "order_all": "sql-order",
    "order_top": "sql-order",
    "order_extreme": "sql-order",
    "join_list": "sql-join",
    "join_filter": "sql-join",
    "join_count": "sql-join",
}
FAMILIES: tuple[str, ...] = tuple(CATEGORY_OF_FAMILY)
TASK_CATEGORIES: tuple[str, ...] = tuple(dict.fromkeys(CATEGORY_OF_FAMILY.values()))

# For join families {table} is the child, {parent} the table its foreign column points at, {parent_category} and
# {parent_label} are that table's columns.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "filter_equal": (
        "Show the {label} of {table} whose {category} is {value}",
        "List {label} of all {table} with {category} {value}",
        "What are the {label} of the {table} where {category} equals {value}?",
        "Find {table} with {value} as {category} and give their {label}",
    ),
    "filter_compare": (
        "Show the {label} of {table} with {number} {above} {low}",
        "List {label} of {table} whose {number} is {above} {low}",
        "Which {table} have a {number} {above} {low}? Give their {label}",
        "Find the {label} of all {table} where {number} is {above} {low}",
    ),
    "filter_between": (
        "Show the {label} of {table} with {number} between {low} and {high}",
        "List {label} of {table} whose {number} is from {low} to {high}",
        "Which {table} have a {number} from {low} to {high}? Give their {label}",
        "Give {label} of {table} with {number} at least {low} and at most {high}",
    ),
    "filter_two": (
        "Show the {label} of {table} with {category} {value} and {number} {above} {low}",
        "List {label} of {table} whose {category} is {value} and whose {number} is {above} {low}",
        "Which {table} with {category} {value} have a {number} {above} {low}? Give their {label}",
    ),
    "count_all": (
        "How many {table} are there?",
        "Count the {table}",
        "Give the number of {table}",
        "What is the total count of {table}?",
    ),
    "count_where": (
        "How many {table} have {category} {value}?",
        "Count the {table} whose {category} is {value}",
        "Give the number of {table} with {value} as {category}",
    ),
    "count_distinct": (
        "How many different {category} values do {table} have?",
        "Count the distinct {category} of {table}",
        "Give the number of different {category} values among {table}",
    ),
    "aggregate_all": (
        "What is the {aggregate} {number} of {table}?",
        "Compute the {aggregate} {number} over all {table}",
        "Give the {aggregate} {number} of the {table}",
    ),
    "aggregate_where": (
        "What is the {aggregate} {number} of {table} whose {category} is {value}?",
        "Compute the {aggregate} {number} over {table} with {category} {value}",
        "For {table} with {value} as {category}, give the {aggregate} {number}",
    ),
    "group_count": (
        "How many {table} are there for each {category}?",
        "Count {table} per {category}",
        "Give each {category} and its number of {table}",
    ),
    "group_aggregate": (
        "What is the {aggregate} {number} of {table} for each {category}?",
        "Compute the {aggregate} {number} of {table} per {category}",
        "Give each {category} with the {aggregate} {number} of its {table}",
    ),
    "group_having": (
        "Which {category} values have more than {limit} {table}?",
        "Give each {category} with more than {limit} {table}",
        "List every {category} shared by more than {limit} {table}",
    ),
    "order_all": (
        "List the {label} of all {table} by {number}, {order}",
        "Show {label} of {table} sorted by {number}, {order}",
        "Sort {table} by {number}, {order}, and give their {label}",
    ),
    "order_top": (
        "Show the {label} of the {limit} {table} with the {top} {number}",
        "Give the {limit} {table} with {top} {number} by their {label}",
        "List {label} of the {limit} {table} that have the {top} {number}",
    ),
    "order_extreme": (
        "Which one of the {table} has the {top} {number}? Give {label}",
        "Find the {label} of the single {table} with the {top} {number}",
        "Among {table}, show {label} for the {top} {number}",
    ),
    "join_list": (
        "List the {label} of {table} and the {parent_label} of their {parent}",
        "Show {label} of all {table} next to {parent_label} of the {parent}",
        "For each of the {table} give {label} and {parent} {parent_label}",
    ),
    "join_filter": (
        "Show the {label} of {table} whose {parent} has {parent_category} {value}",
        "List {label} of {table} where {parent_category} of the {parent} is {value}",
        "Which {table} belong to a {parent} with {parent_category} {value}? Give their {label}",
    ),
    "join_count": (
        "How many {table} are there for each {parent} {parent_label}?",
        "Count {table} per {parent}, with {parent_label} of the {parent}",
        "Give the {parent_label} of each {parent} and its number of {table}",
    ),
}

ABOVE_WORDS = {">": ("above", "over", "greater than"), "<": ("below", "under", "less than")}
AGGREGATE_WORDS = {
    "AVG": ("average", "mean"),
    "MAX": ("maximum", "largest"),
    "MIN": ("minimum", "smallest"),
    "SUM": ("total", "summed"),
}
ORDER_WORDS = {"DESC": ("highest first", "descending"), "ASC": ("lowest first", "ascending")}
TOP_WORDS = {"DESC": ("highest", "greatest"), "ASC": ("lowest", "least")}


def families_of(database: Database, table: SqlTable) -> tuple[str, ...]:
    """Every family that can be asked about a table: the join families need a foreign column."""
    joins = database.parent_of(table) is not None
    return tuple(f for f in FAMILIES if joins or CATEGORY_OF_FAMILY[f] != "sql-join")


def is_held_out(table: str, family: str) -> bool:
    """Is this pairing kept away from every seed, agent and training row?

    A diagonal pattern rather than a hash: each table loses 2 of 7 families and each family 2 of 7 tables,
    so no table and no family is starved by chance.
    """
    return (TABLE_NAMES.index(table) + 3 * FAMILIES.index(family)) % 7 < 2


def combinations(*, held_out: bool, category: str | None = None) -> list[tuple[Database, SqlTable, str]]:
    """All (database, table, family) of one split, of one task category if given."""
    return [
        (database, table, family)
        for database in DATABASES
        for table in database.tables
        for family in families_of(database, table)
        if is_held_out(table.name, family) == held_out and category in (None, CATEGORY_OF_FAMILY[family])
    ]


def _slots(family: str) -> set[str]:
    return {name for template in TEMPLATES[family] for _, name, _, _ in Formatter().parse(template) if name}


SLOTS_OF_FAMILY = {family: _slots(family) for family in FAMILIES}


def sample_request(database: Database, table: SqlTable, family: str, rng: random.Random) -> SqlRequest:
    """A random request of this pairing, with values that occur in the table and thresholds inside its range."""
    slots = SLOTS_OF_FAMILY[family]
    filtered = database.parent_of(table) if "parent_category" in slots else table
    assert filtered is not None, f"{family} was asked of {table.name}, which has no parent"
    category = rng.choice(filtered.columns_of("category"))
    number = rng.choice(table.columns_of("number"))
    numbers = sorted(int(row[table.columns.index(number)]) for row in table_rows(table))
    low, high = numbers[rng.randrange(3, 11)], numbers[rng.randrange(13, 21)]
    if "high" not in slots:
        low = rng.choice((low, high))
    return SqlRequest(
        family=family,
        table=table.name,
        number=number.name if "number" in slots else "",
        category=category.name if slots & {"category", "parent_category"} else "",
        value=rng.choice(category.values) if "value" in slots else "",
        comparison=rng.choice("<>") if "above" in slots else "",
        low=low if "low" in slots else 0,
        high=high if "high" in slots else 0,
        aggregate=rng.choice(tuple(AGGREGATE_WORDS)) if "aggregate" in slots else "",
        direction=rng.choice(("ASC", "DESC")) if slots & {"order", "top"} else "",
        limit=rng.randrange(2, 9) if "limit" in slots else 0,
    )


def phrase(request: SqlRequest, database: Database, rng: random.Random) -> str:
    """The request in English: a random template of its family with random words of the domain."""
    table = database.table(request.table)
    parent = database.parent_of(table)
    filtered = parent if request.family == "join_filter" else table
    words: dict[str, object] = {
        "label": table.label.words[0],
        "table": rng.choice(table.words),
        "value": request.value,
        "low": request.low,
        "high": request.high,
        "limit": request.limit,
    }
    if request.number:
        words["number"] = rng.choice(table.column(request.number).words)
    if request.category and filtered:
        words["category"] = words["parent_category"] = rng.choice(filtered.column(request.category).words)
    if parent:
        words |= {"parent": parent.singular, "parent_label": parent.label.name}
    if request.comparison:
        words["above"] = rng.choice(ABOVE_WORDS[request.comparison])
    if request.aggregate:
        words["aggregate"] = rng.choice(AGGREGATE_WORDS[request.aggregate])
    if request.direction:
        words |= {
            "order": rng.choice(ORDER_WORDS[request.direction]),
            "top": rng.choice(TOP_WORDS[request.direction]),
        }
    return rng.choice(TEMPLATES[request.family]).format(**words)
