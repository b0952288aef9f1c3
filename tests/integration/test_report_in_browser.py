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
from tests.support.report_cases import with_right_answers
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


UNHINTED = """[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).filter(e => {
    const style = getComputedStyle(e)
    return style.overflowX !== 'auto' || style.backgroundAttachment !== 'local, local, scroll, scroll'
}).map(e => e.outerHTML)"""
WRAPPED = """[...document.querySelectorAll('td.number')]
    .filter(cell => /^[\\d.]+ (s|min|h)\\b/.test(cell.innerText.trim())).filter(cell => {
        const words = document.createRange()
        words.selectNodeContents(cell)
        return words.getClientRects().length > 1
    }).map(cell => cell.innerText)"""
UNDER_BARS = """figure => {
    const mean = [...figure.querySelectorAll('text')].find(text => text.textContent.startsWith('mean'))
    const label = mean.getBoundingClientRect()
    const bars = [...figure.querySelectorAll('path')].filter(path => path.style.fill.includes('--kd'))
    return bars.map(bar => bar.getBoundingClientRect()).filter(bar =>
        bar.left < label.right && bar.right > label.left && bar.top < label.bottom && bar.bottom > label.top).length
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
    assert page.evaluate(UNHINTED) == []
    assert page.evaluate(WRAPPED) == []
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
    assert page.inner_text("#comparisons details[open] summary") == "SFT + KD against SFT control"
    assert page.locator("#comparisons details[open] li").count() == 8
    assert "planned before any result was seen" in page.inner_text("#comparisons")
    assert page.locator("#regressions ins").first.is_visible()
    assert page.locator("#regressions del").first.is_visible()
    assert "2.46" in page.inner_text("#paper-table .highlight")
    check_layout(page)


def test_tables_that_do_not_fit_a_phone_scroll_and_times_are_whole(page: Page, report: Path) -> None:
    """That there are such tables and times, so that the layout's check of them can fail."""
    opened(page, report)
    wider = page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length")
    assert (wider > 0) == (page.viewport_size == {"width": 390, "height": 1000})
    assert page.locator("#stages td.number", has_text="min").count() > 2


def test_the_mean_of_the_mass_stands_above_all_bars(page: Page, tmp_path: Path) -> None:
    coverage = sample_report().coverage
    assert coverage is not None
    beside = coverage.model_copy(update={"histogram": [*([0] * 16), 20_000, 40_000, 9_000, 9_000], "mean": 0.91})
    data = sample_report(coverage=beside, analysis=None)
    (tmp_path / "report.html").write_text(render_page(data), encoding="utf-8")
    opened(page, tmp_path / "report.html")
    figure = page.query_selector("#figure-mass")
    assert figure is not None
    assert figure.evaluate(UNDER_BARS) == 0


def test_contents_lead_to_their_sections(page: Page, report: Path) -> None:
    opened(page, report)
    page.click("nav a[href='#settings']")
    assert page.evaluate("document.querySelector('#settings').getBoundingClientRect().top") < 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_where_kd_is_not_what_to_ship_nothing_has_the_accent(page: Page, tmp_path: Path, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    colours = {}
    for name, of in (("wins", (78, 39)), ("loses", (39, 78))):
        data = with_right_answers(358, *of).model_copy(update={"analysis": None})
        (tmp_path / f"{name}.html").write_text(render_page(data), encoding="utf-8")
        opened(page, tmp_path / f"{name}.html")
        colours[name] = {
            colour
            for what, how in ((".swatch.kd", "backgroundColor"), (".highlight th", "backgroundColor"))
            for colour in page.eval_on_selector_all(what, f"all => all.map(one => getComputedStyle(one).{how})")
        } | set(page.eval_on_selector_all("#figure-accuracy path", "all => all.map(one => getComputedStyle(one).fill)"))
    accent = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--kd')")
    page.evaluate("colour => document.body.style.color = colour", accent)
    as_rgb = page.evaluate("getComputedStyle(document.body).color")
    assert as_rgb in colours["wins"]
    assert as_rgb not in colours["loses"]


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
