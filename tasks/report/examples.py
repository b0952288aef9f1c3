"""The held-out requests whose answers are shown: some at random, and beside them those that decide."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tasks.report.comparison import CONTROL, compare
from tasks.report.data import Chosen, Output, ReportData, ShownExample

if TYPE_CHECKING:
    import pandas as pd

_AT_RANDOM, _EACH = 6, 3  # requests at random, and of each side of those that decide


def choose(tables: Mapping[str, pd.DataFrame]) -> list[ShownExample]:
    """At random first, then of the others those on which KD is better than its control, and those on which it is worse.

    Better is right and not wrong; where answers are not checked, what has the lower loss on the reference: the widest
    gaps are shown. The draw goes by the rows' ids, so it is the same in every run on the same rows.
    """
    kd, control = tables["kd"], tables[CONTROL]
    order = sorted(range(len(kd)), key=lambda row: _draw(kd["row_id"][row]))
    at_random, others = order[:_AT_RANDOM], order[_AT_RANDOM:]
    if kd["correct"].isna().any() or control["correct"].isna().any():
        gain = control["nll"] / control["response_tokens"] - kd["nll"] / kd["response_tokens"]
    else:
        gain = kd["correct"].astype(int) - control["correct"].astype(int)
    chosen: dict[Chosen, list[int]] = {
        "at random": at_random,
        "better with kd": [row for row in sorted(others, key=lambda row: -gain[row]) if gain[row] > 0][:_EACH],
        "better with control": [row for row in sorted(others, key=lambda row: gain[row]) if gain[row] < 0][:_EACH],
    }
    return [_example(tables, row, why) for why, rows in chosen.items() for row in rows]


def groups(data: ReportData) -> list[tuple[str, str, list[ShownExample]]]:
    """The examples by how they were chosen: title, how that was, and the examples."""
    found: dict[Chosen, list[ShownExample]] = {}
    for example in data.examples:
        found.setdefault(example.chosen, []).append(example)
    return [(*_said(data, why, len(examples)), examples) for why, examples in found.items()]


def _said(data: ReportData, why: Chosen, shown: int) -> tuple[str, str]:
    if why == "at random":
        of = max((variant.n for variant in data.variants.values()), default=shown)
        return "At random", f"{shown} of the {of:,} held-out requests, drawn by their ids: what the answers are like."
    names = [data.variants[name].label if name in data.variants else name for name in ("kd", CONTROL)]
    better, worse = names if why == "better with kd" else reversed(names)
    against = {row.name: row for row in compare(data)}["kd"].against_control if "kd" in data.variants else None
    if against is None or against.gained is None or against.lost is None:
        return f"Better with {better}", f"The {shown} on whose reference its loss is furthest below that of {worse}."
    of = against.gained if why == "better with kd" else against.lost
    return f"Right with {better} alone", f"{shown} of the {of:,} that {better} answers correctly and {worse} does not."


def _draw(row_id: str) -> bytes:
    return hashlib.sha256(f"example {row_id}".encode()).digest()


def _example(tables: Mapping[str, pd.DataFrame], row: int, why: Chosen) -> ShownExample:
    kd = tables["kd"]
    return ShownExample(
        instruction=kd["instruction"][row],
        input=kd["input"][row],
        reference=kd["reference"][row],
        outputs={
            name: Output(text=table["generated"][row], correct=table["correct"][row]) for name, table in tables.items()
        },
        chosen=why,
    )
