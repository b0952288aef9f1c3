"""Where a variant is good and where it is not: held-out rows by kind, and rows that are worse than with base."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import Field

from tasks.evaluate.analysis.comparisons import interval_of
from tasks.evaluate.heldout.predictions import Predictions, is_judged, per_row
from tasks.stats.intervals import Interval, Numbers

_METRICS = ("exec_accuracy", "cross_entropy", "kl_to_teacher")
_LISTED = 10


class Slice(Numbers):
    """Some of the rows. `values` holds variant → metric → value with its 95 % interval on these rows."""

    by: str = Field(description="task category, language, response length or difficulty")
    name: str
    n: int
    values: dict[str, dict[str, Interval]]


class Regression(Numbers):
    """A row on which a variant is worse than base."""

    row_id: str
    instruction: str
    input: str
    reference: str
    base: str = Field(description="what base answers")
    variant: str = Field(description="what the variant answers")
    loss_increase: float = Field(description="nats per response token")


class Regressions(Numbers):
    """Rows that base gets right and the variant wrong, and rows whose loss grew; the worst of them are listed."""

    answers: int | None = Field(description="rows right with base and wrong with the variant; None without execution")
    losses: int = Field(description="rows whose loss grew")
    n: int
    worst_answers: list[Regression]
    worst_losses: list[Regression]


def slices(tables: Mapping[str, Predictions]) -> list[Slice]:
    """Rows by task category, language, length of the reference and difficulty, with every variant's numbers.

    Length is counted in the teacher's tokens. Difficulty is the teacher's loss per token on the reference: it is
    outside of all comparisons of students, while a split by base's own loss would move base's part of every
    comparison with it (regression to the mean). Both are cut in three parts of about equal size.
    `tables` hold the same rows in the same order, the teacher's among them.
    """
    teacher = tables["teacher"]
    lengths = np.asarray(teacher["response_tokens"], float)
    loss = np.asarray(teacher["nll"], float) / lengths
    groups: dict[str, list[str]] = {
        "task category": teacher["task_category"],
        "language": teacher["language"],
        "response length": _thirds(lengths, ("short", "medium", "long"), "tokens", 0),
        "difficulty": _thirds(loss, ("easy", "middling", "hard"), "nats a token", 2),
    }
    numbers = {name: per_row(table) for name, table in tables.items()}
    found = []
    for by, of_row in groups.items():
        for name in dict.fromkeys(_in_order(by, of_row)):
            rows = [index for index, value in enumerate(of_row) if value == name]
            values = {
                variant: {
                    metric: interval_of(metric, metrics[metric].of_rows(rows))
                    for metric in _METRICS
                    if metric in metrics
                }
                for variant, metrics in numbers.items()
            }
            found.append(Slice(by=by, name=name, n=len(rows), values=values))
    return found


def regressions(variant: Predictions, base: Predictions) -> Regressions:
    """Where training made things worse; both tables hold the same rows in the same order."""
    increase = np.asarray(variant["nll"]) / np.asarray(variant["response_tokens"]) - np.asarray(
        base["nll"]
    ) / np.asarray(base["response_tokens"])
    judged = is_judged(variant) and is_judged(base)
    now_wrong = [
        index
        for index, (ours, before) in enumerate(zip(variant["correct"], base["correct"], strict=True))
        if before and ours is False
    ]
    grew = [index for index in range(len(increase)) if increase[index] > 0]

    def listed(rows: list[int]) -> list[Regression]:
        worst = sorted(rows, key=lambda index: (-increase[index], variant["row_id"][index]))[:_LISTED]
        return [
            Regression(
                row_id=variant["row_id"][index],
                instruction=variant["instruction"][index],
                input=variant["input"][index],
                reference=variant["reference"][index],
                base=base["generated"][index],
                variant=variant["generated"][index],
                loss_increase=float(increase[index]),
            )
            for index in worst
        ]

    return Regressions(
        answers=len(now_wrong) if judged else None,
        losses=len(grew),
        n=len(increase),
        worst_answers=listed(now_wrong) if judged else [],
        worst_losses=listed(grew),
    )


def _thirds(values: np.ndarray, words: tuple[str, str, str], unit: str, digits: int) -> list[str]:
    """Each value's third, named with its range; equal values are never split, so parts may differ in size."""
    edges = np.nanquantile(values, [1 / 3, 2 / 3])
    part = np.searchsorted(edges, values, side="left")
    part[np.isnan(values)] = 2
    names = {}
    for index in set(part.tolist()):
        inside = values[part == index]
        names[index] = f"{words[index]} ({inside.min():.{digits}f}–{inside.max():.{digits}f} {unit})"
    return [names[index] for index in part.tolist()]


def _in_order(by: str, of_row: list[str]) -> list[str]:
    """Names by size of the slice, but thirds from low to high."""
    if by in ("task category", "language"):
        return sorted(of_row, key=lambda name: (-of_row.count(name), name))
    words = ("short", "medium", "long", "easy", "middling", "hard")
    return sorted(of_row, key=lambda name: words.index(name.split()[0]))
