"""Which student to ship: SFT + KD, its control or neither; the words that stand before the verdict.

It follows the verdict's comparison. Where KD is not shown to be better, the control is as good for less: it takes no
teacher. What is no better than the untrained student is not shipped.
"""

from __future__ import annotations

import math
from typing import Literal

from tasks.report.comparison import CONTROL, difference, tested
from tasks.report.data import ReportData, Variant
from tasks.stats.significance import ALPHA

Result = Literal["better", "worse", "same", "mixed", "unknown"]


def shipped(data: ReportData) -> str | None:
    """The variant to ship; None where it is neither of the two."""
    winner = {"better": "kd", "worse": CONTROL, "same": CONTROL}.get(_result(data))
    return winner if winner is not None and _beats_base(data, data.variants[winner]) else None


def decision(data: ReportData) -> str:
    """What to do, in a sentence."""
    found, student = _result(data), shipped(data)
    if found == "unknown":
        return "Ship neither yet."
    kd, control = data.variants["kd"].label, data.variants[CONTROL].label
    if found == "mixed":
        return "Ship neither before answers are checked: the two measures disagree."
    if student is None:
        winner = kd if found == "better" else control
        return f"Ship neither: {winner} is not shown to be better than the base student."
    if found == "same":
        return f"Ship {control}: {kd} is not shown to be better, and takes a teacher."
    return f"Ship {kd}." if found == "better" else f"Ship {control}, not {kd}."


def _result(data: ReportData) -> Result:
    """Of SFT + KD against its control, by the comparison that the verdict speaks of."""
    kd, control = data.variants.get("kd"), data.variants.get(CONTROL)
    if kd is None or control is None or not math.isfinite(control.cross_entropy):
        return "unknown"
    if not all(math.isfinite(value) for value in (kd.cross_entropy, kd.kl_to_teacher or 0.0)):
        return "worse"
    if (gained := difference(kd, control)) is not None:
        return _side(gained.interval.estimate) if gained.interval.excludes_zero else "same"
    metric = "cross_entropy" if kd.kl_to_teacher is None else "kl_to_teacher"
    primary, entropy = tested(data, metric), tested(data, "cross_entropy")
    if primary is None or primary.p is None:
        return "unknown"
    if primary.p >= ALPHA:
        return "same"
    side = _side(-primary.difference.estimate)
    if metric != "cross_entropy" and entropy is not None and entropy.is_significant:
        return side if side == _side(-entropy.difference.estimate) else "mixed"
    return side


def _side(gain: float) -> Result:
    return "better" if gain > 0 else "worse"


def _beats_base(data: ReportData, student: Variant) -> bool:
    """Whether it answers more correctly than the untrained student by more than chance; unchecked, whether it predicts
    the references better."""
    if (base := data.variants.get("base")) is None:
        return True
    if (gained := difference(student, base)) is not None:
        return gained.interval.excludes_zero and gained.interval.estimate > 0
    return not student.cross_entropy >= base.cross_entropy
