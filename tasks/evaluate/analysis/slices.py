"""Where a variant is good and where it is not: held-out rows by kind, and rows that are worse than with base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from tasks.evaluate.analysis.comparisons import interval_of
from tasks.evaluate.heldout.predictions import is_judged, per_row
from tasks.stats.intervals import Interval, Numbers

if TYPE_CHECKING:
    import pandas as pd

_METRICS = ("exec_accuracy", "cross_entropy", "kl_to_teacher")
_LISTED = 10


class Slice(Numbers):
    """Some of the rows. `values` holds variant → metric → value with its 95 % interval on these rows."""

    by: str = Field(description="task category, language, response length or the teacher’s loss")
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


def slices(tables: Mapping[str, pd.DataFrame]) -> list[Slice]:
    """Rows by task category, language, length of the reference and the teacher's loss, with every variant's numbers.

    Length is counted in the teacher's tokens. The loss is that of a token of the reference, on average: it is outside
    of all comparisons of students, while a split by base's own loss would move base's part of every comparison with it
    (regression to the mean). It is not how hard a request is: of a long answer a teacher may expect nearly every
    token, and one wrong token makes it wrong. Both are cut in three parts of about equal size.
    Without a teacher, length is in base's tokens, and nothing is split by its loss.
    `tables` hold the same rows in the same order.
    """
    one = tables["teacher" if "teacher" in tables else "base"]
    lengths = one["response_tokens"].to_numpy(float)
    groups = {
        "task category": _by_size(one["task_category"]),
        "language": _by_size(one["language"]),
        "response length": _thirds(lengths, ("short", "medium", "long"), "tokens", 0),
    }
    if "teacher" in tables:
        loss = one["nll"].to_numpy(float) / lengths
        groups["the teacher’s loss"] = _thirds(loss, ("low", "middle", "high"), "nats a token", 2)
    numbers = {name: per_row(table) for name, table in tables.items()}
    found = []
    for by, places in groups.items():
        for name, rows in places.items():
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


def regressions(variant: pd.DataFrame, base: pd.DataFrame) -> Regressions:
    """Where training made things worse; both tables hold the same rows in the same order."""
    increase = variant["nll"] / variant["response_tokens"] - base["nll"] / base["response_tokens"]
    both = variant.assign(base=base["generated"], variant=variant["generated"], loss_increase=increase)
    now_wrong = both[base["correct"].eq(True) & variant["correct"].eq(False)]
    grew = both[increase > 0]
    judged = is_judged(variant) and is_judged(base)

    def listed(rows: pd.DataFrame) -> list[Regression]:
        worst = rows.sort_values(["loss_increase", "row_id"], ascending=[False, True]).head(_LISTED)
        return [Regression(**row) for row in worst[list(Regression.model_fields)].to_dict("records")]

    return Regressions(
        answers=len(now_wrong) if judged else None,
        losses=len(grew),
        n=len(both),
        worst_answers=listed(now_wrong) if judged else [],
        worst_losses=listed(grew),
    )


def _by_size(of_row: pd.Series) -> dict[str, list[int]]:
    """Places of the rows of each name, the most frequent name first."""
    places = {str(name): list(rows) for name, rows in of_row.groupby(of_row, sort=True).indices.items()}
    return dict(sorted(places.items(), key=lambda item: -len(item[1])))


def _thirds(values: np.ndarray, words: tuple[str, str, str], unit: str, digits: int) -> dict[str, list[int]]:
    """Places of the rows of each third, named with its range; equal values are never split, so parts may differ."""
    edges = np.nanquantile(values, [1 / 3, 2 / 3])
    part = np.searchsorted(edges, values, side="left")
    part[np.isnan(values)] = 2
    found = {}
    for index in sorted(set(part.tolist())):
        inside = values[part == index]
        name = f"{words[index]} ({inside.min():.{digits}f}–{inside.max():.{digits}f} {unit})"
        found[name] = np.flatnonzero(part == index).tolist()
    return found
