"""What counts as the answer in what a model writes, and as the code in an answer: one notion for all who judge it.

Verification, evaluation, judges, length and benchmarks all see `answer_of`, and all that runs code sees `code_in`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKS = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>")),
    *(("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷")),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
THOUGHT_ENDS = frozenset(closing for _opening, closing in _MARKS)
THOUGHT_MARKS = frozenset(mark for pair in _MARKS for mark in pair)
# No character can belong to two parts: hostile text would take quadratic time.
_FENCED = re.compile(r"```([\w+-]*)(?:[^\w+\-\n`][^\n`]*)?\n(.*?)(?:```|\Z)", re.DOTALL)
SQL = ("sql", "sqlite", "postgresql", "postgres", "mysql")


def answer_of(text: str, *, may_begin_within: bool = True) -> str:
    """A model's output without the thought that precedes its answer; empty where the thought never ended.

    Templates may open the thought themselves: then the output begins within it, and a line's end follows its mark.
    """
    for opening, closing in _MARKS:
        thought, ended, answer = text.partition(closing)
        if text.lstrip().startswith(opening):
            return answer.lstrip()
        if may_begin_within and ended and opening not in thought and answer[:1] in ("", "\n"):
            return answer.lstrip()
    return text


def fences(answer: str) -> list[tuple[str, str]]:
    """Language (in lower case, often empty) and code of each fenced block."""
    return [(language.lower(), code) for language, code in _FENCED.findall(answer)]


def code_in(answer: str, languages: Sequence[str] = ()) -> str:
    """The code in an answer: its first fenced block in one of these languages, else its first, else all of it."""
    blocks = fences(answer)
    of_language = [code for language, code in blocks if language in languages]
    return next(iter([*of_language, *(code for _language, code in blocks)]), answer).strip()


def sql_in(text: str) -> str:
    """The query in a model's text or in a reference: what is run, whoever runs it."""
    return code_in(answer_of(text), SQL)


def without_fences(answer: str) -> str:
    """The words around the code."""
    return _FENCED.sub(" ", answer)
