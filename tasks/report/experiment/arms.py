"""The arms of an experiment: what each comes to over its seeds, and what it took.

Held-out rows are divided in two by their ids. What is recommended is chosen on one part, and the figures that are
quoted are those of the other: a choice looks good on the rows that it was made on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from infra.store.artifacts import ArtifactRef
from tasks.evaluate.analysis.inherited import is_same_error
from tasks.evaluate.heldout.predictions import per_row
from tasks.report.comparison import CONTROL
from tasks.report.data import Coverage
from tasks.stats.crossed import over_rows_and_seeds
from tasks.stats.intervals import Interval, PerRow

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["exec_accuracy", "gain", "inherited_errors", "cross_entropy", "kl_to_teacher", "top1_agreement"]
Part = Literal["choosing", "quoted"]
Tables = Mapping[str, "pd.DataFrame"]


@dataclass(frozen=True)
class MeasureInWords:
    """How a measure is called, whether less of it is better, and whether it is a share."""

    name: str
    less_is_better: bool = False
    is_share: bool = True


MEASURES: dict[Measure, MeasureInWords] = {
    "exec_accuracy": MeasureInWords("requests answered correctly"),
    "gain": MeasureInWords("gain in right answers over the same training without the teacher’s logits"),
    "inherited_errors": MeasureInWords("of the teacher’s errors those that the student makes too", True),
    "cross_entropy": MeasureInWords("cross-entropy of held-out responses, nats a token", True, False),
    "kl_to_teacher": MeasureInWords("KL to the teacher, nats a token", True, False),
    "top1_agreement": MeasureInWords("tokens on which teacher and student agree"),
}


class ArmRun(BaseModel):
    """One arm under one seed: the run's report, and which of its variants is looked at; or why there is none."""

    model_config = ConfigDict(frozen=True)

    arm: str
    seed: int
    variant: str = "kd"
    place: dict[str, Any] = Field({}, description="the arm's values, by the parameter that is varied")
    report: ArtifactRef | None = None
    link: str | None = Field(None, description="the run in the Prefect UI")
    failed: str | None = None


@dataclass(frozen=True)
class ArmCost:
    """What one run of an arm took: seconds times ranks, dollars, training rows, and bytes of teacher scores.

    Of the agents' rows the shares that were left out (rejected, or given no usable answer) and that drifted to another
    category; None where no agent worked, or none looked.
    """

    device_seconds: float
    usd: float
    rows: int
    store_bytes: int
    left_out: float | None = None
    drift: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """An arm: its tables by seed, all of the same rows in the same order, and what each seed took."""

    name: str
    place: Mapping[str, Any]
    variant: str
    tables: Sequence[Tables]
    taken: Sequence[ArmCost]
    coverage: Coverage | None = None  # of the teacher's scores that it learns from
    k: int = 0  # so many of each token's

    @property
    def row_ids(self) -> list[str]:
        return list(self.tables[0][self.variant]["row_id"])

    def cost(self, of: str) -> float:
        """The mean of what its seeds took."""
        return float(np.mean([getattr(one, of) for one in self.taken]))

    def share(self, of: Literal["left_out", "drift"]) -> float | None:
        """The mean over its seeds; None where any has none."""
        found = [getattr(one, of) for one in self.taken]
        return None if None in found else float(np.mean(found))

    def has(self, measure: Measure) -> bool:
        return all(can_measure(tables, self.variant, measure) for tables in self.tables)

    def values(self, measure: Measure, part: Part) -> list[PerRow]:
        """The measure by seed, on one part of the held-out rows."""
        rows = rows_of(part, self.row_ids)
        return [measured(tables, self.variant, measure).of_rows(rows) for tables in self.tables]

    def interval(self, measure: Measure, part: Part) -> Interval:
        return over_rows_and_seeds(self.values(measure, part))

    def against(self, other: ArmResult, measure: Measure, part: Part) -> Interval:
        """Its value minus the other's, by row and seed."""
        return over_rows_and_seeds(self.values(measure, part), other.values(measure, part))


def measured(tables: Tables, variant: str, measure: Measure) -> PerRow:
    """A measure of one variant by row."""
    table = tables[variant]
    if measure == "gain":
        ours, control = (tables[name]["correct"].astype(float) for name in (variant, CONTROL))
        return PerRow.of(ours - control)
    if measure == "inherited_errors":
        teacher = tables["teacher"]
        wrong = ~teacher["correct"].astype(bool)
        same = [bool(wrong[row]) and is_same_error(table, teacher, row) for row in range(len(table))]
        return PerRow.of(same, wrong)
    return per_row(table)[measure]


def can_measure(tables: Tables, variant: str, measure: Measure) -> bool:
    """Whether answers were checked, or compared with a teacher's distributions, where the measure is about that."""
    if measure in ("kl_to_teacher", "top1_agreement"):
        return bool(tables[variant]["kl_tokens"].sum())
    if measure == "cross_entropy":
        return True
    needs = {"gain": {CONTROL}, "inherited_errors": {"teacher"}}.get(measure, set())
    return needs <= tables.keys() and all(table["correct"].notna().all() for table in tables.values())


def rows_of(part: Part, row_ids: Sequence[str]) -> list[int]:
    """The places of a part's rows: half of them, whatever their order."""
    return [place for place, row_id in enumerate(row_ids) if _part_of(row_id) == part]


def _part_of(row_id: str) -> Part:
    return "choosing" if hashlib.sha256(row_id.encode()).digest()[0] % 2 else "quoted"
