"""Several runs side by side: which student is best, and which is as good for less.

All students of a sweep answer the same held-out requests, so they are compared request by request where answers
were checked, and by the distance to the teacher's distribution where they were not.
"""

from __future__ import annotations

from typing import Any

from tasks.evaluate.statistics import paired_difference
from tasks.report import repeats
from tasks.report.comparison import compare, nats, percent, percent_range, points, points_range
from tasks.report.entry import Entry
from tasks.report.plots import duration


def ranked(entries: list[Entry]) -> list[Entry]:
    """The best first, failed ones last: by accuracy where all were checked, else by cross-entropy."""
    finished = [entry for entry in entries if entry.data]
    checked = all(_kd(entry).exec_accuracy is not None for entry in finished)

    def quality(entry: Entry) -> tuple[float, float]:
        kd = _kd(entry)
        return (-(kd.exec_accuracy or 0.0) if checked else 0.0, kd.cross_entropy)

    return [*sorted(finished, key=quality), *(entry for entry in entries if not entry.data)]


def verdict(entries: list[Entry]) -> str:
    """The sentence that comes first: the best, and the cheapest that cannot be told from it."""
    finished = [entry for entry in ranked(entries) if entry.data]
    failed = len(entries) - len(finished)
    note = f" {failed} of {len(entries)} combinations failed." if failed else ""
    if not finished:
        return f"No combination finished.{note}"
    if over_seeds := repeats.combinations(finished):
        return repeats.verdict(over_seeds) + note
    best = finished[0]
    kd = _kd(best)
    if kd.exec_accuracy is None:
        shown = f"its cross-entropy is {nats(kd.cross_entropy)} nats a token; no answer was checked"
        return f"{best.name} predicts held-out responses best: {shown}.{note}"
    shown = f"{percent(kd.exec_accuracy)} of {kd.n:,} held-out requests answered correctly"
    as_good = [entry for entry in finished[1:] if _cannot_be_told(best, entry)]
    cheapest = min([best, *as_good], key=lambda entry: entry.device_seconds)
    if cheapest is best:
        tail = "; none of the others is as good for less" if len(finished) > 1 else ""
        return f"{best.name} is best: {shown}{tail}.{note}"
    share = cheapest.device_seconds / best.device_seconds
    return (
        f"{best.name} is best: {shown}; {cheapest.name} cannot be told from it ({percent(_accuracy(cheapest))}) "
        f"at {share:.0%} of its device time.{note}"
    )


def rows(entries: list[Entry]) -> list[dict[str, str]]:
    """The leaderboard as text, one dict an entry with the same columns."""
    return [_row(place, entry) for place, entry in enumerate(ranked(entries), 1)]


def over_seeds(entries: list[Entry]) -> list[dict[str, str]]:
    """The combinations over their seeds as text; nothing where no combination has two."""
    return repeats.rows(repeats.combinations(entries))


def _row(place: int, entry: Entry) -> dict[str, str]:
    columns = ("accuracy", "95 % interval", "against SFT control", "cross-entropy", "KL to teacher")
    cells = {"#": str(place), "combination": entry.name, **dict.fromkeys(columns, "–")}
    if entry.data is None:
        return {**cells, "#": "–", "device time": "–", "API cost": "–", "outcome": f"failed: {entry.failed}"}
    compared = {row.name: row for row in compare(entry.data)}["kd"]
    if compared.accuracy:
        cells |= {"accuracy": percent(compared.accuracy.estimate), "95 % interval": percent_range(compared.accuracy)}
    if compared.against_control:
        gain = compared.against_control.interval
        cells["against SFT control"] = f"{points(gain.estimate)} ({points_range(gain)})"
    cells |= {
        "cross-entropy": nats(compared.variant.cross_entropy),
        "KL to teacher": nats(compared.variant.kl_to_teacher),
        "device time": duration(entry.device_seconds),
        "API cost": f"${entry.usd:,.2f}",
        "outcome": "finished",
    }
    return cells


def _cannot_be_told(best: Entry, other: Entry) -> bool:
    ours, theirs = _kd(best).correct, _kd(other).correct
    if ours is None or theirs is None or len(ours) != len(theirs):
        return False
    return not paired_difference(ours, theirs).interval.excludes_zero


def _kd(entry: Entry) -> Any:
    assert entry.data is not None
    return entry.data.variants["kd"]


def _accuracy(entry: Entry) -> float:
    accuracy: float = _kd(entry).exec_accuracy
    return accuracy
