"""Checks by running: SQL on its database, Python in a sandbox, and the equations in worked arithmetic."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping

from infra.python_sandbox import Outcome, PythonSandbox
from infra.sandbox import QueryError, ReadOnlyDatabase
from tasks import categories
from tasks.answers import SQL, answer_of, code_in, fences, without_fences
from tasks.rows import Row

_PYTHON = ("python", "py", "python3")
_DEFINES = re.compile(r"^(?:async )?(?:def|class) \w+", re.MULTILINE)
_NUMBER = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,10})?"
_OPERAND = rf"(?:{_NUMBER}|\({_NUMBER}\))"
_EQUATION = re.compile(
    r"(?<![\w.,:)$%/*×÷^+=√-])(?<![-+*/×÷^%=(] )(?<!\d[ \xa0\u202f])"  # not the tail of a longer formula or number
    rf"({_OPERAND}(?:\s*[-+*/×÷]\s*{_OPERAND}){{1,10}})(\s*)=\s*({_NUMBER})"
    r"(?![\w.,:%/*×÷^(]*\d)(?!\s*[-+*/×÷^%=…])(?!\.\.)(?![ \xa0\u202f]\d)"  # nor the head of one
)
# What stands before a number that is a label or an argument, and after one that is not the whole result.
_NO_OPERAND = re.compile(
    r"\b(?:of|log|ln|sin|cos|tan|sqrt|root|step|day|week|case|part|question|problem|example|chapter|pages?|line)\s*$",
    re.IGNORECASE,
)
_NO_RESULT = re.compile(
    r"[a-z]|\s*\(?\s*(?:[rkmb]\b|remainder|余|hundred|thousand|[mb]illion|[百千万亿]|mod|binary|in b|base)",
    re.IGNORECASE,
)
_MAX_EQUATIONS = 50


async def run_checks(row: Row, databases: Mapping[str, ReadOnlyDatabase], sandbox: PythonSandbox) -> Outcome | None:
    """The outcome of running a row's response; None where there is nothing to run.

    A failure is final. That SQL or Python runs does not yet make it right, so a pass leaves the word to the
    agent (which may bring tests).
    """
    if row.database in databases:
        return await asyncio.to_thread(_run_sql, databases[row.database], code_in(answer_of(row.response), SQL))
    if code := python_of(row):
        return await sandbox.run(code)
    if categories.is_maths(row.task_category):
        return await _check_equations(answer_of(row.response), sandbox)
    return None


def python_of(row: Row) -> str | None:
    """The Python program of a response whose task is to write one."""
    if not categories.is_code(row.task_category):
        return None
    whole = answer_of(row.response).strip()
    blocks = [code for language, code in fences(whole) if language in _PYTHON]
    if blocks:
        return "\n\n".join(blocks)
    return whole if categories.is_python(row.task_category) and "```" not in whole and _DEFINES.match(whole) else None


def equations_of(text: str) -> list[tuple[str, str]]:
    """`3 * 4 = 12` in a text as (expression, stated result).

    What may be something else is left alone (chains, formulas with letters, ranges, remainders, units like
    thousands), for an equation that is wrong costs the row.
    """
    plain = without_fences(text)[:50_000].replace("−", "-")
    found = []
    for match in itertools.islice(_EQUATION.finditer(plain), _MAX_EQUATIONS):
        left, space, right = match.groups()
        is_range = bool(space) and re.search(r"\d-\d", left)
        before = plain[max(0, match.start() - 20) : match.start()]
        if not (is_range or _NO_OPERAND.search(before) or _NO_RESULT.match(plain, match.end())):
            found.append((left.replace("×", "*").replace("÷", "/"), right))
    return found


async def _check_equations(text: str, sandbox: PythonSandbox) -> Outcome | None:
    equations = equations_of(text)
    if not equations:
        return None
    tests = []
    for left, right in equations:
        decimals = len(right.partition(".")[2])
        slack = 0.5000001 * 10**-decimals  # a stated result may be rounded to the digits that it shows
        tests.append(f"assert abs(({left}) - ({right})) <= {slack if '/' in left or '.' in left else 0}")
    outcome = await sandbox.run("", tests)
    if outcome.result == "failed":
        return Outcome(result="failed", detail=await _first_wrong(equations, tests, sandbox))
    return outcome


async def _first_wrong(equations: list[tuple[str, str]], tests: list[str], sandbox: PythonSandbox) -> str:
    for (left, right), test in zip(equations, tests, strict=True):
        if (await sandbox.run("", [test])).result == "failed":
            return f"{left} is not {right}"
    return "an equation is wrong"


def _run_sql(database: ReadOnlyDatabase, sql: str) -> Outcome:
    try:
        database.run(sql)
    except QueryError as error:
        return Outcome(result="failed", detail=str(error))
    return Outcome(result="passed")
