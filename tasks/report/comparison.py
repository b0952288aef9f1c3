"""The comparison that decides: every variant against SFT continued for as long as KD (`sft_control`).

The words are as careful as the numbers: a difference counts only when its 95 % interval excludes zero, and
without execution accuracy the verdict speaks of the distance to the teacher and says that it does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tasks.evaluate.statistics import Difference, Interval, paired_difference, unpaired_difference, wilson
from tasks.report.data import ReportData, Variant

CONTROL = "sft_control"
SAME = 0.01  # relative change below which cross-entropy or KL is called the same; they carry no interval here


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
            _difference(variant, control) if control is not None and name != CONTROL else None,
        )
        for name, variant in data.variants.items()
    ]


def verdict(data: ReportData) -> str:
    """The sentence that comes first."""
    kd, control = data.variants.get("kd"), data.variants.get(CONTROL)
    if kd is None or control is None:
        missing = " and ".join(
            name for name, variant in (("SFT+KD", kd), ("the SFT control", control)) if variant is None
        )
        return f"No verdict: {missing} was not evaluated, and without it a gain proves nothing."
    if not all(map(math.isfinite, (kd.cross_entropy, kd.kl_to_teacher))):
        return f"Distillation failed: the training of {kd.label} diverged, its cross-entropy is not a number."
    difference = _difference(kd, control)
    if difference is None:
        return _verdict_on_distance(kd, control)
    return _verdict_on_accuracy(kd, control, difference.interval)


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


def nats(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "not a number"


def _accuracy(variant: Variant) -> Interval | None:
    if variant.exec_accuracy is None or variant.n == 0:
        return None
    return wilson(variant.exec_accuracy, variant.n)


def _difference(ours: Variant, theirs: Variant) -> Difference | None:
    our_accuracy, their_accuracy = _accuracy(ours), _accuracy(theirs)
    if our_accuracy is None or their_accuracy is None:
        return None
    if ours.correct is not None and theirs.correct is not None:
        return paired_difference(ours.correct, theirs.correct)
    return unpaired_difference(our_accuracy, their_accuracy)


def _verdict_on_accuracy(kd: Variant, control: Variant, difference: Interval) -> str:
    assert kd.exec_accuracy is not None
    assert control.exec_accuracy is not None
    if not difference.excludes_zero:
        return (
            f"No significant difference between {kd.label} and the {control.label}: "
            f"{percent(kd.exec_accuracy)} against {percent(control.exec_accuracy)} of {kd.n:,} held-out requests "
            f"answered correctly, a difference of {points(difference.estimate)} points, "
            f"95 % interval {points_range(difference)}{_nevertheless_nearer(kd, control)}."
        )
    helps = difference.estimate > 0
    return (
        f"Distillation {'helps' if helps else 'hurts'}: {kd.label} answers {percent(kd.exec_accuracy)} of "
        f"{kd.n:,} held-out requests correctly, {100 * abs(difference.estimate):.1f} points "
        f"{'above' if helps else 'below'} the same training without the teacher’s logits ({control.label}), "
        f"95 % interval {points_range(difference)}."
    )


def _nevertheless_nearer(kd: Variant, control: Variant) -> str:
    change = _change(kd.kl_to_teacher, control.kl_to_teacher)
    if change != "below":
        return ""
    return (
        f"; {kd.label} is nearer to the teacher all the same "
        f"(KL {nats(kd.kl_to_teacher)} against {nats(control.kl_to_teacher)} nats a token)"
    )


def _verdict_on_distance(kd: Variant, control: Variant) -> str:
    kl, cross_entropy = (
        _change(kd.kl_to_teacher, control.kl_to_teacher),
        _change(kd.cross_entropy, control.cross_entropy),
    )
    distance = {
        "below": f"{kd.label} is nearer to the teacher than",
        "same": f"{kd.label} is no nearer to the teacher than",
        "above": f"{kd.label} is further from the teacher than",
    }[kl]
    conjunction = "and" if (kl, cross_entropy) in {("below", "below"), ("above", "above"), ("same", "same")} else "but"
    prediction = {
        "below": "predicts held-out responses better",
        "same": "predicts held-out responses equally well",
        "above": "predicts held-out responses worse",
    }[cross_entropy]
    return (
        f"{distance} the same training without its logits ({control.label}): KL {nats(kd.kl_to_teacher)} against "
        f"{nats(control.kl_to_teacher)} nats a token, {conjunction} {prediction} (cross-entropy "
        f"{nats(kd.cross_entropy)} against {nats(control.cross_entropy)}). "
        "No answer was checked, so this does not say whether more answers are right."
    )


def _change(ours: float, theirs: float) -> str:
    """'below', 'same' or 'above'. A control that diverged is beaten by any number."""
    if not math.isfinite(theirs):
        return "below"
    if abs(ours - theirs) <= SAME * abs(theirs):
        return "same"
    return "below" if ours < theirs else "above"
