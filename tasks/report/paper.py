"""What the paper's authors report of their own students, for orientation beside a run of the same size."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = (
    "DistilQwen2.5 (arXiv 2504.15027, Table 1) and its authors’ published model table in EasyDistill; "
    "SFT alone: the paper’s section 4.3"
)
# prompts followed strictly are a subset of instructions followed loosely
REMARK = (
    "For 1.5B and 3B, IFEval’s strict figures are above the loose ones, which cannot be: printed as published, "
    "the two were probably exchanged there."
)
BENCHMARKS = (
    "AlpacaEval 2.0, length-controlled, %",
    "MT-Bench",
    "MT-Bench, first turn",
    "IFEval loose, %",
    "strict, %",
)


class Published(NamedTuple):
    """One model; a figure that is not at hand is None. Figures are in the order of `BENCHMARKS`."""

    size: str
    variant: str
    figures: tuple[float | None, ...]


PUBLISHED = (
    Published("0.5B", "base", (2.46, 5.49, 6.26, 42.81, 30.31)),
    Published("0.5B", "SFT only", (4.72, None, None, None, None)),
    Published("0.5B", "SFT + KD", (4.89, 5.78, 6.83, 52.61, 37.82)),
    Published("1.5B", "base", (6.69, 7.09, 7.66, 55.40, 40.11)),
    Published("1.5B", "SFT + KD", (13.69, 7.35, 7.99, 61.10, 74.49)),
    Published("3B", "base", (17.98, 7.92, 8.40, 61.18, 74.58)),
    Published("3B", "SFT + KD", (20.91, 8.37, 8.97, 67.03, 77.36)),
    Published("7B", "base", (31.43, 8.52, 8.83, 81.53, 72.10)),
    Published("7B", "SFT + KD", (34.86, 8.76, 9.22, 83.48, 73.27)),
)


def published_for(student: str) -> tuple[Published, ...]:
    """All of the paper's students where this one is of a size of theirs; none else."""
    return PUBLISHED if student in {row.size for row in PUBLISHED} else ()
