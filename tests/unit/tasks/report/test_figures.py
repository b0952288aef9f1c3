"""What the figures draw: no bar dwarfs the others, no label stands under one, and what a grouping means is said."""

from __future__ import annotations

import re

import pytest

from tasks.report.figures.run import plots
from tasks.report.page import render_page
from tests.support.report_sample import sample_report, unmarked_variants


def _texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg)


@pytest.mark.parametrize(("kl", "cut"), [(2.35, ["2.35 →", "2.61 →"]), (0.5, ["2.61 →"])])
def test_the_bar_of_base_is_cut_off_where_it_would_dwarf_the_others(kl: float, cut: list[str]) -> None:
    data = sample_report(analysis=None, variants=unmarked_variants(base={"kl_to_teacher": kl}))
    plot = plots(data)["distance"]
    assert [text for text in _texts(plot.svg) if "→" in text] == cut
    assert "A bar with an arrow goes on beyond the axis." in plot.caption


def test_where_no_bar_dwarfs_the_others_none_is_cut_off() -> None:
    data = sample_report(analysis=None, variants=unmarked_variants(base={"kl_to_teacher": 0.5, "cross_entropy": 0.8}))
    plot = plots(data)["distance"]
    assert "→" not in plot.svg
    assert "arrow" not in plot.caption


def test_the_parts_by_the_teachers_loss_say_what_they_are_and_promise_no_ease() -> None:
    page = render_page(sample_report())
    figure = page.split("<h3>By the teacher’s loss</h3>")[1].split("</figure>")[0]
    assert [text for text in _texts(figure) if text in ("low", "middle", "high")] == ["low", "middle", "high"]
    assert "It is not how hard a request is" in figure
    assert not re.search(r"easy|middling|hard<", page)
