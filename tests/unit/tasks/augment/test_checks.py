"""Checks by running: what is right passes, what is wrong fails, and what is no equation or program is left alone."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest

from infra.sandbox.python import PythonOutcome, PythonSandbox
from infra.sandbox.sql import ReadOnlyDatabase
from tasks.augment.checks import equations_of, python_of, run_checks
from tasks.rows import Row

DUMP = "CREATE TABLE t(id INTEGER, name TEXT); INSERT INTO t VALUES (1, 'a'), (2, 'b');"
ADD = "def add(a, b):\n    return a + b\n"


def _check(response: str, category: str, database: str = "") -> PythonOutcome | None:
    async def run() -> PythonOutcome | None:
        row = Row(instruction="x", response=response, task_category=category, database=database)
        with PythonSandbox() as sandbox:
            return await run_checks(row, {"shop": ReadOnlyDatabase(DUMP, timeout_s=0.5)}, sandbox)

    return asyncio.run(run())


def _result(response: str, category: str, database: str = "") -> str | None:
    outcome = _check(response, category, database)
    return outcome.result if outcome else None


@pytest.mark.parametrize(
    ("response", "result"),
    [
        ("SELECT id FROM t", "passed"),
        ("```sql\nSELECT id FROM t\n```", "passed"),
        ("Use this query:\n```sql\nSELECT id FROM t\n```\nIt lists the ids.", "passed"),
        ("SELECT missing FROM t", "failed"),
        ("SELECT id FROM", "failed"),
        ("DROP TABLE t", "failed"),
        ("Use SELECT id FROM t.", "failed"),
        ("", "failed"),
        ("```sql\nSELECT 1\n```\n```sql\nSELECT 2\n```", "passed"),  # the first, as evaluation has it
        ("<think>SELECT missing?</think>\nSELECT id FROM t", "passed"),
        ("WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT count(*) FROM r", "failed"),
    ],
)
def test_sql_runs_on_its_database(response: str, result: str) -> None:
    assert _result(response, "text-to-sql", "shop") == result


def test_sql_with_no_database_is_left_alone() -> None:
    assert _check("SELECT nonsense", "text-to-sql") is None
    assert _check("SELECT nonsense", "text-to-sql", "unknown") is None


@pytest.mark.parametrize(
    ("response", "result"),
    [
        (f"```python\n{ADD}```", "passed"),
        (f"So:\n```py\n{ADD}```\nand then\n```python3\nassert add(1, 2) == 3\n```", "passed"),
        (ADD, "passed"),
        (f"```python\n{ADD}assert add(1, 2) == 4\n```", "failed"),
        ("```python\ndef add(a, b:\n```", "failed"),
        ("```python\nimport subprocess\n```", "failed"),
        ("```python\nimport numpy as np\nnp.zeros(3)\n```", "unknown"),
        ("```python\ndef numbers():\n    yield 1\n```", "unknown"),
        ("```bash\nrm -rf /\n```", None),
        ("```\nadd(1, 2)\n```", None),
        ("In Python you would use a loop.", None),
        ("", None),
    ],
)
def test_python_runs_in_the_sandbox(response: str, result: str | None) -> None:
    assert _result(response, "python") == result


def test_only_tasks_that_ask_for_a_program_are_run() -> None:
    for category in ("python", "Coding", "code-generation", "programming"):
        assert python_of(Row(instruction="", response=f"```python\n{ADD}```", task_category=category)) == ADD
    for category in ("writing", "translation", "math", ""):
        assert python_of(Row(instruction="", response=f"```python\n{ADD}```", task_category=category)) is None
    assert python_of(Row(instruction="", response=ADD, task_category="code")) is None  # which language?


@pytest.mark.parametrize(
    ("response", "result"),
    [
        ("3 * 4 = 12", "passed"),
        ("First 3 × 4 = 12, then 12 ÷ 5 = 2.4.", "passed"),
        ("16 - 3 - 4 = 9 eggs a day", "passed"),
        ("10 / 3 = 3.33", "passed"),
        ("10 / 3 = 3.3", "passed"),
        ("2 / 3 = 0.67 and 2 / 3 = 1", "passed"),
        ("0.1 + 0.2 = 0.3", "passed"),
        ("5 − 8 = −3", "passed"),
        ("3 - (-5) = 8", "passed"),
        ("999999999999999 * 999999999999999 = 999999999999998", "failed"),
        ("2 + 2 = 5", "failed"),
        ("2 + 3 × 4 = 20", "failed"),
        ("10 / 3 = 3.34", "failed"),
        ("7 * 8 = 54", "failed"),
        ("1 / 0 = 0", "failed"),
        ("So she has 3 + 4 = 7 and he has 7 * 2 = 15.", "failed"),
        ("The answer is 12.", None),
        ("", None),
    ],
)
def test_worked_arithmetic_is_computed(response: str, result: str | None) -> None:
    assert _result(response, "math word problem") == result
    assert _check(response, "writing") is None


@pytest.mark.parametrize(
    "response",
    [
        "2/3 = 0.66",
        "2 / 3 = 0.6",
        "200 / 3 = 66.66",
        "-200 / 3 = -66.66",
        "1.3 * 1.3 = 1.6",
        "14 / 5 = 2 with remainder 4",
        "14 ÷ 5 = 2, remainder 4",
        "14 / 5 = 2 Rest 4",
        "14 / 5 = 2 (remainder: 4)",
        "17 / 3 = 5 (rounded down)",
        "17 / 3 = 5",
        "16 / 3 = 6 boxes",
        "We round up, so 16 / 3 = 6.",
        "16 / 3 = 6, rounded up",
        "49 + 52 = 100 (rounded)",
        "Roughly 49 + 52 = 100.",
        "About 10 / 3 = 3.4.",
        "1.000 + 500 = 1.500",
        "1.000 + 1.500 = 2500",
        "12.500 - 500 = 12.000",
        "15 / 60 = 25 percent",
        "15 / 60 = 25 Prozent",
        "15 / 60 = 25",
        "120 + 30 = 2.5 hours",
        "2 * 30 = 1 hour",
        "50 + 50 = 1 m",
        "50 + 50 = 1 €",
        "250 + 250 = 5 dollars",
        "12 + 12 = 2 dozen",
        "10/12 = 10",
        "10/12 - 8/12 = 2",
        "9/11 = 2001",
        "3/4 = 75",
        "11 + 3 = 2 pm",
        "11 + 3 = 2 (on a clock)",
        "In base 8, 7 + 1 = 10.",
        "In binary: 1 + 1 = 10.",
        "Modulo 12 we have 10 + 5 = 3.",
        "From version 3.9 + 1.1 = 3.10",
        "3 x 4 + 2 = 14",
        "3 · 4 + 2 = 14",
        "3 \\times 4 + 2 = 14",
        "3 times 4 + 2 = 14",
        "twice 3 + 4 = 10",
        "5 choose 2 + 1 = 11",
        "2 + 2 = 5 is wrong.",
        "It is not true that 2 + 2 = 5.",
        "A common mistake is 2 + 3 * 4 = 20.",
        "Is 2 + 2 = 5?",
        "If 2 + 2 = 5, then I am the Pope.",
        "3 + 3 = 3!",
        "1 / 3 = 0.4 repeating",
        "6 * 1 = 6 and 2 / 3 = 0.66",
        "500 + 500 = 1'000",
        "500 + 500 = 1’000",
        "9.8 * 75 = 740 newtons",
        "9.8 * 75 = 740.",
        "1000 / 3 = 330",
        "3 - 5 = 2 (in absolute value)",
        "2 - 5 = 3 below zero",
    ],
)
def test_a_check_that_cannot_be_sure_says_unknown(response: str) -> None:
    assert _result(response, "math word problem") in ("unknown", None)


@pytest.mark.parametrize(
    "response",
    [
        "2/3 = 0.66",
        "200 / 3 = 66.66",
        "14 / 5 = 2 with remainder 4",
        "17 / 3 = 5 (rounded down)",
        "1.000 + 500 = 1.500",
    ],
)
def test_it_says_so_with_the_equation(response: str) -> None:
    outcome = _check(response, "math word problem")
    assert outcome is not None
    assert outcome.result == "unknown"
    assert " may mean something else" in outcome.detail


@pytest.mark.parametrize(
    ("response", "detail"),
    [
        ("2 + 2 = 5", "2 + 2 is not 5"),
        ("\\(7 * 8 = 54\\)", "7 * 8 is not 54"),
        ("7 * 8 = 54, so she has 54.", "7 * 8 is not 54"),
        ("7 * 8 = 54 and that is all", "7 * 8 is not 54"),
        ("It is about 3 km. Then 7 * 8 = 54.", "7 * 8 is not 54"),
        ("2/3 = 0.66, and so 12 * 3 = 35.", "12 * 3 is not 35"),
        ("1.5 * 3 = 4.7", "1.5 * 3 is not 4.7"),
        ("90 / 7 = 13.2", "90 / 7 is not 13.2"),
        ("0.125 + 0.5 = 0.725", "0.125 + 0.5 is not 0.725"),
        ("100 - 37 = 73\nSo 73.", "100 - 37 is not 73"),
    ],
)
def test_what_is_surely_wrong_still_fails(response: str, detail: str) -> None:
    assert _check(response, "arithmetic") == PythonOutcome(result="failed", detail=detail)


@pytest.mark.parametrize(
    "response", ["1.500 + 1.000 = 2.500", "0.125 + 0.375 = 0.500", "60 / 12 = 5 hours", "10/4 = 2.5"]
)
def test_what_holds_passes_however_it_may_be_read(response: str) -> None:
    assert _result(response, "arithmetic") == "passed"


def test_the_wrong_equation_is_named() -> None:
    outcome = _check("3 + 4 = 7, so 7 * 2 = 15 and 1 + 1 = 2.", "arithmetic")
    assert outcome == PythonOutcome(result="failed", detail="7 * 2 is not 15")


@pytest.mark.parametrize(
    "prose",
    [
        "x = 3",
        "2x + 3 = 7",
        "3 + 4 = 7x",
        "a1 + 2 = 3",
        "f(2 + 3) = 5",
        "(2 + 3) * 4 = 20",
        "2 * (3 + 4) = 14",
        "6 / 2(1 + 2) = 9",
        "2^3 + 1 = 9",
        "3! + 1 = 7",
        "√4 + 1 = 3",
        "log 100 + 1 = 3",
        "half of 6 + 2 = 5",
        "50% of 20 = 10",
        "20 * 50% = 10",
        "7 - 2 = 5%",
        "1 + 2 = 3 = 3",
        "3 + 4 = 7 + 1 = 8",
        "5 - 3 = 2 - 0",
        "3 + 4 == 7",
        "= 2 + 1 = 3",
        "pages 10-12 = 3 pages",
        "10-12 = three",
        "from 2019-2021 = 3 years",
        "2024-01-02 = Tuesday",
        "on 01/02/2024 = 5",
        "10:30 - 1 = 9:30",
        "version 1.2.3 - 1 = 1",
        "1,000 + 1 = 1,001",
        "1 000 + 1 = 1 001",
        "3 1/2 = 3.5",
        "2 3/4 + 1 = 3.75",
        "10 / 4 = 2 remainder 2",
        "10 / 4 = 2 R 2",
        "10 ÷ 4 = 2 余 2",
        "10 ÷ 4 = 2…2",
        "10 ÷ 4 = 2...2",
        "10 + 5 = 3 (mod 12)",
        "1 + 1 = 10 in binary",
        "800 + 700 = 1.5 thousand",
        "800 + 700 = 1.5k",
        "8000 + 7000 = 1.5万",
        "9 * 2 = $18",
        "Step 2 - 3 * 4 = 12",
        "- 3 * 4 = 12",
        "07 + 1 = 8",
        "５ + 1 = 6",
        "1e3 + 1 = 1001",
        "```python\nx = 1 + 1 = 3\n```",
    ],
)
def test_what_may_be_something_else_is_not_taken_for_an_equation(prose: str) -> None:
    assert equations_of(prose) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2024-01-02: 5 + 5 = 10.", [("5 + 5", "10")]),
        ("5+5=10, so (3 * 4 = 12)", [("5+5", "10"), ("3 * 4", "12")]),
        ("5-3=2", [("5-3", "2")]),
        ("1 + 2 = 3\n3 + 4 = 7\n", [("1 + 2", "3"), ("3 + 4", "7")]),
        ("She pays 3 × 4.50 = 13.5 dollars", [("3 * 4.50", "13.5")]),
        ("-3 + 5 = 2 and 3 + -5 = -2", [("-3 + 5", "2"), ("3 + -5", "-2")]),
    ],
)
def test_equations_are_found_in_prose(text: str, found: list[tuple[str, str]]) -> None:
    assert equations_of(text) == found


@pytest.mark.parametrize(
    "hostile",
    [
        "1" * 200_000,
        "1 + " * 50_000,
        "1+" * 100_000,
        "1 " * 100_000,
        "1" + " " * 200_000,
        "1 + 1 = 2\n" * 20_000,
        "```" * 60_000,
        "```python\n" * 20_000,
        "of " * 60_000 + "1 + 1 = 2",
        "9" * 15 + " * 9" * 50_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_hostile_text_is_read_at_once(hostile: str) -> None:
    assert len(equations_of(hostile)) <= 50
    for category in ("python", "math"):
        assert _result(hostile, category) in (None, "passed", "failed")


def test_an_equation_is_data_and_never_code() -> None:
    sign: Literal["+"] = "+"
    for left, right in equations_of(f"__import__('os') {sign} 1 = 2; 1 + open('x') = 3; 1 {sign} 1 = 2"):
        assert set(left + right) <= set("0123456789.+-*/() ")
