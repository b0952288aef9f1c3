"""The figures of the teacher's top-K mass: what of its probability the stored tokens hold."""

from __future__ import annotations

from tasks.report.comparison import percent
from tasks.report.data import Coverage, Mass, ReportData
from tasks.report.figures.style import INK, MUTED, Plot, bars_figure, colour_of, figure_of, inline_svg, name_bars

_CATEGORIES = 10  # the ones that miss most


def mass(data: ReportData) -> Plot | None:
    """Over tokens, as a histogram."""
    coverage = data.coverage
    if coverage is None:
        return None
    figure, (axes,) = figure_of(2.9)
    bins = len(coverage.histogram)
    total = sum(coverage.histogram) or 1
    axes.bar(
        [(i + 0.5) / bins for i in range(bins)],
        [100 * count / total for count in coverage.histogram],
        width=0.88 / bins,
        color=colour_of("kd"),
    )
    axes.axvline(coverage.mean, color=INK, linewidth=1.2, linestyle=(0, (3, 2)))
    axes.set_ylim(0, 118 * max(coverage.histogram) / total or 1)  # the mean stands above all bars
    left = coverage.mean > 0.5
    axes.annotate(
        f"mean {coverage.mean:.3f}",
        (coverage.mean, 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
    )
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.set(
        xlim=(0, 1),
        xlabel=f"probability held by the teacher’s top {coverage.k}",
        ylabel="supervised tokens (%)",
    )
    percentiles = ", ".join(f"{name} {value:.3f}" for name, value in coverage.percentiles.items())
    return Plot(
        f"Top-{coverage.k} mass",
        f"How much of the teacher’s probability its top {coverage.k} tokens hold, over {coverage.tokens:,} supervised "
        "tokens. The method rests on this being almost 1."
        + (f" Percentiles: {percentiles}." if percentiles else "")
        + _needed(coverage),
        inline_svg(figure, "mass", f"Histogram of the probability held by the top {coverage.k} tokens"),
    )


def _needed(coverage: Coverage) -> str:
    """Which K holds how much, in words."""
    needed = [f"{wanted} needs K = {k or f'more than {coverage.k}'}" for wanted, k in coverage.k_for.items()]
    return f" On average {', '.join(needed)}." if needed else ""


def mass_by(data: ReportData) -> Plot | None:
    """What the top K leave out, by task category and by position in the answer."""
    coverage = data.coverage
    if coverage is None or not (coverage.by_category or coverage.by_position):
        return None
    worst = sorted(coverage.by_category.items(), key=lambda item: item[1].mean)[:_CATEGORIES]
    positions = [(f"token {name}", group) for name, group in coverage.by_position.items()]
    gap: list[tuple[str, Mass | None]] = [("", None)] if worst and positions else []
    bars = [*worst, *gap, *positions]
    figure, axes = bars_figure(len(bars))
    widest = max(1 - group.mean for _, group in bars if group) or 1.0
    for y, (_, group) in enumerate(bars):
        if group is not None:
            axes.barh(y, 100 * (1 - group.mean), height=0.62, color=colour_of("kd"))
            text = f"{percent(1 - group.mean)} of {group.tokens:,}"
            axes.text(100 * (1 - group.mean) + 2 * widest, y, text, va="center", fontsize=10)
    name_bars(axes, [name for name, _ in bars])
    axes.set(xlim=(0, 145 * widest), xlabel=f"probability outside the top {coverage.k} (%)")
    axes.locator_params(axis="x", nbins=5)
    left_out = len(coverage.by_category) - len(worst)
    return Plot(
        f"What the top {coverage.k} leave out",
        "Mean probability that is not stored, by task category and by position in the answer (with its number of "
        "tokens); shorter is better."
        + (f" {left_out} task categories that miss less are not shown." if left_out else ""),
        inline_svg(figure, "mass-by", f"Probability outside the top {coverage.k} by task category and position"),
    )
