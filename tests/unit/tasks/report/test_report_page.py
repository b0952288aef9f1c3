"""The page: hostile texts stay text, nothing is loaded, equal data gives equal bytes, missing parts are left out."""

from __future__ import annotations

import functools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from tasks.evaluate.analysis.analysis import Analysis, analyse
from tasks.report.data import DataFlow, Output, ReportData, ShownExample, StageSummary
from tasks.report.page import DEMO_NOTE, render_markdown, render_page
from tests.support.analysis_sample import tables
from tests.support.report_sample import (
    CROSS_ENTROPY,
    KL,
    LABELS,
    benchmarks,
    sample_report,
    unmarked_variants,
    variants,
)

sample_page = functools.cache(lambda: render_page(sample_report()))

HOSTILE = (
    "<script>alert(1)</script></pre></style></svg></title>--><img src=x onerror=alert(2)>"
    "\"'>{{ 7 * 7 }}{% raw %}$\\frac{1$ | `code` [a](javascript:alert(3))"
)
LOADING = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "formaction"}
VOID = {"meta", "link", "img", "br", "input", "hr"}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without figures, for what is about its words: to draw them takes a second or two."""
    monkeypatch.setattr("tasks.report.page.plots", lambda data: {})


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises when a tag is closed that is not open."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


def analysed(**changes: Any) -> Analysis:
    """An analysis of few rows on which KD's columns have other values; `correct` changes for every variant."""
    given = tables({name: ([True, False] * 4) for name in LABELS}, CROSS_ENTROPY, KL)
    for name, table in given.items():
        for column, value in changes.items():
            if name == "kd" or column == "correct":
                table[column] = [value] * 8
    return analyse(given, LABELS)


def hostile_analysis() -> Analysis:
    """The sample's, with a hostile string in every place that takes one."""
    given = tables({name: ([True, False] * 4 if name != "base" else [True] * 8) for name in LABELS}, CROSS_ENTROPY, KL)
    for table in given.values():
        for column in ("instruction", "input", "reference", "generated", "task_category", "language"):
            table[column] = [f"{HOSTILE}{row if column == 'generated' else row % 2}" for row in range(8)]
    return analyse(given, dict.fromkeys(LABELS, HOSTILE))


def hostile_report() -> ReportData:
    """The sample with a hostile string in every place that takes one."""
    flow = sample_report().data_flow
    assert isinstance(flow, DataFlow)
    stage = StageSummary(
        name=HOSTILE,
        seconds=3,
        uri=HOSTILE,
        fingerprint=HOSTILE,
        counts={HOSTILE: 1},
        facts={HOSTILE: HOSTILE},
    )
    coverage = sample_report().coverage
    assert coverage is not None
    return sample_report(
        title=HOSTILE,
        student=HOSTILE,
        teacher=HOSTILE,
        variants={name: v.model_copy(update={"label": HOSTILE, "uri": HOSTILE}) for name, v in variants().items()},
        stages=[stage],
        curves={"kd": [(1, 0.5), (2, 0.4)], HOSTILE: [(1, 0.5)]},
        coverage=coverage.model_copy(update={"warning": HOSTILE, "percentiles": {HOSTILE: 0.5}}),
        data_flow=flow.model_copy(update={"rejected": {HOSTILE: {HOSTILE: 3}}, "agent_model": HOSTILE}),
        examples=[
            ShownExample(
                instruction=HOSTILE,
                input=HOSTILE,
                reference=HOSTILE,
                outputs={
                    "kd": Output(text=HOSTILE, correct=True),
                    HOSTILE: Output(text=HOSTILE, correct=False),
                },
            )
        ],
        benchmarks=benchmarks(HOSTILE),
        settings={HOSTILE: [HOSTILE]},
        versions={HOSTILE: HOSTILE},
        analysis=hostile_analysis(),
        reproduce=HOSTILE,
    )


def test_hostile_texts_stay_text() -> None:
    page = Page(render_page(hostile_report()))
    assert page.open == []  # every tag that was opened is closed, in order
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count(HOSTILE) >= 20
    assert "{{ 7 * 7 }}" in page.text


def test_hostile_texts_stay_one_table_cell_in_markdown() -> None:
    written = render_markdown(hostile_report())
    markdown = re.sub(r"^    .*\n", "", written, flags=re.MULTILINE)  # an indented block is code, whatever it says
    assert f"\n\n    {HOSTILE}\n" in written
    assert "<" not in markdown
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert len(tables) == 8
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert not re.search(r"(?<!\\)\]\(", markdown)


def test_page_loads_nothing() -> None:
    html = sample_page()
    page = Page(html)
    for tag, attributes in page.tags:
        for name in LOADING & attributes.keys():
            value = attributes[name] or ""
            assert value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []
    assert "http:" not in html
    assert "https:" not in html
    policy = next(
        a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.usefixtures("undrawn")
def test_verdict_comes_first_and_the_demo_is_labelled() -> None:
    page = Page(render_page(sample_report()))
    assert next(tag for tag, _ in page.tags if tag in ("h1", "h2", "h3")) == "h1"
    assert page.text.index("Distillation helps") < page.text.index("Comparison")
    assert DEMO_NOTE in page.text
    assert DEMO_NOTE not in render_page(sample_report(demo=False))
    assert DEMO_NOTE in render_markdown(sample_report())


@pytest.mark.usefixtures("undrawn")
def test_what_was_left_out_of_the_data_is_in_the_first_lines_as_text() -> None:
    sentence = "seeds: 20 of 220 rows are left out (20: asks what a held-out row asks); <b>column</b>"
    report = sample_report(left_out=[sentence])
    header = render_page(report).split("<main>")[0]
    assert sentence.replace("<", "&lt;").replace(">", "&gt;") in header
    first_lines = render_markdown(report).split("\n")[:6]
    assert any("20 of 220 rows are left out (20: asks what a held-out row asks)" in line for line in first_lines)


def test_what_the_distance_to_the_teacher_is_over_is_said() -> None:
    for report, words in (
        (sample_report(), "whole vocabulary"),
        (sample_report(compared_with_top=12), "top 12 and tail"),
    ):
        sentence = f"KL to the teacher is over {'the' if report.compared_with_top is None else 'its'} {words}"
        assert sentence in " ".join(render_page(report).split())
        assert sentence in render_markdown(report)


def test_every_plot_has_axes_units_and_a_caption() -> None:
    html = sample_page()
    figures = re.findall(r'<figure id="figure-(\w+)">(.*?)</figure>', html, flags=re.DOTALL)
    units = {
        "accuracy": "answered correctly (%)",
        "distance": ">nats/token<",
        "curves": "training loss (nats/token), log scale",
        "mass": "supervised tokens (%)",
        "mass_by": "probability outside the top 10 (%)",
        "data_flow": ">rows<",
        "time": "wall-clock time (s)",
        "reliability": "of these tokens right (%)",
        "inherited": "beyond base (percentage points)",
        **{f"slices_{number}": "held-out requests answered correctly (%)" for number in range(4)},
    }
    assert {name for name, _ in figures} == units.keys()
    for name, figure in figures:
        assert units[name] in figure
        assert re.search(r"<figcaption>.{40,}</figcaption>", figure)


def test_figures_take_their_colours_from_the_page() -> None:
    drawings = re.findall(r"<svg.*?</svg>", sample_page(), flags=re.DOTALL)
    assert len(drawings) == 13
    for drawing in drawings:
        assert not re.findall(r"#[0-9a-f]{6}\b(?!-)", drawing)
        assert "var(--ink)" in drawing


def test_ids_are_unique_on_the_page() -> None:
    ids = Page(sample_page()).ids()
    assert len(ids) == len(set(ids))


def test_equal_data_gives_an_equal_page() -> None:
    assert render_page(sample_report()) == sample_page()


def test_page_is_equal_in_another_process() -> None:
    program = "import sys; from tests.support.report_sample import *; "
    program += "sys.stdout.buffer.write(render_page(sample_report()).encode())"
    environment = {"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert other.stdout.decode() == sample_page()


@pytest.mark.parametrize(
    "missing",
    [
        {"coverage": None},
        {"analysis": None},
        {"analysis": analysed(correct=None)},
        {"analysis": analysed(nll=math.nan, kl_to_teacher=math.inf)},
        {"data_flow": None},
        {"benchmarks": None},
        {"curves": {}},
        {"examples": []},
        {"stages": []},
        {"settings": {}, "versions": {}, "reproduce": ""},
        {"variants": unmarked_variants()},
        {"variants": {"base": variants()["base"]}},
        {"variants": {}},
        {"variants": unmarked_variants(kd={"cross_entropy": math.nan, "kl_to_teacher": math.inf})},
        {"curves": {"kd": [(1, math.nan), (2, math.nan)], "sft": []}},
    ],
    ids=lambda missing: "+".join(missing),
)
def test_missing_parts_are_left_out(missing: dict[str, Any], request: pytest.FixtureRequest) -> None:
    if not missing.keys() & {"coverage", "analysis", "data_flow", "curves", "stages", "variants"}:
        request.getfixturevalue("undrawn")  # no figure shows it
    data = sample_report(**{"analysis": None, **missing})  # most of the figures are the analysis's
    page = Page(render_page(data))
    assert page.open == []
    assert not re.search(r"\b(None|nan|inf)\b", page.text)
    render_markdown(data)


def test_bare_report_has_a_verdict_and_nothing_empty() -> None:
    bare = ReportData(title="t", student="s", teacher="t", k=10, seed=1, variants={})
    page = Page(render_page(bare))
    assert "No verdict" in page.text
    assert not {"figure", "article", "table"} & {tag for tag, _ in page.tags}


def test_benchmarks_have_a_figure_with_its_interval_for_each_variant() -> None:
    html = sample_page()
    table = html[html.index('id="benchmarks"') :].split("</table>")[0]
    assert re.findall(r'<th scope="row">([^<]*)', table) == [
        "AlpacaEval 2.0, win rate ",
        "AlpacaEval 2.0, length-controlled ",
        "lm-eval, gsm8k: exact_match",
    ]
    assert re.sub(r"\s+", " ", table).count("40.0 <small>30.0 – 50.0</small>") == 5
    assert "SFT+KD is better than base in AlpacaEval win rate (" in html
    assert "AlpacaEval, SFT+KD: not judged: 7 × budget reached." in html
    assert "| lm-eval, gsm8k: exact\\_match | 0.500 (0.402 – 0.598) |" in render_markdown(sample_report())


def test_the_judge_stands_beside_people_on_the_page_in_markdown_and_in_the_data() -> None:
    html, data = sample_page(), sample_report()
    part = html[html.index("The judge beside people") :].split("</ul>")[0]
    cells = re.findall(r'<td class="number">([^<]*)', part)
    assert cells == ["openai/gpt-4o", "38", "38", "80.0 % (70.0 – 90.0)", "0.60 (−0.10 – 0.75)", "1.00"]
    said = "Of 40 labels of people, 38 are on answers that a judge judged; 2 are not: 2 × no such question."
    assert said in part
    markdown = render_markdown(data)
    assert said in markdown
    assert "| AlpacaEval | openai/gpt-4o | 38 | 38 | 80.0 % (70.0 – 90.0) | 0.60 (−0.10 – 0.75) | 1.00 |" in markdown
    kept = json.loads(data.model_dump_json())["benchmarks"]["people"]
    assert (kept["matched"], kept["judges"][0]["agreement"]["kappa"]["low"]) == (38, -0.1)
    assert data.benchmarks is not None
    without = data.benchmarks.model_copy(update={"people": None})
    assert "beside people" not in render_page(sample_report(benchmarks=without))


def test_rows_that_the_counts_lose_are_shown() -> None:
    flow = sample_report().data_flow
    assert flow is not None
    assert flow.unaccounted == 0
    html = render_page(sample_report(data_flow=flow.model_copy(update={"kept": 1490})))
    assert "The counts lose 10 rows" in html
    assert "not accounted for" in html


def test_importing_the_report_does_not_load_matplotlib() -> None:
    program = (
        "import sys, tasks.report.page\n"
        "sys.exit(any(name in sys.modules for name in ('matplotlib', 'prefect', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0


@pytest.mark.usefixtures("undrawn")
def test_held_out_requests_left_out_are_said_with_the_variant_that_had_none() -> None:
    some = {name: one.model_copy(update={"left_out": {"longer than 9 tokens": 2}}) for name, one in variants().items()}
    one = some["kd"].model_copy(update={"left_out": {"longer than 9 tokens": 2, "without a number": 1}})
    data = sample_report(variants=some | {"kd": one})
    said = f"Held-out requests left out for every variant: 2 longer than 9 tokens; 1 without a number ({LABELS['kd']})."
    assert said in Page(render_page(data)).text
    assert said in render_markdown(data)
    assert "left out for every variant" not in render_page(sample_report())


def test_the_page_says_how_many_rows_each_of_several_teachers_scored() -> None:
    sentence = "Rows scored: 1,200 by 72B, 300 by 32B (code writing). Students are compared with 7B."
    report = sample_report(teacher="7B", scored_by={"72B": 1200, "32B (code writing)": 300})
    assert sentence in render_page(report)
    assert sentence in render_markdown(report).replace("\\", "")
    assert "Rows scored" not in render_page(sample_report())
