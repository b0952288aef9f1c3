"""The planted questions as rows, and others to hide them among."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tasks.rows import Row
from tests.support.leaks import ANSWERS, LANGUAGES, QUESTIONS
from tests.support.words import WORDS


def heldout_rows() -> list[Row]:
    return [Row(instruction=forms[0], response=said[0]) for forms, said in zip(QUESTIONS, ANSWERS, strict=True)]


def retold_rows() -> list[Row]:
    return [Row(instruction=forms[3], response=said[1]) for forms, said in zip(QUESTIONS, ANSWERS, strict=True)]


def translated_rows() -> list[Row]:
    of_all = zip(QUESTIONS, ANSWERS, LANGUAGES, strict=True)
    return [Row(instruction=forms[4], response=said[2], language=language) for forms, said, language in of_all]


def others_with_their_words(count: int, seed: int) -> Iterator[Row]:
    """Rows in each of the languages, one word in twenty from the planted rows of that language."""
    dice = random.Random(seed)
    theirs: dict[str, list[str]] = {}
    for row in (*heldout_rows(), *retold_rows(), *translated_rows()):
        whole = f"{row.instruction} {row.response}"
        theirs.setdefault(row.language, []).extend(whole.replace(" ", "") if row.language == "zh" else whole.split())
    signs = [chr(code) for code in range(0x4E00, 0x5400)]
    for _ in range(count):
        language = dice.choice(["en", "en", *theirs])
        between, own = ("", signs) if language == "zh" else (" ", WORDS)
        question, answer = (
            between.join(dice.choice(theirs[language] if dice.random() < 1 / 20 else own) for _ in range(size))
            for size in (15, 40)
        )
        yield Row(instruction=question, response=answer, language=language)
