"""What a reader looks for first: which run, when, of which models, how fast they are, what it cost and took."""

from __future__ import annotations

from typing import NamedTuple

from tasks.report.data import ReportData
from tasks.report.figures.run import duration

SPEED = "Tokens/s: what one engine writes with all held-out requests in hand, its start left out."


class RunFact(NamedTuple):
    """A fact in a few words, with what is to be known of it; `note` may be empty."""

    name: str
    value: str
    note: str


def summary(data: ReportData) -> list[RunFact]:
    """The facts at the top of the page; what is not known is left out."""
    found = [
        RunFact("Run", data.run or data.title, ", ".join(filter(None, [data.made, f"seed {data.seed}"]))),
        RunFact("Student", data.student, _model(data, "kd")),
        RunFact("Teacher", data.teacher, ", ".join(filter(None, [_model(data, "teacher"), f"top {data.k} kept"]))),
    ]
    if data.stages:
        found.append(RunFact("Time", duration(sum(s.seconds for s in data.stages)), "all stages, when they were made"))
    if data.spent:
        found.append(RunFact("LLM answers", *_cost(data.spent)))
    return found


def has_speed(data: ReportData) -> bool:
    return any(data.variants[name].tokens_s for name in ("kd", "teacher") if name in data.variants)


def parameters(number: int) -> str:
    """As models are called by: 494M, 1.54B, 72.7B."""
    size, unit = (number / 1e9, "B") if number >= 1e9 else (number / 1e6, "M")
    return f"{size:.3g}{unit}" if size < 1000 else f"{size:,.0f}{unit}"


def _model(data: ReportData, name: str) -> str:
    if (variant := data.variants.get(name)) is None:
        return ""
    size = [f"{parameters(variant.parameters)} parameters"] if variant.parameters else []
    speed = [f"{variant.tokens_s:,.0f} tokens/s"] if variant.tokens_s else []
    return ", ".join(size + speed)


def _cost(spent: dict[str, float]) -> tuple[str, str]:
    total, who = sum(spent.values()), " and ".join(spent)
    if not total:
        return "–", f"{who}: free, or of a model without a known price"
    return f"${total:,.2f}" if total >= 0.01 else f"${total:.4f}", f"{who}; machines are not in it"
