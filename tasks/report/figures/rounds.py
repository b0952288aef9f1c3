"""The figure of on-policy rounds: how student and teacher part along an answer, a line for each round."""

from __future__ import annotations

from tasks.report.data import ReportData
from tasks.report.figures.style import MUTED, Plot, colour_of, figure_of, inline_svg

_SHADES = (0.35, 1.0)  # of the first round's line, and of the last one's


def overlap(data: ReportData) -> Plot | None:
    """Top-1 agreement and KL by position in the student's own answers."""
    rounds = data.rounds.rounds if data.rounds else []
    if not rounds:
        return None
    figure, panels = figure_of(2.9, columns=2)
    names = max((list(of.by_position) for of in rounds), key=len)
    panel_of = (("agreement", 100.0, "same likeliest token (%)"), ("kl", 1.0, "KL, at least (nats/token)"))
    for axes, (number, scale, label) in zip(panels, panel_of, strict=True):
        for index, of in enumerate(rounds):
            shade = _SHADES[0] + (_SHADES[1] - _SHADES[0]) * (index + 1) / len(rounds)
            values = [scale * of.by_position[name][number] for name in names if name in of.by_position]
            axes.plot(
                range(len(values)),
                values,
                marker="o",
                markersize=4,
                color=colour_of("kd"),
                alpha=shade,
                label=f"round {of.number}",
            )
        axes.set_xticks(range(len(names)), names, rotation=35)
        axes.set(xlabel="token of the answer", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.grid(axis="y")
        axes.tick_params(labelcolor=MUTED, length=0, pad=6)
        axes.spines["left"].set_visible(False)
    panels[-1].legend(loc="best")
    return Plot(
        "Student and teacher on the student’s own answers",
        "By position in the answer, before each round’s training. What falls with the position is where the student’s "
        "own text leads it away from its teacher.",
        inline_svg(figure, "overlap", "Agreement of student and teacher by position in the answer, a line a round"),
    )
