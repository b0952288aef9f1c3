"""The demo domain's databases: typed schemas, the words people use for them, deterministic rows, dumps.

First link of the demo: `requests` phrases questions over these schemas, `styles` writes the SQL,
`execution` runs it. Every column has a role, because roles are what request families ask for: a *label*
names a row, a *category* is text that many rows share, a *number* is measured, a *foreign* column points at
another table.
"""

import random
from dataclasses import dataclass
from functools import cache
from typing import Literal

ColumnRole = Literal["id", "label", "category", "number", "foreign"]

FEWEST_ROWS = 24

_FIRST_NAMES = ("Ada", "Bo", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon")
_LAST_NAMES = ("Berg", "Cruz", "Diaz", "Endo", "Falk", "Gray", "Hahn", "Ito", "Jones", "Kaur")
_ADJECTIVES = ("Blue", "Calm", "Daily", "Early", "Final", "Grand", "Hidden", "Inner", "Joint", "Key")
_NOUNS = ("Anchor", "Bridge", "Circle", "Delta", "Engine", "Forest", "Garden", "Harbor", "Island", "Journey")


@dataclass(frozen=True)
class Column:
    """One column. `words` are the ways a request names it; a label's words are plural."""

    name: str
    role: ColumnRole
    words: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    parent: str = ""

    @property
    def sql_type(self) -> str:
        return "TEXT" if self.role in ("label", "category") else "INTEGER"


@dataclass(frozen=True)
class SqlTable:
    """One table.

    `words` are plural names of its rows, `singular` is how a child table's request speaks of it.
    """

    name: str
    words: tuple[str, ...]
    singular: str
    columns: tuple[Column, ...]

    def columns_of(self, role: ColumnRole) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.role == role)

    def column(self, name: str) -> Column:
        return next(column for column in self.columns if column.name == name)

    @property
    def label(self) -> Column:
        return self.columns_of("label")[0]

    @property
    def foreign(self) -> Column | None:
        return next(iter(self.columns_of("foreign")), None)


@dataclass(frozen=True)
class Database:
    name: str
    tables: tuple[SqlTable, ...]

    def table(self, name: str) -> SqlTable:
        return next(table for table in self.tables if table.name == name)

    def parent_of(self, table: SqlTable) -> SqlTable | None:
        """The table that this one's foreign column points at, or None."""
        return self.table(table.foreign.parent) if table.foreign else None


def _table(name: str, words: str, singular: str, *columns: Column) -> SqlTable:
    return SqlTable(name, tuple(words.split("/")), singular, (Column("id", "id"), *columns))


def _label(name: str) -> Column:
    return Column(name, "label", (f"{name}s",))


def _category(words: str, values: str) -> Column:
    names = tuple(words.split("/"))
    return Column(names[0], "category", names, tuple(values.split()))


def _number(words: str, low: int, high: int) -> Column:
    names = tuple(words.split("/"))
    return Column(names[0], "number", names, low=low, high=high)


def _foreign(name: str, parent: str) -> Column:
    return Column(name, "foreign", parent=parent)


_CITIES = "Oslo Paris Quito Kyoto Lagos"
_COUNTRIES = "Norway Japan Brazil Kenya France"

DATABASES: tuple[Database, ...] = (
    Database("company", (
        _table("departments", "departments/units", "department",
               _label("name"), _category("city/location", _CITIES), _number("budget/funding", 100, 900)),
        _table("employees", "employees/workers", "employee",
               _label("name"), _category("role/job", "engineer analyst clerk lawyer"),
               _number("salary/pay", 200, 900), _number("age", 18, 80), _foreign("department_id", "departments")),
        _table("projects", "projects/initiatives", "project",
               _label("title"), _category("status/state", "open closed planned active"),
               _number("cost/expense", 10, 500), _foreign("department_id", "departments")),
    )),
    Database("store", (
        _table("customers", "customers/clients", "customer",
               _label("name"), _category("country/nation", _COUNTRIES), _number("points/credit", 10, 900)),
        _table("products", "products/items", "product",
               _label("title"), _category("brand/producer", "Acme Nova Zenith Orion"),
               _number("price/tag", 5, 300), _number("stock/inventory", 10, 99)),
        _table("orders", "orders/purchases", "order",
               _label("code"), _category("status/state", "open closed paid packed"),
               _number("total/amount", 20, 800), _foreign("customer_id", "customers")),
    )),
    Database("school", (
        _table("teachers", "teachers/instructors", "teacher",
               _label("name"), _category("subject/field", "physics history chemistry art biology"),
               _number("salary/pay", 200, 900)),
        _table("courses", "courses/classes", "course",
               _label("title"), _category("level/difficulty", "basic advanced expert"),
               _number("fee/charge", 20, 400), _number("hours/length", 10, 90), _foreign("teacher_id", "teachers")),
        _table("students", "students/pupils", "student",
               _label("name"), _category("city/location", _CITIES),
               _number("score/result", 10, 99), _foreign("course_id", "courses")),
    )),
    Database("library", (
        _table("authors", "authors/writers", "author",
               _label("name"), _category("country/nation", _COUNTRIES), _number("age", 18, 80)),
        _table("books", "books/volumes", "book",
               _label("title"), _category("genre/kind", "fantasy crime poetry history"),
               _number("pages/length", 80, 900), _number("price/tag", 5, 300), _foreign("author_id", "authors")),
        _table("loans", "loans/checkouts", "loan",
               _label("code"), _category("status/state", "open closed late"),
               _number("days/duration", 10, 99), _foreign("book_id", "books")),
    )),
    Database("airline", (
        _table("carriers", "carriers/airlines", "carrier",
               _label("name"), _category("country/nation", _COUNTRIES), _number("fleet/planes", 10, 300)),
        _table("flights", "flights/trips", "flight",
               _label("code"), _category("city/location", _CITIES),
               _number("distance/range", 100, 900), _foreign("carrier_id", "carriers")),
        _table("passengers", "passengers/travelers", "passenger",
               _label("name"), _category("seat/place", "window aisle exit"),
               _number("age", 18, 80), _number("points/credit", 10, 900), _foreign("flight_id", "flights")),
    )),
    Database("clinic", (
        _table("doctors", "doctors/physicians", "doctor",
               _label("name"), _category("field/subject", "cardiology neurology oncology pediatrics"),
               _number("salary/pay", 200, 900)),
        _table("patients", "patients/cases", "patient",
               _label("name"), _category("city/location", _CITIES),
               _number("weight/mass", 40, 140), _number("age", 18, 80), _foreign("doctor_id", "doctors")),
        _table("visits", "visits/appointments", "visit",
               _label("code"), _category("reason/cause", "checkup injury cough fever"),
               _number("cost/expense", 10, 500), _foreign("patient_id", "patients")),
    )),
)  # fmt: skip

TABLE_NAMES: tuple[str, ...] = tuple(table.name for database in DATABASES for table in database.tables)


def database_named(name: str) -> Database:
    """Raises KeyError for a name that is not in the demo."""
    for database in DATABASES:
        if database.name == name:
            return database
    raise KeyError(f"no demo database is called {name!r}; there are {[d.name for d in DATABASES]}")


def schema_text(database: Database) -> str:
    """The compact schema that stands in the prompt: one `table(column, column)` a line."""
    return "\n".join(f"{table.name}({', '.join(column.name for column in table.columns)})" for table in database.tables)


@cache
def _databases_by_schema() -> dict[str, Database]:
    return {schema_text(database): database for database in DATABASES}


def database_of_schema(text: str) -> Database | None:
    """The database whose schema text this is, or None for a schema from outside the demo."""
    return _databases_by_schema().get(text.strip())


def row_count(table_name: str) -> int:
    """Every table has its own number of rows, so that counting the wrong table is seen to be wrong."""
    return FEWEST_ROWS + TABLE_NAMES.index(table_name)


def _labels(table: SqlTable, count: int, rng: random.Random) -> list[str]:
    column = table.label.name
    if column == "code":
        return [f"{table.name[0].upper()}{number}" for number in rng.sample(range(100, 999), count)]
    left, right = (_FIRST_NAMES, _LAST_NAMES) if column == "name" else (_ADJECTIVES, _NOUNS)
    return [f"{a} {b}" for a, b in rng.sample([(a, b) for a in left for b in right], count)]


@cache
def table_rows(table: SqlTable) -> tuple[tuple[int | str, ...], ...]:
    """The table's rows, the same on every machine.

    Labels and numbers are unique, so every ordering has one answer.
    """
    rng = random.Random(f"rows of {table.name}")
    count = row_count(table.name)
    columns: list[list[int | str]] = []
    for column in table.columns:
        if column.role == "id":
            columns.append(list(range(1, count + 1)))
        elif column.role == "label":
            columns.append(list(_labels(table, count, rng)))
        elif column.role == "category":
            columns.append(list(rng.choices(column.values, k=count)))
        elif column.role == "number":
            columns.append(list(rng.sample(range(column.low, column.high + 1), count)))
        else:
            columns.append(list(rng.choices(range(1, row_count(column.parent) + 1), k=count)))
    return tuple(zip(*columns, strict=True))


def dump_sql(database: Database) -> str:
    """The database as SQL text that SQLite's `executescript` takes."""
    lines = [f"-- {database.name}: a generated database of the distilflow demo", "BEGIN;"]
    for table in database.tables:
        definitions = [f"{column.name} {column.sql_type}" for column in table.columns]
        definitions[0] += " PRIMARY KEY"
        if table.foreign:
            definitions.append(f"FOREIGN KEY ({table.foreign.name}) REFERENCES {table.foreign.parent}(id)")
        lines.append(f"CREATE TABLE {table.name} ({', '.join(definitions)});")
        for row in table_rows(table):
            literals = (f"'{value}'" if isinstance(value, str) else str(value) for value in row)
            lines.append(f"INSERT INTO {table.name} VALUES ({', '.join(literals)});")
    lines.append("COMMIT;")
    return "\n".join(lines) + "\n"
