"""What an experiment recommends, in words: chosen on one part of the held-out rows, quoted on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report.comparison import nats, percent, percent_range, points, points_range
from tasks.report.experiment.arms import MEASURES, ArmResult, Measure, rows_of
from tasks.report.experiment.question import ExperimentQuestion
from tasks.stats.intervals import Interval

ABOUT = 1.1  # costs that differ by less are told apart by nobody: times vary as much


@dataclass(frozen=True)
class Saturation:
    """Share of wrong answers after n rows: floor + scale · n^−exponent, fitted by least squares."""

    floor: float
    scale: float
    exponent: float

    def share_right(self, rows: float) -> float:
        return 1 - self.floor - self.scale * rows**-self.exponent

    def enough(self, worth: float) -> float:
        """Rows from which on doubling them gains less than `worth`."""
        gain_of_one = self.scale * (1 - 2**-self.exponent)
        return float((gain_of_one / worth) ** (1 / self.exponent)) if worth > 0 else math.inf


def measure_of(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> Measure:
    """What the arms are compared by: the question's measure where all of them have it."""
    wanted: tuple[Measure, ...] = (question.measure, question.unchecked)
    return next((measure for measure in wanted if all(arm.has(measure) for arm in arms)), "cross_entropy")


def in_order_of_preference(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> list[ArmResult]:
    """The arms from the one that costs least; as they are listed where they cost the same, or where that is asked."""
    if question.prefer == "listed":
        return list(arms)
    cost = question.prefer
    return sorted(arms, key=lambda arm: arm.cost(cost))


def recommended(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> ArmResult:
    """The first in order of preference that no other beats by more than `worth`, as far as 95 % intervals tell.

    Where others of these cost about as little (within a tenth: times vary as much), the best of them. Only rows of the
    choosing part are looked at.
    """
    measure, ordered = measure_of(question, arms), in_order_of_preference(question, arms)

    def is_beaten(arm: ArmResult) -> bool:
        others = (other for other in ordered if other is not arm)
        return any(_gain(other.against(arm, measure, "choosing"), measure).low > question.worth for other in others)

    unbeaten = [arm for arm in ordered if not is_beaten(arm)]
    if not unbeaten:
        return best(arms, measure)
    cost = question.prefer
    if cost == "listed":
        return unbeaten[0]
    return best([arm for arm in unbeaten if arm.cost(cost) <= ABOUT * unbeaten[0].cost(cost)], measure)


def best(arms: Sequence[ArmResult], measure: Measure) -> ArmResult:
    """The arm with the best mean on the choosing part."""
    sign = -1 if MEASURES[measure].less_is_better else 1
    return max(arms, key=lambda arm: _finite(sign * arm.interval(measure, "choosing").estimate))


def verdict(question: ExperimentQuestion, arms: Sequence[ArmResult], failed: int = 0) -> str:
    """The sentence that comes first."""
    note = f" {failed} {'run' if failed == 1 else 'runs'} failed." if failed else ""
    if not arms:
        return f"No arm finished.{note}"
    if len(arms) == 1:
        return f"Only {arms[0].name} finished: there is nothing to compare it with.{note}"
    if question.asks == "trend":
        return _trend(question, arms) + note
    sentence = _which(question, arms)
    if question.asks == "saturation" and (fitted := saturation(question, arms)):
        sentence += _where_it_ends(question, arms, fitted)
    return sentence + note


def saturation(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> Saturation | None:
    """The fitted curve over the training rows of each arm; None of shares alone, of three arms at least, or no fit."""
    from scipy.optimize import curve_fit

    measure = measure_of(question, arms)
    if measure != "exec_accuracy" or len({arm.cost("rows") for arm in arms}) < 3:
        return None
    points_AX = [(arm.cost("rows"), 1 - value.value) for arm in arms for value in arm.values(measure, "quoted")]
    rows, wrong = ([point[side] for point in points_AX] for side in (0, 1))
    scale = min(rows)

    def curve(n: float, floor: float, at_least: float, exponent: float) -> float:
        return floor + at_least * (n / scale) ** -exponent

    try:
        (floor, at_least, exponent), _ = curve_fit(
            curve, rows, wrong, p0=(min(wrong) / 2, max(wrong) / 2, 0.5), bounds=([0, 0, 0.01], [1, 1, 3])
        )
    except RuntimeError:  # it does not converge
        return None
    return Saturation(float(floor), float(at_least * scale**exponent), float(exponent))


def shown(value: Interval, measure: Measure, *, difference: bool = False) -> str:
    """A value or a difference with its interval, as texts give it."""
    if not math.isfinite(value.estimate):
        return "not a number"
    if not MEASURES[measure].is_share:
        sign = "+" if difference else ""
        figures = [f"{one:{sign}.3f}".replace("-", "−") for one in (value.estimate, value.low, value.high)]
        return f"{figures[0]} ({figures[1]} to {figures[2]})"
    if difference or measure == "gain":
        return f"{points(value.estimate)} points ({points_range(value)})"
    return f"{percent(value.estimate)} ({percent_range(value)})"


def _which(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> str:
    measure, ordered = measure_of(question, arms), in_order_of_preference(question, arms)
    chosen = recommended(question, arms)
    rows = len(rows_of("quoted", chosen.row_ids))
    worth = points(question.worth).lstrip("+") + " points" if MEASURES[measure].is_share else nats(question.worth)
    sentence = f"Take {chosen.name}: no other is better by more than {worth}"
    if chosen is not ordered[0]:
        first = ordered[0]
        loss = shown(first.against(chosen, measure, "quoted"), measure, difference=True)
        what = "which was there before"
        if (cost := question.prefer) != "listed":
            is_near = chosen.cost(cost) <= ABOUT * first.cost(cost)
            what = "which costs about as much" if is_near else "which costs least"
        sentence += f", and {first.name}, {what}, differs by {loss}"
    of_chosen = shown(chosen.interval(measure, "quoted"), measure)
    sentence += f". On {rows:,} held-out rows that the choice did not see: {of_chosen} {MEASURES[measure].name}"
    others = [arm for arm in arms if arm is not chosen]
    rival = best(others, measure)
    difference = shown(rival.against(chosen, measure, "quoted"), measure, difference=True)
    return f"{sentence}; {rival.name}, the best of the others, {difference}."


def _trend(question: ExperimentQuestion, arms: Sequence[ArmResult]) -> str:
    measure, first, last = measure_of(question, arms), arms[0], arms[-1]
    difference = last.against(first, measure, "quoted")
    ends = (f"{arm.name} {shown(arm.interval(measure, 'quoted'), measure)}" for arm in (first, last))
    words = f"{MEASURES[measure].name[0].upper()}{MEASURES[measure].name[1:]}: {', '.join(ends)}"
    change = shown(difference, measure, difference=True)
    if not difference.excludes_zero:
        return f"No significant trend. {words}; a difference of {change}."
    return f"It {'grows' if difference.estimate > 0 else 'falls'} from {first.name} to {last.name}. {words}: {change}."


def _where_it_ends(question: ExperimentQuestion, arms: Sequence[ArmResult], fitted: Saturation) -> str:
    seen, enough = max(arm.cost("rows") for arm in arms), fitted.enough(question.worth)
    worth = points(question.worth).lstrip("+")
    limit = percent(1 - fitted.floor)
    if enough <= seen:
        where = f"from {enough:,.0f} rows on, twice as many gain less than {worth} points"
    else:
        gain = points(fitted.share_right(2 * seen) - fitted.share_right(seen))
        where = f"twice the most that was tried would gain {gain} points"
    return f" By the fitted curve (towards {limit}) {where}."


def _gain(difference: Interval, measure: Measure) -> Interval:
    """How much better: of a measure of which less is better, the difference turned round."""
    if not MEASURES[measure].less_is_better:
        return difference
    return Interval(-difference.estimate, -difference.high, -difference.low)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
