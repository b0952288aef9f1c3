"""Runs of one combination that differ in their seed alone, taken together: what another seed would give.

The interval of one run is over held-out requests and says nothing of the training's own luck; this one is over
seeds. Two combinations are compared seed by seed where both have the same seeds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.report.comparison import CONTROL, nats, percent, points, points_range
from tasks.report.data import Variant
from tasks.report.figures.run import duration
from tasks.report.leaderboard.entry import Entry
from tasks.stats.intervals import OverSeeds, over_seeds

MeasureOf = Callable[[Entry], float | None]


@dataclass(frozen=True)
class Combination:
    """Finished runs, one a seed. What was not measured in each of them is None."""

    name: str
    runs: tuple[Entry, ...]

    @property
    def accuracy(self) -> OverSeeds | None:
        return self._over_seeds(_accuracy)

    @property
    def gain(self) -> OverSeeds | None:
        """Accuracy of SFT + KD minus that of the SFT control of the same run."""
        return self._over_seeds(_gain)

    @property
    def cross_entropy(self) -> OverSeeds:
        return over_seeds([_variant(run, "kd").cross_entropy for run in self.runs])

    @property
    def kl_to_teacher(self) -> OverSeeds | None:
        """None without a teacher to compare with."""
        found = [value for run in self.runs if (value := _variant(run, "kd").kl_to_teacher) is not None]
        return over_seeds(found) if len(found) == len(self.runs) else None

    @property
    def device_seconds(self) -> float:
        """Of one run, on average."""
        return statistics.mean(run.device_seconds for run in self.runs)

    @property
    def usd(self) -> float:
        """Of one run, on average."""
        return statistics.mean(run.usd for run in self.runs)

    def differs_from(self, other: Combination) -> bool:
        """Whether the accuracies, paired by seed, differ by more than their spread over seeds."""
        ours, theirs = ({run.seed: _accuracy(run) for run in side.runs} for side in (self, other))
        pairs = [(ours[seed], theirs[seed]) for seed in ours.keys() & theirs.keys()]
        differences = [one - two for one, two in pairs if one is not None and two is not None]
        found = over_seeds(differences) if differences else None
        return found is not None and found.interval is not None and found.interval.excludes_zero

    def _over_seeds(self, measure: MeasureOf) -> OverSeeds | None:
        values = [value for run in self.runs if (value := measure(run)) is not None]
        return over_seeds(values) if len(values) == len(self.runs) else None


def combinations(entries: Sequence[Entry]) -> list[Combination]:
    """The finished runs by what they are apart from their seed, best first; empty where none has two seeds."""
    runs: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.data is not None:
            runs.setdefault(entry.combination or entry.name, []).append(entry)
    found = [Combination(name, tuple(of)) for name, of in runs.items()]
    if all(len(combination.runs) < 2 for combination in found):
        return []
    checked = all(combination.accuracy for combination in found)

    def quality(combination: Combination) -> tuple[float, float]:
        accuracy = combination.accuracy
        return (-accuracy.mean if checked and accuracy else 0.0, combination.cross_entropy.mean)

    return sorted(found, key=quality)


def verdict(found: Sequence[Combination]) -> str:
    """The first one, whether KD helped it whatever the seed, and what is not significantly worse."""
    best, *others = found
    seeds = f"{len(best.runs)} seeds" if len(best.runs) > 1 else "one seed"
    if best.accuracy is None:
        shown = f"{spread(best.cross_entropy, nats)} nats a token"
        return f"{best.name} has the lowest cross-entropy over {seeds}, {shown}; no answer was checked."
    n = _variant(best.runs[0], "kd").n
    sentence = f"{best.name} has the most right answers over {seeds}: {_percent(best.accuracy)} of {n:,} held-out "
    sentence += f"requests{_gained(best.gain)}"
    as_good = [other for other in others if not best.differs_from(other)]
    if others and not as_good:
        return f"{sentence}; that is more than each of the others has, by more than their spread over seeds."
    cheapest = min([best, *as_good], key=lambda combination: combination.device_seconds)
    if as_good:
        verb = "is" if len(as_good) == 1 else "are"
        sentence += f"; {', '.join(other.name for other in as_good)} {verb} not significantly worse"
    if cheapest is not best and cheapest.accuracy:
        share = cheapest.device_seconds / best.device_seconds
        sentence += f", and {cheapest.name} ({_percent(cheapest.accuracy)}) took {share:.0%} of its device time"
    return sentence + "."


def rows(found: Sequence[Combination]) -> list[dict[str, str]]:
    """The combinations as text, one dict each with the same columns: mean ± standard deviation, 95 % interval."""
    return [
        {
            "#": str(place),
            "combination": combination.name,
            "seeds": str(len(combination.runs)),
            "accuracy": _percent(combination.accuracy) if combination.accuracy else "–",
            "gain over SFT control": _with_interval(combination.gain) if combination.gain else "–",
            "device time": duration(combination.device_seconds),
            "API cost": f"${combination.usd:,.2f}",
            "cross-entropy": spread(combination.cross_entropy, nats),
            "KL to teacher": spread(combination.kl_to_teacher, nats) if combination.kl_to_teacher else "–",
        }
        for place, combination in enumerate(found, 1)
    ]


def spread(value: OverSeeds, shown: Callable[[float], str]) -> str:
    """Mean ± standard deviation; the mean alone where there is one run."""
    return shown(value.mean) if value.runs < 2 else f"{shown(value.mean)} ± {shown(value.deviation)}"


def _percent(value: OverSeeds) -> str:
    return percent(value.mean) if value.runs < 2 else f"{100 * value.mean:.1f} ± {percent(value.deviation)}"


def _with_interval(gain: OverSeeds) -> str:
    return f"{points(gain.mean)} ({points_range(gain.interval)})" if gain.interval else points(gain.mean)


def _gained(gain: OverSeeds | None) -> str:
    if gain is None or gain.interval is None:
        return ""
    interval = f"{points(gain.mean)} points, 95 % interval over seeds {points_range(gain.interval)}"
    if not gain.interval.excludes_zero:
        return f"; no significant difference to the same training without the teacher’s logits ({interval})"
    return f", {'more' if gain.mean > 0 else 'fewer'} than without the teacher’s logits ({interval})"


def _variant(run: Entry, name: str) -> Variant:
    assert run.data is not None
    return run.data.variants[name]


def _accuracy(run: Entry) -> float | None:
    return _variant(run, "kd").exec_accuracy


def _gain(run: Entry) -> float | None:
    ours, theirs = _accuracy(run), _variant(run, CONTROL).exec_accuracy
    return None if ours is None or theirs is None else ours - theirs
