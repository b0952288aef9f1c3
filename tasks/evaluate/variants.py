"""The models that are compared, by the names that they have in a run, in the order of training."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tasks.quantise.settings import FORMATS, format_of

VARIANTS = ("base", "sft", "sft_control", "kd", "teacher")
CONTINUED = (
    "kd_continued"  # kd, trained for as long as all rounds on its own rows alone: what rounds are measured against
)
_ROUND = re.compile(r"round_(\d+)")


def round_name(number: int) -> str:
    """The student after a round, which count from 1."""
    return f"round_{number}"


def round_of(name: str) -> int | None:
    """The round that a student comes from; None of any other."""
    found = _ROUND.fullmatch(name)
    return int(found[1]) if found else None


def variants(rounds: int) -> tuple[str, ...]:
    """All of a run with so many rounds."""
    after_kd = (CONTINUED, *map(round_name, range(1, rounds + 1))) if rounds else ()
    return (*VARIANTS[:-1], *after_kd, VARIANTS[-1])


def in_order(names: Iterable[str]) -> list[str]:
    """The known variants in the order of training, each before what was quantised of it, then others as they came."""
    given = list(names)
    known = variants(max((round_of(format_of(name)[0]) or 0 for name in given), default=0))

    def place(name: str) -> tuple[int, int]:
        student, form = format_of(name)
        return known.index(student), FORMATS.index(form) + 1 if form else 0

    ours = [name for name in given if format_of(name)[0] in known]
    return sorted(ours, key=place) + [name for name in given if name not in ours]
