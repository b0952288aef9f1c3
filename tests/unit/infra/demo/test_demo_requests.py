"""Promises of the demo domain's language: phrases parse back, every style means the same, the split is clean."""

import dataclasses
import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.sandbox.sql import QueryError
from tasks.demo.build_data import distinct_rows
from tasks.demo.execution import opened
from tasks.demo.noise import break_sql, wrong_request
from tasks.demo.parse import parse
from tasks.demo.requests import (
    CATEGORY_OF_FAMILY,
    FAMILIES,
    TASK_CATEGORIES,
    combinations,
    is_held_out,
    phrase,
    sample_request,
)
from tasks.demo.schemas import DATABASES, TABLE_NAMES, Database, SqlTable, database_of_schema, schema_text
from tasks.demo.styles import RequestStyle, render_sql, sample_style

PAIRINGS = combinations(held_out=False) + combinations(held_out=True)
CHOICES: list[tuple[Any, ...]] = [
    (False, True),
    ("bare", "table", "alias", "as_alias"),
    ("join", "inner", "where"),
    *[(False, True)] * 6,
]
EVERY_STYLE = [RequestStyle(*chosen) for chosen in itertools.product(*CHOICES)]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_style_of_every_family_returns_what_the_reference_returns(family: str) -> None:
    rng = random.Random(family)
    for database, table, asked in PAIRINGS:
        if asked != family:
            continue
        request = sample_request(database, table, family, rng)
        reference = render_sql(request, database)
        different = {render_sql(request, database, style) for style in EVERY_STYLE}
        assert len(different) > 4
        for sql in different:
            assert opened(database).same_result(reference, sql), sql


@given(st.sampled_from(PAIRINGS), st.integers())
def test_parse_inverts_phrase(pairing: tuple[Database, SqlTable, str], seed: int) -> None:
    database, table, family = pairing
    rng = random.Random(seed)
    request = sample_request(database, table, family, rng)
    text = phrase(request, database, rng)
    assert parse(text, database) == request
    assert parse(f"Please {text[0].lower()}{text[1:]}.", database) == request


@pytest.mark.parametrize(
    "text", ["", "Write a poem about the sea", "How many dragons are there?", "Count the employees 2"]
)
def test_parse_gives_none_outside_the_domain(text: str) -> None:
    assert all(parse(text, database) is None for database in DATABASES)


def test_schema_text_names_its_database() -> None:
    assert [database_of_schema(schema_text(database)) for database in DATABASES] == list(DATABASES)
    assert database_of_schema("employees(id, name)") is None


def test_held_out_pairings_are_a_quarter_to_a_third_and_starve_no_table_and_no_family() -> None:
    training, held_out = combinations(held_out=False), combinations(held_out=True)
    assert 0.25 <= len(held_out) / (len(training) + len(held_out)) <= 0.30
    for split in (training, held_out):
        assert {table.name for _, table, _ in split} == set(TABLE_NAMES)
        assert {family for _, _, family in split} == set(FAMILIES)
        assert {CATEGORY_OF_FAMILY[family] for _, _, family in split} == set(TASK_CATEGORIES)


@pytest.mark.parametrize("held_out", [False, True])
def test_rows_of_a_split_stay_in_it_and_answer_their_own_request(held_out: bool) -> None:
    for row in distinct_rows(300, held_out=held_out, seed="test"):
        database = database_of_schema(row["input"])
        assert database is not None
        assert database.name == row["database"]
        request = parse(row["instruction"], database)
        assert request is not None
        assert is_held_out(request.table, request.family) == held_out
        assert row["category"] == CATEGORY_OF_FAMILY[request.family]
        assert opened(database).same_result(render_sql(request, database), row["output"])


def test_rows_are_the_same_every_time() -> None:
    assert distinct_rows(50, held_out=True, seed="x") == distinct_rows(50, held_out=True, seed="x")
    assert distinct_rows(50, held_out=True, seed="x") != distinct_rows(50, held_out=True, seed="y")


def test_broken_sql_does_not_run_and_wrong_sql_runs_and_mostly_differs() -> None:
    rng = random.Random(0)
    differs = []
    for database, table, family in PAIRINGS:
        request = sample_request(database, table, family, rng)
        sql = render_sql(request, database, sample_style(rng))
        with pytest.raises(QueryError):
            opened(database).run(break_sql(sql, rng))
        wrong = wrong_request(request, database, rng)
        wrong_sql = render_sql(wrong, database, sample_style(rng))
        opened(database).run(wrong_sql)
        differs.append(not opened(database).same_result(render_sql(request, database), wrong_sql))
    assert sum(differs) > 0.8 * len(differs)


def test_order_counts_only_where_it_is_asked_for() -> None:
    database, table, _ = next(p for p in PAIRINGS if p[2] == "order_all" and p[1].name == "employees")
    listed = "SELECT name FROM employees"
    assert opened(database).same_result(listed, f"{listed} ORDER BY salary")
    assert not opened(database).same_result(f"{listed} ORDER BY salary", listed)
    request = sample_request(database, table, "order_all", random.Random(0))
    flipped = dataclasses.replace(request, direction="ASC" if request.direction == "DESC" else "DESC")
    assert not opened(database).same_result(render_sql(request, database), render_sql(flipped, database))


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM employees",
        "DROP TABLE employees",
        "ATTACH DATABASE 'x.db' AS x",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT name FROM employees; DROP TABLE employees",
        "",
    ],
)
def test_no_query_can_write_or_run_away(sql: str) -> None:
    company = DATABASES[0]
    assert not opened(company).same_result("SELECT name FROM employees", sql)
    count = opened(company).run("SELECT COUNT(*) FROM employees")[0][0]
    assert isinstance(count, int)
    assert count > 20
