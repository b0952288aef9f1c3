"""Which stages a variant comes from, and what they took; what only measures it is left out."""

from __future__ import annotations

from tasks.evaluate.variants import CONTINUED, round_of
from tasks.report.comparison import CONTROL
from tasks.report.data import ReportData, StageSummary

_ROWS = ("categories", "augment", "student_scores", "fit")


def learns_from_scores(variant: str) -> bool:
    return variant not in ("base", "sft", CONTROL)


def device_seconds(data: ReportData, variant: str) -> float:
    """Seconds times ranks of the stages that make a student, as they took when they were made."""
    return sum(stage.seconds * int(stage.facts.get("ranks", 1)) for stage in stages_of(data, variant))


def stages_of(data: ReportData, variant: str) -> list[StageSummary]:
    """Those that a variant comes from, in their order. KD comes from SFT unless the run has another order."""
    if variant in ("base", "teacher"):
        return []
    if not learns_from_scores(variant):
        made = {*_ROWS, "sft", variant}
    else:
        made = {*_ROWS, "logits", "kd_before_sft", "kd", *([] if data.settings.get("order") else ["sft"])}
        number = round_of(variant)
        if variant == CONTINUED:
            made.add(CONTINUED)
        elif number is not None:
            done = tuple(f"_{one}" for one in range(1, number + 1))
            made |= {stage.name for stage in data.stages if stage.name.endswith(done)}
    return [stage for stage in data.stages if stage.name in made]
