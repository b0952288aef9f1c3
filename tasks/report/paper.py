"""What the paper reports of its own students, for orientation beside a run of the same size.

Only figures that were read in the source stand here; the paper reports MT-Bench and IFEval, and other sizes, too.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = "DistilQwen2.5, arXiv 2504.15027 (0.5B: section 4.3, Table 1)"
SIZES = ("0.5B", "1.5B", "3B", "7B")


@dataclass(frozen=True)
class Published:
    """Length-controlled win rate on AlpacaEval 2.0 in percent; None where the figure is not at hand."""

    size: str
    base: float
    sft: float | None  # the rows that the paper marks with an asterisk: black-box distillation only
    kd: float


PUBLISHED = (Published("0.5B", 2.46, 4.72, 4.89), Published("7B", 31.43, None, 34.86))


def published_for(student: str) -> tuple[Published, ...]:
    """The paper's figures where the student is one of its sizes; none else."""
    return PUBLISHED if student in SIZES else ()
