"""What a student took over from its teacher beside its skill: errors, refusals, length and style.

The paper leaves it open. Everything is measured beyond base: a student that made the teacher's
mistake before it was taught has not inherited it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from tasks.evaluate.heldout.predictions import is_judged
from tasks.stats.intervals import Interval, Numbers, paired_difference, wilson
from tasks.stats.significance import mcnemar
from tasks.text.refusals import is_refusal

if TYPE_CHECKING:
    import pandas as pd

_FENCE = re.compile(r"^```", re.MULTILINE)
_LIST = re.compile(r"^\s*(?:[-*+•]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_MARKDOWN = re.compile(r"^#{1,6} \S|\*\*\S[^*\n]*\*\*|^\|.*\|\s*$|\[[^\]\n]+\]\([^)\s]+\)", re.MULTILINE)
_PIECE = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


class Taken(Numbers):
    """How often a student does what the teacher did, on the rows on which the teacher did it, beyond base."""

    n: int = Field(description="rows on which the teacher did it")
    student: Interval = Field(description="share of these on which the student does it too")
    base: Interval
    excess: Interval = Field(description="student minus base, paired by row")
    p: float = Field(description="McNemar’s exact test of student against base")


class AnswerStyle(Numbers):
    """How one variant's answers look."""

    tokens: float = Field(description="mean length of an answer, in its own tokens")
    characters: float = Field(description="mean length of an answer, in characters")
    to_teacher: float | None = Field(description="its characters over the teacher's; None where that wrote none")
    to_base: float | None
    distinct_1: float = Field(description="different words over words, all answers together")
    distinct_2: float = Field(description="the same of pairs of neighbouring words")
    markdown: float = Field(description="share of answers with headings, bold, tables or links")
    lists: float = Field(description="share of answers with a list")
    code: float = Field(description="share of answers with a code fence")
    refusals: float = Field(description="share of answers that refuse")


class Inherited(Numbers):
    """One student. `errors` is None without execution; both it and `refusals` where the teacher has none."""

    errors: Taken | None
    refusals: Taken | None


def inherited(student: pd.DataFrame, base: pd.DataFrame, teacher: pd.DataFrame) -> Inherited:
    """Errors and refusals of the teacher that the student repeats; the tables hold the same rows in the same order."""
    rows = range(len(teacher))
    errors = None
    if all(map(is_judged, (student, base, teacher))):
        wrong = [i for i in rows if not teacher["correct"][i]]
        errors = _taken(
            [is_same_error(student, teacher, i) for i in wrong], [is_same_error(base, teacher, i) for i in wrong]
        )
    refused = [i for i in rows if is_refusal(teacher["generated"][i])]
    return Inherited(
        errors=errors,
        refusals=_taken(
            [is_refusal(student["generated"][i]) for i in refused], [is_refusal(base["generated"][i]) for i in refused]
        ),
    )


def is_same_error(ours: pd.DataFrame, teacher: pd.DataFrame, row: int) -> bool:
    """Whether both are wrong in the same way: the same wrong result, or the same text but for case and spaces."""
    if ours["correct"][row] or teacher["correct"][row]:
        return False
    result = teacher["wrong_result"][row]
    if isinstance(result, str) and ours["wrong_result"][row] == result:
        return True
    return _normalised(ours["generated"][row]) == _normalised(teacher["generated"][row])


def styles(tables: Mapping[str, pd.DataFrame]) -> dict[str, AnswerStyle]:
    """Every variant's style; lengths also as ratios to the teacher's and to base's on the same rows."""
    characters = {name: float(table["generated"].str.len().mean()) for name, table in tables.items()}
    return {
        name: _style(table, characters[name], characters.get("teacher"), characters.get("base"))
        for name, table in tables.items()
    }


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words over all of them (distinct-n, Li et al. 2016); NaN where there are none.

    A CJK text has no spaces: its characters count as words.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def _taken(student: Sequence[bool], base: Sequence[bool]) -> Taken | None:
    if not student:
        return None
    difference = paired_difference(student, base)
    assert difference.gained is not None
    assert difference.lost is not None
    n = len(student)
    return Taken(
        n=n,
        student=wilson(sum(student) / n, n),
        base=wilson(sum(base) / n, n),
        excess=difference.interval,
        p=mcnemar(difference.gained, difference.lost),
    )


def _style(table: pd.DataFrame, characters: float, of_teacher: float | None, of_base: float | None) -> AnswerStyle:
    texts = table["generated"].tolist()

    def share(pattern: re.Pattern[str]) -> float:
        return sum(bool(pattern.search(text)) for text in texts) / len(texts)

    return AnswerStyle(
        tokens=float(table["generated_tokens"].mean()),
        characters=characters,
        to_teacher=characters / of_teacher if of_teacher else None,
        to_base=characters / of_base if of_base else None,
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        markdown=share(_MARKDOWN),
        lists=share(_LIST),
        code=share(_FENCE),
        refusals=sum(map(is_refusal, texts)) / len(texts),
    )


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words: list[str] = []
    for piece in _PIECE.findall(text.lower()):
        words.extend(piece if "\u3040" <= piece[0] <= "\u9fff" else [piece])
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
