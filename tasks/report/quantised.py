"""Quantised students beside the one that they are made of: what each loses, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from infra.store.artifacts import Record
from tasks.evaluate.heldout.predictions import per_row, perplexity
from tasks.quantise.settings import bits, format_of
from tasks.quantise.stage import KIND
from tasks.report.comparison import difference, nats, points, points_range
from tasks.report.data import QuantisedStudent, ReportData
from tasks.stats.intervals import Interval, bootstrapped_difference

if TYPE_CHECKING:
    import pandas as pd

REMARK = (
    "Of a GGUF file the weights that it holds are evaluated, as transformers computes them; llama.cpp rounds what "
    "comes into a layer as well, and gives the next tokens of one answer as often alike as the table says."
)


def gather(records: Mapping[str, Record], tables: Mapping[str, pd.DataFrame]) -> list[QuantisedStudent]:
    """Those of the run, from their records and the predictions on the same rows in the same order."""
    found = []
    for name, record in records.items():
        student, form = format_of(name)
        if record.kind != KIND or form is None:
            continue
        ours, theirs = per_row(tables[name]), per_row(tables[student])
        found.append(
            QuantisedStudent(
                variant=name,
                student=student,
                format=form,
                size=record.counts["bytes"],
                student_size=record.counts["student_bytes"],
                quantised=record.counts["quantised"],
                fell_back=record.counts.get("fell_back", 0),
                agreed=record.facts.get("agreed"),
                tokens=record.facts.get("tokens"),
                cross_entropy=bootstrapped_difference(ours["cross_entropy"], theirs["cross_entropy"]),
                kl_to_teacher=bootstrapped_difference(ours["kl_to_teacher"], theirs["kl_to_teacher"]),
            )
        )
    return found


def rows(data: ReportData) -> list[dict[str, str]]:
    """One a quantised student, with the same columns; differences are to the student it is made of."""
    found = []
    for one in data.quantised:
        ours, theirs = data.variants[one.variant], data.variants[one.student]
        gained = difference(ours, theirs)
        cells = {"variant": ours.label, "size": f"{one.size / 1e6:,.1f} MB ({one.size / one.student_size:.0%})"}
        if gained:
            cells["exec accuracy"] = f"{points(gained.interval.estimate)} ({points_range(gained.interval)})"
        cells["cross-entropy"] = _signed(one.cross_entropy)
        cells["perplexity"] = f"{perplexity(ours.cross_entropy):.2f} (of {perplexity(theirs.cross_entropy):.2f})"
        cells["KL to teacher"] = _signed(one.kl_to_teacher)
        cells["in more bits"] = f"{one.fell_back} of {one.quantised}" if one.fell_back else "–"
        cells["alike in llama.cpp"] = f"{one.agreed} of {one.tokens}" if one.tokens else "–"
        found.append(cells)
    return found


def sentences(data: ReportData, only: str | None = None) -> list[str]:
    """For each (or `only` one), whether it loses beyond noise: it is then not to be shipped, or not unseen."""
    return [_sentence(data, one) for one in data.quantised if only in (None, one.variant)]


def _sentence(data: ReportData, one: QuantisedStudent) -> str:
    ours, theirs = data.variants[one.variant], data.variants[one.student]
    more = f"; {one.fell_back:,} of {one.quantised:,} matrices in more" if one.fell_back else ""
    how = f"At {bits(one.format)} bits ({one.format.upper()}{more}) {theirs.label}"
    if gained := difference(ours, theirs):
        found, interval = gained.interval, f"95 % interval {points_range(gained.interval)}"
        if found.high < 0:
            points_lost = f"{100 * -found.estimate:.1f} points of execution accuracy"
            return f"{how} loses {points_lost}, {interval}: do not ship that."
        verb = "gains" if found.low > 0 else "loses nothing beyond noise:"
        return f"{how} {verb} {points(found.estimate)} points of execution accuracy, {interval}."
    lost = one.cross_entropy
    if not math.isfinite(lost.estimate):
        return f"{how} cannot be judged: its cross-entropy is not a number. Do not ship that."
    figures = f"{_signed(lost)} nats a token of cross-entropy"
    if lost.low > 0:
        return f"{how} loses beyond noise: {figures}. No answer was checked: do not ship that before you read some."
    return f"{how} loses nothing beyond noise: {figures}. No answer was checked."


def _signed(found: Interval) -> str:
    low, estimate, high = (
        nats(value) if value < 0 else f"+{nats(value)}" for value in (found.low, found.estimate, found.high)
    )
    return f"{estimate} ({low} to {high})".replace("-", "−")
