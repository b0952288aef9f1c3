"""The pages in a real browser, at desktop and phone width, light and dark: nothing overflows, nothing is empty."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from tasks.report.leaderboard import page as leaderboard_page
from tasks.report.leaderboard.entry import Entry
from tasks.report.page import render_page
from tasks.report.stage import LABELS
from tests.support.analysis_sample import sample_analysis
from tests.support.browser import page as browser_page
from tests.support.report_sample import sample_report, variants

WIDTHS = (1300, 390)
SECTIONS = ("comparison", "metrics", "comparisons", "slices", "regressions", "inherited", "training", "data-flow")
FIGURES = 13
OVERFLOWING = "[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg, .text, .sr')"
RIGHT_EDGE = " && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML)"
OVERLAPPING = """svg => {
    const texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim())
    const boxes = texts.map(t => [t.textContent, t.getBoundingClientRect()])
    const both = (p, q) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
        && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 4
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) => both(p, q)).map(([b]) => a + ' | ' + b))
}"""
CUT = """svg => {
    const whole = svg.getBoundingClientRect()
    return [...svg.querySelectorAll('text')].filter(t => {
        const box = t.getBoundingClientRect()
        return box.left < whole.left - 1 || box.right > whole.right + 1 || box.bottom > whole.bottom + 1
    }).map(t => t.textContent)
}"""


@pytest.fixture(scope="module", params=WIDTHS)
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    with browser_page(request.param) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    named = {name: variant.model_copy(update={"label": LABELS[name]}) for name, variant in variants().items()}
    data = sample_report(student="0.5B", teacher="72B", demo=False, variants=named, analysis=sample_analysis(LABELS))
    path.write_text(render_page(data), encoding="utf-8")
    return path


def opened(page: Page, path: Path) -> list[str]:
    """Open the page; what the console said."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda request: said.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(path.as_uri())
    return said


def check_layout(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OVERFLOWING + RIGHT_EDGE) == []
    for figure in page.query_selector_all("figure"):
        caption, drawing = figure.query_selector("figcaption"), figure.query_selector("svg")
        assert caption is not None
        assert len(caption.inner_text()) > 40
        assert drawing is not None
        box = drawing.bounding_box()
        assert box is not None
        assert box["width"] > 250
        assert box["height"] > 80
        name = figure.get_attribute("id")
        assert drawing.evaluate(OVERLAPPING) == [], name
        assert drawing.evaluate(CUT) == [], name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_is_whole_and_fits(page: Page, report: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    assert opened(page, report) == []
    assert len(page.query_selector_all("figure")) == FIGURES
    for section in (*SECTIONS, "stages", "examples", "paper", "provenance"):
        assert page.is_visible(f"#{section} h2"), section
    for table in ("metric-table", "style-table", "regression-table", "inherited-table", "paper-table"):
        assert page.is_visible(f"#{table}"), table
    assert page.inner_text("#comparisons details[open] summary") == "SFT + KD against SFT continued (control)"
    assert page.locator("#comparisons details[open] li").count() == 8
    assert "planned before any result was seen" in page.inner_text("#comparisons")
    assert page.locator("#regressions ins").first.is_visible()
    assert page.locator("#regressions del").first.is_visible()
    assert "2.46" in page.inner_text("#paper-table .highlight")
    check_layout(page)


def test_every_detail_can_be_opened_without_overflow(page: Page, report: Path) -> None:
    opened(page, report)
    page.evaluate("document.querySelectorAll('details').forEach(detail => detail.open = true)")
    check_layout(page)


def test_dark_is_dark_and_ink_stands_out(page: Page, report: Path) -> None:
    opened(page, report)
    lightness = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        lightness[scheme] = [
            sum(
                page.evaluate(f"getComputedStyle(document.querySelector('{what}')).{how}.match(/\\d+/g).map(Number)")[
                    :3
                ]
            )
            for what, how in (
                ("html", "backgroundColor"),
                ("#metrics td", "color"),
                ("#figure-reliability text", "fill"),
            )
        ]
    assert lightness["light"][0] > 600 > 300 > max(lightness["light"][1:2])
    assert lightness["dark"][0] < 150 < 400 < min(lightness["dark"][1:])


def test_leaderboard_fits(page: Page, tmp_path: Path) -> None:
    entries = [
        Entry(
            name=f"{size} from {teacher}, K = {k}",
            data=sample_report(variants=variants({"kd": skill})),
            link="http://x/",
        )
        for size, teacher, k, skill in (("0.5B", "14B", 10, 0.61), ("0.5B", "72B", 10, 0.69), ("1.5B", "72B", 50, 0.74))
    ]
    entries.append(Entry(name="7B from 72B", failed="out of memory: give the stage more GPUs or a smaller micro-batch"))
    (tmp_path / "leaderboard.html").write_text(leaderboard_page.render_page(entries), encoding="utf-8")
    assert opened(page, tmp_path / "leaderboard.html") == []
    assert page.locator("#leaderboard tbody tr").count() == 4
    assert page.is_visible("#verdict")
    assert page.is_visible("#figure-quality-cost svg")
    check_layout(page)


def test_leaderboard_over_seeds_fits(page: Page, tmp_path: Path) -> None:
    entries = [
        Entry(
            name=f"0.5B from {teacher}, seed={seed}",
            combination=f"0.5B from {teacher}",
            data=sample_report(variants=variants({"kd": 0.6 + seed / 100}), seed=seed),
        )
        for teacher in ("14B", "72B")
        for seed in range(3)
    ]
    (tmp_path / "leaderboard.html").write_text(leaderboard_page.render_page(entries), encoding="utf-8")
    assert opened(page, tmp_path / "leaderboard.html") == []
    assert page.locator("#over-seeds tbody tr").count() == 2
    assert "over 3 seeds" in page.inner_text("#verdict")
    check_layout(page)
