"""Several runs side by side: which student is best, and which is as good for less.

All students of a sweep answer the same held-out requests, so they are compared request by request where answers
were checked, and by the distance to the teacher's distribution where they were not.
"""

from __future__ import annotations

from typing import Any

from tasks.report.comparison import compare, nats, percent, percent_range, points, points_range
from tasks.report.figures.run import duration
from tasks.report.leaderboard import seeds
from tasks.report.leaderboard.entry import Entry
from tasks.stats.intervals import paired_difference
from tasks.stats.significance import ALPHA, holm, mcnemar

_NAMED = 3
COLUMNS = (
    "accuracy",
    "95 % interval",
    "gain over SFT control",
    "device time",
    "API cost",
    "cross-entropy",
    "KL to teacher",
)


def ranked(entries: list[Entry]) -> list[Entry]:
    """The best first, failed ones last: by accuracy where all were checked, else by cross-entropy."""
    finished = [entry for entry in entries if entry.data]
    checked = len(_checked(finished)) == len(finished)

    def quality(entry: Entry) -> tuple[float, float]:
        kd = _kd(entry)
        return (-(kd.exec_accuracy or 0.0) if checked else 0.0, kd.cross_entropy)

    return [*sorted(finished, key=quality), *(entry for entry in entries if not entry.data)]


def verdict(entries: list[Entry]) -> str:
    """The sentence that comes first: the best where tests bear it out, and the cheapest that is as good."""
    finished = [entry for entry in ranked(entries) if entry.data]
    failed = len(entries) - len(finished)
    note = f" {failed} of {len(entries)} combinations failed." if failed else ""
    if not finished:
        return f"No combination finished.{note}"
    if over_seeds := seeds.combinations(finished):
        return seeds.verdict(over_seeds) + note
    best, *others = finished
    kd = _kd(best)
    if len(checked := _checked(finished)) < len(finished):
        which = f"answers of {len(checked)} of {len(finished)} were checked" if checked else "no answer was checked"
        shown = f"{nats(kd.cross_entropy)} nats a token; {which}, and no difference is tested"
        return f"{best.name} has the lowest cross-entropy, {shown}.{note}"
    shown = f"{percent(kd.exec_accuracy)} of {kd.n:,} held-out requests"
    if not others:
        return f"{best.name} answers {shown} correctly.{note}"
    if not (as_good := _as_good(best, others)):
        return (
            f"{best.name} is best: it answers {shown} correctly, significantly more than each of the others "
            f"(McNemar’s exact test, corrected over {len(others)}).{note}"
        )
    cheapest = min([best, *as_good], key=lambda entry: entry.device_seconds)
    among = ", ".join(entry.name for entry in as_good[:_NAMED])
    among += f" and {len(as_good) - _NAMED} more" if len(as_good) > _NAMED else ""
    most = "answers most" if _accuracy(best) > max(map(_accuracy, others)) else "answers as many as any"
    sentence = f"No combination is significantly the best: {best.name} {most} ({shown} correctly), and {among} "
    sentence += f"{'is' if len(as_good) == 1 else 'are'} not significantly worse"
    if cheapest is best:
        return f"{sentence}; it took the least device time of these.{note}"
    share = cheapest.device_seconds / best.device_seconds
    return (
        f"{sentence}; of these {cheapest.name} ({percent(_accuracy(cheapest))}) took the least device time, "
        f"{share:.0%} of {best.name}’s.{note}"
    )


def rows(entries: list[Entry]) -> list[dict[str, str]]:
    """The leaderboard as text, one dict an entry with the same columns."""
    return [_row(place, entry) for place, entry in enumerate(ranked(entries), 1)]


def over_seeds(entries: list[Entry]) -> list[dict[str, str]]:
    """The combinations over their seeds as text; nothing where no combination has two."""
    return seeds.rows(seeds.combinations(entries))


def _row(place: int, entry: Entry) -> dict[str, str]:
    cells = {"#": str(place), "combination": entry.name, **dict.fromkeys(COLUMNS, "–")}
    if entry.data is None:
        return {**cells, "#": "–", "outcome": f"failed: {entry.failed}"}
    compared = {row.name: row for row in compare(entry.data)}["kd"]
    if compared.accuracy:
        cells |= {"accuracy": percent(compared.accuracy.estimate), "95 % interval": percent_range(compared.accuracy)}
    if compared.against_control:
        gain = compared.against_control.interval
        cells["gain over SFT control"] = f"{points(gain.estimate)} ({points_range(gain)})"
    cells |= {
        "device time": duration(entry.device_seconds),
        "API cost": f"${entry.usd:,.2f}",
        "cross-entropy": nats(compared.variant.cross_entropy),
        "KL to teacher": nats(compared.variant.kl_to_teacher),
        "outcome": "finished",
    }
    return cells


def _as_good(best: Entry, others: list[Entry]) -> list[Entry]:
    """Those of the others that no test tells from the best one, corrected for how many are made."""
    tested: dict[int, float] = {}
    for place, other in enumerate(others):
        ours, theirs = _kd(best).correct, _kd(other).correct
        if ours is not None and theirs is not None and len(ours) == len(theirs):
            difference = paired_difference(ours, theirs)
            tested[place] = mcnemar(difference.gained or 0, difference.lost or 0)
    different = {place for place, p in zip(tested, holm(list(tested.values())), strict=True) if p < ALPHA}
    return [other for place, other in enumerate(others) if place not in different]


def _checked(finished: list[Entry]) -> list[Entry]:
    """Those whose answers were run: without them all there is no order by accuracy."""
    return [entry for entry in finished if _kd(entry).exec_accuracy is not None]


def _kd(entry: Entry) -> Any:
    assert entry.data is not None
    return entry.data.variants["kd"]


def _accuracy(entry: Entry) -> float:
    accuracy: float = _kd(entry).exec_accuracy
    return accuracy
