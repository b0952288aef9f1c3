"""Checks by running: SQL on its database, Python in a sandbox, and the equations in worked arithmetic."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from infra.sandbox.python import PythonOutcome, PythonSandbox
from infra.sandbox.sql import QueryError, ReadOnlyDatabase
from tasks.rows import Row
from tasks.text import categories
from tasks.text.answers import answer_of, fences, sql_in, without_fences

_PYTHON = ("python", "py", "python3")
_DEFINES = re.compile(r"^(?:async )?(?:def|class) \w+", re.MULTILINE)
_NUMBER = r"-?(?:0|[1-9][0-9]{0,14})(?:\.[0-9]{1,10})?"
_OPERAND = rf"(?:{_NUMBER}|\({_NUMBER}\))"
_EQUATION = re.compile(
    r"(?<![\w.,:)$%/*×÷^+=√-])(?<![-+*/×÷^%=(] )(?<!\d[ \xa0\u202f])"  # not the tail of a longer formula or number
    rf"({_OPERAND}(?:\s*[-+*/×÷]\s*{_OPERAND}){{1,10}})(\s*)=\s*({_NUMBER})"
    r"(?![\w.,:%/*×÷^(]*\d)(?!\s*[-+*/×÷^%=…])(?!\.\.)(?![ \xa0\u202f]\d)"  # nor the head of one
)
_STEP = re.compile(rf"\s*([-+*/])\s*({_OPERAND})")
# What stands before a number that is a label or an argument, and after one that is not the whole result.
_NO_OPERAND = re.compile(
    r"\b(?:of|log|ln|sin|cos|tan|sqrt|root|step|day|week|case|part|question|problem|example|chapter|pages?|line)\s*$",
    re.IGNORECASE,
)
_NO_RESULT = re.compile(
    r"[a-z]|\s*\(?\s*(?:[rkmb]\b|remainder|余|hundred|thousand|[mb]illion|[百千万亿]|mod|binary|in b|base)",
    re.IGNORECASE,
)
# Where an equation that does not hold as it stands may still be right, nothing is sure (below, `_is_sure`).
_THOUSANDS = re.compile(r"(?<![\d.])[1-9]\d{0,2}\.\d{3}(?!\d)")
_DATE_OR_SCORE = re.compile(r"(?<![\d.])\d{1,2}/\d{1,2}(?![\d.])")
_LONGER_FORMULA = re.compile(
    r"(?:\d\s*\\?[^\W\d_]+|[xX·⋅∙•∗√∑∏∫<>≤≥≠≈±∓|&~!°²³⁴⁵⁶⁷⁸⁹⁰}\]]|\\[a-z]+"
    r"|\b(?:twice|thrice|double|triple|half|third|quarter|squared?|cubed?|negative|minus|plus|times|by|over|than|version))"
    r"\s*$"
)
_ENDS_HERE = re.compile(
    r"\s*(?:[.,;:)\]\"'’”*_`|。，；、）](?!\d)|\\[\])]|$|\n|-\s|(?:and|so|or|but|then|which|therefore|thus|hence|because|since"
    r"|as|is|for|while|also|it|we|he|she|they|this|that|the|now|next|finally|in total|total|altogether|left|remaining"
    r"|more|each|und|et|y|e)\b)",
    re.IGNORECASE,
)
_REMARK = re.compile(r"\s*[(（\[][^)）\]]*[^\W\d_]")
_NOT_CLAIMED = re.compile(
    r"\b(?:not|never|cannot|wrong\w*|incorrect\w*|mistak\w*|errors?|erroneous|false|instead|rather|suppose|assum\w+|if"
    r"|whether|claim\w*|contradict\w*|impossible|nicht|falsch|faux|fausse|incorrecto|неверно|нет)\b|n['’]t\b|[错誤误≠✗❌]",
    re.IGNORECASE,
)
_ROUNDED = re.compile(
    r"\bround|nearest|approx|about|roughly|estimat|truncat|floor|ceil|whole|integer|quotient|[≈≃~⌊⌈]|rund|ungefähr|etwa"
    r"|environ|arrondi|redonde|aproxim|около|примерно|округл|约|約|四舍五入|取整",
    re.IGNORECASE,
)
_OTHER_ARITHMETIC = re.compile(
    r"\bmod(?:ulo|ular)?\b|congruen|\bclock\b|o['’]clock|\b(?:bi|terti)nary\b|\boctal\b|hexadecimal|\bbase[- ]\w+"
    r"|boolean|roman numeral|\bversions?\b|concatenat|\bvectors?\b|riddle|\bjoke|二进制|进制|时钟",
    re.IGNORECASE,
)
_MAX_EQUATIONS = 50


async def run_checks(
    row: Row, databases: Mapping[str, ReadOnlyDatabase], sandbox: PythonSandbox
) -> PythonOutcome | None:
    """The outcome of running a row's response; None where there is nothing to run.

    A failure is final. That SQL or Python runs does not yet make it right, so a pass leaves the word to the
    agent (which may bring tests). A response to what tools found is not run.
    """
    if row.uses_tools:
        return None
    if row.database in databases:
        return await asyncio.to_thread(_run_sql, databases[row.database], sql_in(row.response))
    if code := python_of(row):
        return await sandbox.run(code)
    if categories.is_maths(row.task_category):
        return _check_equations(answer_of(row.response))
    return None


def python_of(row: Row) -> str | None:
    """The Python program of a response whose task is to write one."""
    if row.uses_tools or not categories.is_code(row.task_category):
        return None
    whole = answer_of(row.response).strip()
    blocks = [code for language, code in fences(whole) if language in _PYTHON]
    if blocks:
        return "\n\n".join(blocks)
    return whole if categories.is_python(row.task_category) and "```" not in whole and _DEFINES.match(whole) else None


def equations_of(text: str) -> list[tuple[str, str]]:
    """`3 * 4 = 12` in a text as (expression, stated result).

    What is something else is left alone (chains, formulas with letters, ranges, remainders, units like thousands).
    """
    return [(equation.left, equation.right) for equation in _equations(without_fences(text))]


@dataclass(frozen=True)
class _Equation:
    left: str
    right: str
    before: str  # the words of its sentence
    after: str


def _equations(text: str) -> list[_Equation]:
    plain = text[:50_000].replace("−", "-")
    found = []
    for match in itertools.islice(_EQUATION.finditer(plain), _MAX_EQUATIONS):
        left, space, right = match.groups()
        is_range = bool(space) and re.search(r"\d-\d", left)
        before, after = plain[max(0, match.start() - 120) : match.start()], plain[match.end() : match.end() + 120]
        if not (is_range or _NO_OPERAND.search(before[-20:]) or _NO_RESULT.match(after)):
            found.append(_Equation(left.replace("×", "*").replace("÷", "/"), right, before, after))
    return found


def _check_equations(text: str) -> PythonOutcome | None:
    """Failed where an equation is surely wrong, unknown where one may be: an equation that is wrong costs the row."""
    words = without_fences(text)
    equations = _equations(words)
    if not equations:
        return None
    wrong = [equation for equation in equations if not _holds(equation)]
    for equation in wrong:
        if _is_sure(equation, words):
            return PythonOutcome(result="failed", detail=f"{equation.left} is not {equation.right}")
    if wrong:
        return PythonOutcome(result="unknown", detail=f"{wrong[0].left} = {wrong[0].right} may mean something else")
    return PythonOutcome(result="passed")


def _holds(equation: _Equation) -> bool:
    """Exactly; a stated result of a division or of decimals may be rounded to the digits that it shows."""
    value = _value(equation.left)
    if value is None:
        return False
    is_rounded = "/" in equation.left or "." in equation.left
    return abs(value - Fraction(equation.right)) <= (_unit(equation.right) / 2 if is_rounded else 0)


def _is_sure(equation: _Equation, text: str) -> bool:
    """Whether an equation that does not hold is wrong however it is read."""
    value, stated = _value(equation.left), Fraction(equation.right)
    if value is None:
        return True
    both = f"{equation.left} {equation.right}"
    sentence = re.split(r"[.!?。！？\n]", equation.before)[-1] + re.split(r"[.!。！\n]", equation.after)[0]
    far = max(Fraction(1), abs(value) / 20)
    is_rounded = "/" in equation.left or "." in equation.left
    reads_otherwise = (
        is_rounded and 0 <= abs(value) - abs(stated) < _unit(equation.right),
        is_rounded and abs(value - stated) < _coarsest(equation.right),
        "/" in equation.left and abs(100 * value - stated) <= _unit(equation.right) / 2,  # in per cent
        _THOUSANDS.search(both),
        _DATE_OR_SCORE.search(equation.left),
        _LONGER_FORMULA.search(equation.before[-30:]),
        not _ENDS_HERE.match(equation.after) or _REMARK.match(equation.after),
        _NOT_CLAIMED.search(sentence),
        abs(value - stated) <= far and _ROUNDED.search(text if is_rounded else sentence),
        _OTHER_ARITHMETIC.search(text),
    )
    return not any(reads_otherwise)


def _unit(stated: str) -> Fraction:
    """The worth of the last digit."""
    return Fraction(1, 10 ** len(stated.partition(".")[2]))


def _coarsest(stated: str) -> int:
    """The worth of the last digit that is no 0: a whole number may be rounded to tens or more."""
    if "." in stated or not stated.strip("-0"):
        return 0
    return 10 ** (len(stated) - len(stated.rstrip("0")))


def _value(expression: str) -> Fraction | None:
    """None where it divides by zero."""
    first = re.match(_OPERAND, expression)
    assert first is not None
    total, term = Fraction(0), Fraction(first.group().strip("()"))
    for sign, operand in _STEP.findall(expression, first.end()):
        number = Fraction(operand.strip("()"))
        if sign == "*":
            term *= number
        elif sign == "/":
            if not number:
                return None
            term /= number
        else:
            total, term = total + term, number if sign == "+" else -number
    return total + term


def _run_sql(database: ReadOnlyDatabase, sql: str) -> PythonOutcome:
    try:
        database.run(sql)
    except QueryError as error:
        return PythonOutcome(result="failed", detail=str(error))
    return PythonOutcome(result="passed")
