"""The comparison that decides: every variant against SFT continued for as long as KD (`sft_control`).

One comparison was declared before any result was seen: SFT + KD against its control, in execution accuracy where
answers are run, else in KL to the teacher. The first sentence is about that one, by its own test, uncorrected. Whatever
else is called better, nearer or worse is so by the analysis's tests, which are corrected for how many are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.report.data import ReportData, Variant
from tasks.stats.intervals import Difference, Interval, paired_difference, unpaired_difference, wilson
from tasks.stats.significance import ALPHA, Comparison, p_words

CONTROL = "sft_control"


@dataclass(frozen=True)
class Compared:
    """One row of the comparison. `accuracy` is None without execution; `against_control` also for the control."""

    name: str
    variant: Variant
    accuracy: Interval | None
    against_control: Difference | None


def compare(data: ReportData) -> list[Compared]:
    """Every variant with its intervals, in the order of training."""
    control = data.variants.get(CONTROL)
    return [
        Compared(
            name,
            variant,
            _accuracy(variant),
            difference(variant, control) if control is not None and name != CONTROL else None,
        )
        for name, variant in data.variants.items()
    ]


def verdict(data: ReportData) -> str:
    """The sentence that comes first."""
    kd, control = data.variants.get("kd"), data.variants.get(CONTROL)
    if kd is None or control is None:
        missing = " and ".join(
            name for name, variant in (("SFT + KD", kd), ("the SFT control", control)) if variant is None
        )
        return f"No verdict: {missing} was not evaluated, and without it a gain proves nothing."
    if not all(math.isfinite(value) for value in (kd.cross_entropy, kd.kl_to_teacher or 0.0)):
        return f"Distillation failed: the training of {kd.label} diverged, its cross-entropy is not a number."
    gained = difference(kd, control)
    if gained is None:
        of = _verdict_on_loss if kd.kl_to_teacher is None else _verdict_on_distance
        return of(data, kd, control)
    return _verdict_on_accuracy(data, kd, control, gained.interval)


def comparison_rows(data: ReportData) -> list[dict[str, str]]:
    """The comparison as text, one dict a variant with the same columns: for a console or Markdown table."""
    compared = compare(data)
    with_accuracy = any(row.accuracy for row in compared)
    rows = []
    for row in compared:
        cells = {"variant": row.variant.label}
        if with_accuracy:
            cells["exec accuracy"] = percent(row.accuracy.estimate) if row.accuracy else "–"
            cells["95 % interval"] = percent_range(row.accuracy) if row.accuracy else "–"
            cells["against SFT control"] = (
                f"{points(row.against_control.interval.estimate)} ({points_range(row.against_control.interval)})"
                if row.against_control
                else "–"
            )
        cells["cross-entropy"] = nats(row.variant.cross_entropy)
        cells["KL to teacher"] = nats(row.variant.kl_to_teacher)
        cells["n"] = f"{row.variant.n:,}"
        rows.append(cells)
    return rows


def difference(ours: Variant, theirs: Variant) -> Difference | None:
    """How much more often one answers correctly; None where answers were not run."""
    our_accuracy, their_accuracy = _accuracy(ours), _accuracy(theirs)
    if our_accuracy is None or their_accuracy is None:
        return None
    if ours.correct is not None and theirs.correct is not None:
        return paired_difference(ours.correct, theirs.correct)
    return unpaired_difference(our_accuracy, their_accuracy)


def tested(data: ReportData, metric: str) -> Comparison | None:
    """The analysis's test of SFT + KD against its control in one metric, where there is one."""
    kd, control = data.variants["kd"].label, data.variants[CONTROL].label
    found = data.analysis.comparisons if data.analysis else []
    return next((one for one in found if (one.metric, one.ours, one.theirs) == (metric, kd, control)), None)


def gap_closed(data: ReportData) -> float | None:
    """Share of the way from the SFT control to the teacher that KD covers; None where that says nothing."""
    kd, control, teacher = (data.variants.get(name) for name in ("kd", CONTROL, "teacher"))
    if kd is None or control is None or teacher is None:
        return None
    if kd.exec_accuracy is None or control.exec_accuracy is None or teacher.exec_accuracy is None:
        return None
    gap = teacher.exec_accuracy - control.exec_accuracy
    return (kd.exec_accuracy - control.exec_accuracy) / gap if gap > 0 else None


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def percent_range(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} – {100 * interval.high:.1f}"


def points(share: float) -> str:
    """A difference of shares in percentage points, signed: +6.1, −0.4, 0.0."""
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def points_range(interval: Interval) -> str:
    return f"{points(interval.low)} to {points(interval.high)}"


def nats(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if math.isfinite(value) else "not a number"


def _accuracy(variant: Variant) -> Interval | None:
    if variant.exec_accuracy is None or variant.n == 0:
        return None
    return wilson(variant.exec_accuracy, variant.n)


def _verdict_on_accuracy(data: ReportData, kd: Variant, control: Variant, difference: Interval) -> str:
    assert kd.exec_accuracy is not None
    assert control.exec_accuracy is not None
    if not difference.excludes_zero:
        return (
            f"No significant difference between {kd.label} and the {control.label}: "
            f"{percent(kd.exec_accuracy)} against {percent(control.exec_accuracy)} of {kd.n:,} held-out requests "
            f"answered correctly, a difference of {points(difference.estimate)} points, "
            f"95 % interval {points_range(difference)}{_nevertheless_nearer(data, kd, control)}."
        )
    helps = difference.estimate > 0
    return (
        f"Distillation {'helps' if helps else 'hurts'}: {kd.label} answers {percent(kd.exec_accuracy)} of "
        f"{kd.n:,} held-out requests correctly, {100 * abs(difference.estimate):.1f} points "
        f"{'above' if helps else 'below'} the same training without the teacher’s logits ({control.label}), "
        f"95 % interval {points_range(difference)}."
    )


def _nevertheless_nearer(data: ReportData, kd: Variant, control: Variant) -> str:
    found = tested(data, "kl_to_teacher")
    if found is None or found.p_adjusted is None or not found.is_significant or found.difference.estimate > 0:
        return ""
    return (
        f"; {kd.label} is nearer to the teacher all the same (KL {nats(kd.kl_to_teacher)} against "
        f"{nats(control.kl_to_teacher)} nats a token, {p_words(found.p_adjusted)})"
    )


def _verdict_on_distance(data: ReportData, kd: Variant, control: Variant) -> str:
    kl = f"KL {nats(kd.kl_to_teacher)} against {nats(control.kl_to_teacher)} nats a token"
    entropy = f"cross-entropy {nats(kd.cross_entropy)} against {nats(control.cross_entropy)}"
    unchecked = "No answer was checked, so this does not say whether more answers are right."
    primary, second = tested(data, "kl_to_teacher"), tested(data, "cross_entropy")
    if primary is None or primary.p is None:
        return f"No verdict: {kd.label} was not tested against the {control.label} ({kl}; {entropy}). {unchecked}"
    how = f"{kl}, {p_words(primary.p)}"
    if primary.p >= ALPHA:
        sentence = f"No significant difference in distance to the teacher between {kd.label} and the same training "
        sentence += f"without its logits ({control.label}): {how}"
    else:
        side = "nearer to" if primary.difference.estimate < 0 else "further from"
        sentence = (
            f"{kd.label} is {side} the teacher than the same training without its logits ({control.label}): {how}"
        )
    if second is None or not second.is_significant or second.p_adjusted is None:
        return f"{sentence}; no significant difference in {entropy}. {unchecked}"
    quality = "better" if second.difference.estimate < 0 else "worse"
    return (
        f"{sentence}; it predicts held-out responses {quality} ({entropy}, {p_words(second.p_adjusted)}). {unchecked}"
    )


def _verdict_on_loss(data: ReportData, kd: Variant, control: Variant) -> str:
    """Without a teacher to compare with, the references are all that there is."""
    entropy = f"cross-entropy {nats(kd.cross_entropy)} against {nats(control.cross_entropy)}"
    unchecked = "No answer was checked, so this does not say whether more answers are right."
    found = tested(data, "cross_entropy")
    if found is None or found.p is None:
        return f"No verdict: {kd.label} was not tested against the {control.label} ({entropy}). {unchecked}"
    if found.p >= ALPHA:
        return (
            f"No significant difference between {kd.label} and the same training without the teacher’s logits "
            f"({control.label}) in how well they predict held-out responses: {entropy}, {p_words(found.p)}. {unchecked}"
        )
    quality = "better" if found.difference.estimate < 0 else "worse"
    return (
        f"{kd.label} predicts held-out responses {quality} than the same training without the teacher’s logits "
        f"({control.label}): {entropy}, {p_words(found.p)}. {unchecked}"
    )
