"""How much of the teacher's probability its top K hold, for every K up to what was stored: what a smaller K loses."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.report.data import Coverage
from tasks.report.experiment.arms import ArmResult
from tasks.report.figures.style import MUTED, Plot, colour_of, figure_of, inline_svg, log_scale, short

_DASHES = ("-", (0, (4, 2)), (0, (1, 2)), (0, (4, 2, 1, 2)))


def curves(arms: Sequence[ArmResult]) -> list[tuple[Coverage, list[ArmResult]]]:
    """Each store's coverage with the arms that learn from it; none of a store that did not measure it by K."""
    found: list[tuple[Coverage, list[ArmResult]]] = []
    for arm in arms:
        if arm.coverage is None or not arm.coverage.by_k:
            continue
        sharing = next((of for coverage, of in found if coverage == arm.coverage), None)
        if sharing is None:
            found.append((arm.coverage, [arm]))
        else:
            sharing.append(arm)
    return found


def coverage_plot(arms: Sequence[ArmResult]) -> Plot | None:
    """The mean mass of the top K by K, a line for each store, with a dot at every K that an arm learns from.

    None where all arms learn from one K of one store: it tells none from another.
    """
    stores = curves(arms)
    if len(stores) < 2 and len({k for coverage, sharing in stores for k in _learnt(coverage, sharing)}) < 2:
        return None
    figure, (axes,) = figure_of(3.4)
    for number, (coverage, sharing) in enumerate(stores):
        colour = colour_of("sft_control" if number % 2 else "kd")
        held = [100 * mass for mass in coverage.by_k]
        dashes, label = _DASHES[number // 2 % len(_DASHES)], short(", ".join(arm.name for arm in sharing), 40)
        axes.plot(range(1, len(held) + 1), held, color=colour, linestyle=dashes, linewidth=1.6, label=label)
        for k in _learnt(coverage, sharing):
            axes.plot(k, held[k - 1], "o", color=colour, markersize=6)
            text = f"{held[k - 1]:.1f} %"
            axes.annotate(text, (k, held[k - 1]), (0, 7), textcoords="offset points", ha="center", fontsize=10)
    axes.set(xlabel="K, the tokens that are kept", ylabel="probability that they hold (%)")
    log_scale(axes, "x")
    axes.margins(x=0.12, y=0.16)
    axes.grid(axis="y")
    axes.tick_params(labelcolor=MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    if len(stores) > 1:
        axes.legend(loc="lower right")
    tokens = " and ".join(f"{tokens:,}" for tokens in dict.fromkeys(coverage.tokens for coverage, _ in stores))
    return Plot(
        "Coverage by K",
        f"Mean probability of the teacher that its top K tokens hold, over {tokens} supervised tokens of the training "
        "rows. What is above the line is lost, or the one outcome of the tail. Dots: the K that arms learn from.",
        inline_svg(figure, "coverage", "Mean probability that the top K hold, by K"),
    )


def _learnt(coverage: Coverage, sharing: Sequence[ArmResult]) -> list[int]:
    return sorted({arm.k for arm in sharing if 1 <= arm.k <= len(coverage.by_k)})
