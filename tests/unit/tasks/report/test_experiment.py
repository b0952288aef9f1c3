"""An experiment's arms: what is chosen, on which rows, and what the page says of it."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from infra.store.artifacts import ArtifactRef
from tasks.report.copies import report_file
from tasks.report.data import Coverage
from tasks.report.experiment.arms import ArmCost, ArmResult, ArmRun, measured, rows_of
from tasks.report.experiment.choice import recommended, saturation, verdict
from tasks.report.experiment.coverage import curves
from tasks.report.experiment.page import measurements, render_markdown, render_page, rows
from tasks.report.experiment.question import ExperimentQuestion

N = 800
IDS = [f"row{n}" for n in range(N)]
WHICH = ExperimentQuestion(title="Which K", question="How many?", prefer="store_bytes", against=("k", "store_bytes"))


def _table(right: np.ndarray, nll: float = 1.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row_id": IDS,
            "correct": right.astype(object),
            "wrong_result": [None if one else "wrong" for one in right],
            "generated": ["a" if one else "b" for one in right],
            "generated_tokens": 5,
            "truncated": False,
            "samples_correct": [[]] * N,
            "response_tokens": 10,
            "nll": 10 * nll,
            "kl_tokens": 10,
            "kl_to_teacher": 1.0,
            "topk_kl": 1.0,
            "top1_agreed": 8,
            "accepted": 6.0,
        }
    )


def _arm(name: str, share: float, size: int, place: dict[str, Any] | None = None, seeds: int = 3) -> ArmResult:
    """An arm that answers `share` of the same easy rows, give or take a little luck."""
    tables = []
    for seed in range(seeds):
        ease = np.random.default_rng(0).random(N) + 0.02 * np.random.default_rng([seed, size]).random(N)
        kd, control, teacher = (ease < np.quantile(ease, level) for level in (share, 0.5, 0.9))
        tables.append({"kd": _table(kd), "sft_control": _table(control), "teacher": _table(teacher)})
    took = [ArmCost(60.0 * size, 0.0, size, size * 1000)] * seeds
    return ArmResult(name, {"k": size} if place is None else place, "kd", tables, took, k=size)


def test_the_cheapest_that_none_beats_by_more_than_it_is_worth_is_taken() -> None:
    arms = [_arm("k 50", 0.72, 50), _arm("k 5", 0.60, 5), _arm("k 10", 0.715, 10)]
    assert recommended(WHICH, arms).name == "k 10"
    assert recommended(WHICH.model_copy(update={"worth": 0.2}), arms).name == "k 5"
    assert recommended(WHICH.model_copy(update={"prefer": "listed"}), arms).name == "k 50"
    words = verdict(WHICH, arms, failed=1)
    assert words.startswith(
        "Take k 10: no other is better by more than 1.0 points, and k 5, which costs least, differs"
    )
    assert "k 50, the best of the others, " in words
    assert words.endswith("1 run failed.")


def test_of_arms_that_cost_about_the_same_the_best_is_taken() -> None:
    arms = [_arm("k 100", 0.7, 100), _arm("k 109", 0.715, 109), _arm("k 111", 0.715, 111)]
    assert recommended(WHICH, arms).name == "k 109"
    assert "and k 100, which costs about as much, differs by" in verdict(WHICH, arms)
    assert recommended(WHICH, [arms[0], arms[2]]).name == "k 100"
    free = WHICH.model_copy(update={"prefer": "usd"})  # no arm costs a dollar
    assert recommended(free, [arms[0], arms[2]]).name == "k 111"


def test_rows_that_a_choice_is_made_on_are_not_those_that_are_quoted() -> None:
    choosing, quoted = rows_of("choosing", IDS), rows_of("quoted", IDS)
    assert sorted(choosing + quoted) == list(range(N))
    assert 0.4 < len(choosing) / N < 0.6
    lucky = _arm("lucky", 0.5, 5)
    right = np.zeros(N, bool)
    right[choosing] = True
    arms = [
        ArmResult("lucky", {}, "kd", [{**lucky.tables[0], "kd": _table(right)}] * 3, lucky.taken),
        _arm("k 50", 0.7, 50),
    ]
    assert recommended(WHICH, arms).name == "lucky"
    assert "0.0 % (0.0 – 0.0) requests answered correctly" in verdict(WHICH, arms)


def test_where_answers_are_not_checked_cross_entropy_decides_and_less_is_better() -> None:
    unchecked = np.array([None] * N, object)
    arms = [
        ArmResult(name, {}, "kd", [{"kd": _table(unchecked, nll)}] * 2, [ArmCost(1, 0, 1, 1)] * 2)
        for name, nll in (("worse", 1.5), ("better", 1.1))
    ]
    assert recommended(WHICH, arms).name == "better"
    assert "cross-entropy" in verdict(WHICH, arms)


@pytest.mark.parametrize(
    ("shares", "words"),
    [((0.6, 0.62, 0.75), "It grows from s5 to s50."), ((0.7, 0.6, 0.7), "No significant trend.")],
)
def test_a_trend_is_that_from_the_first_arm_to_the_last(shares: Sequence[float], words: str) -> None:
    asked = ExperimentQuestion(title="t", question="q", asks="trend", measure="gain")
    arms = [_arm(f"s{size}", share, size) for share, size in zip(shares, (5, 10, 50), strict=True)]
    assert verdict(asked, arms).startswith(words)
    assert measured(arms[2].tables[0], "kd", "gain").value == pytest.approx(shares[2] - 0.5, abs=0.01)


def test_the_teachers_errors_that_a_student_makes_too_are_counted_among_the_teachers_errors() -> None:
    arm = _arm("one", 0.7, 10, seeds=1)
    assert measured(arm.tables[0], "kd", "inherited_errors").value == 1.0  # the student is wrong wherever it is
    assert measured(arm.tables[0], "teacher", "inherited_errors").counts.sum() == pytest.approx(0.1 * N, abs=1)


def test_a_curve_over_rows_says_where_more_of_them_pay_no_more() -> None:
    asked = ExperimentQuestion(title="t", question="q", asks="saturation", prefer="rows", against=("rows",))
    arms = [_arm(f"{n} rows", 1 - 0.2 - 3 * n**-0.7, n) for n in (100, 200, 400, 800, 1600)]
    fitted = saturation(asked, arms)
    assert fitted is not None
    assert fitted.floor == pytest.approx(0.2, abs=0.04)
    for n in (100, 400, 1600):
        assert fitted.share_right(n) == pytest.approx(1 - 0.2 - 3 * n**-0.7, abs=0.015)
    enough = fitted.enough(0.01)
    assert fitted.share_right(2 * enough) - fitted.share_right(enough) == pytest.approx(0.01)
    assert f"from {enough:,.0f} rows on, twice as many gain less than 1.0 points" in verdict(asked, arms)
    assert saturation(asked, arms[:2]) is None


def test_the_page_has_every_arm_and_figure_and_nothing_of_a_name_is_markup() -> None:
    arms = [
        _arm(f"k {k}, tail {tail}", 0.6 + k / 500, k, {"k": k, "kd.tail": tail})
        for k in (5, 50)
        for tail in ("<b>renormalise</b>", "bucket")
    ]
    runs = [ArmRun(arm="k 5", seed=0, failed="no <i>space</i>", link=None)]
    page = render_page(WHICH, runs, arms, demo=True)
    assert "<b>" not in page
    assert "<i>" not in page
    assert page.count("<figure>") == 3
    assert page.count('<th scope="row">') == len(rows(WHICH, arms)) == 4
    text = render_markdown(WHICH, runs, arms, demo=True)
    assert text.startswith("**Take ")
    assert "failed: k 5, seed 0: no" in text
    table = pd.DataFrame(measurements(arms))
    assert set(table["part"]) == {"choosing", "quoted"}
    assert len(table) == 4 * 3 * 2 * 6
    one = table[(table.arm == arms[0].name) & (table.seed == 1) & (table.part == "quoted") & (table.measure == "gain")]
    assert one["value"].item() == pytest.approx(arms[0].values("gain", "quoted")[1].value)


def test_the_table_has_what_the_arms_took_differently_and_the_agents_shares() -> None:
    arms = [_arm("all agents", 0.7, 10), _arm("no selection", 0.6, 10)]
    assert not {"rows", "device time", "teacher scores", "API cost", "drifted"} & rows(WHICH, arms)[0].keys()
    took = [
        [ArmCost(60.0, usd, 10, 10_000, left_out=left_out, drift=0.05) for left_out in (0.2, 0.3, 0.4)]
        for usd in (1.5, 1.25)
    ]
    took[1] = [dataclasses.replace(one, left_out=None) for one in took[1]]
    arms = [dataclasses.replace(arm, taken=taken) for arm, taken in zip(arms, took, strict=True)]
    found = rows(WHICH, arms)
    assert [row["left out by agents"] for row in found] == ["30.0 %", "–"]
    assert [row["API cost"] for row in found] == ["$1.50", "$1.25"]
    assert not {"rows", "drifted"} & found[0].keys()


def test_points_against_a_cost_are_named_each_in_its_place() -> None:
    arms = [_arm(name, 0.6, size) for name, size in (("cheap", 10), ("dearer", 11), ("dearest", 40))]
    asked = WHICH.model_copy(update={"against": ("device_seconds",)})
    figure = render_page(asked, [], arms, demo=False).split("Against device time")[1].split("</figure>")[0]
    at = {
        name: (float(x), float(y)) for x, y, name in re.findall(r' x="([\d.]+)" y="([\d.]+)"[^>]*>(\w+)</text>', figure)
    }
    assert {"cheap", "dearer", "dearest"} <= at.keys()
    assert at["dearer"][0] - at["cheap"][0] < 40
    assert abs(at["dearer"][1] - at["cheap"][1]) > 9  # as high as the letters are
    assert at["dearest"][0] > at["dearer"][0] + 100
    assert "Against device time" not in render_page(asked, [], arms[:2], demo=False)


def test_of_no_arm_or_one_nothing_is_recommended() -> None:
    assert verdict(WHICH, [], failed=2) == "No arm finished. 2 runs failed."
    assert verdict(WHICH, [_arm("k 5", 0.5, 5)]).startswith("Only k 5 finished")
    assert "No arm finished" in render_page(WHICH, [], [], demo=False)


def _covered(arm: ArmResult, by_k: list[float], tokens: int = 100) -> ArmResult:
    coverage = Coverage(k=len(by_k), mean=by_k[-1], percentiles={}, histogram=[0] * 20, tokens=tokens, by_k=by_k)
    return dataclasses.replace(arm, coverage=coverage)


def test_the_page_draws_how_much_every_k_holds_and_marks_those_that_arms_learn_from() -> None:
    by_k = [0.7, 0.8125, 0.9, 0.95, 0.975]
    arms = [_covered(_arm(f"k {k}", 0.6, k), by_k) for k in (2, 5)]
    page = render_page(WHICH, [], arms, demo=False)
    figure = page.split("<h3>Coverage by K</h3>")[1].split("</figure>")[0]
    assert re.findall(r">([\d.]+ %)<", figure) == ["81.2 %", "97.5 %"]
    assert "its top K tokens hold, over 100 supervised tokens" in figure
    assert [(coverage.by_k, [arm.name for arm in of]) for coverage, of in curves(arms)] == [(by_k, ["k 2", "k 5"])]


def test_stores_that_differ_have_a_line_each_and_one_that_did_not_measure_none() -> None:
    arms = [
        _covered(_arm("14B", 0.6, 1, {}), [0.7, 0.8]),
        _covered(_arm("72B", 0.7, 2, {}), [0.75, 0.9], tokens=90),
        _arm("no scores", 0.5, 3, {}),
    ]
    figure = render_page(WHICH, [], arms, demo=False).split("<h3>Coverage by K</h3>")[1].split("</figure>")[0]
    assert re.findall(r">(14B|72B|no scores)<", figure) == ["14B", "72B"]
    assert "over 100 and 90 supervised tokens" in figure
    assert "Coverage by K" not in render_page(WHICH, [], [arms[2], _arm("other", 0.6, 4, {})], demo=False)


def test_every_finished_run_is_linked_to_by_its_report() -> None:
    ref = ArtifactRef(kind="report", uri="s3://b/report/x/", sha256="a", fingerprint="f")
    runs = [ArmRun(arm="k 5", seed=0, report=ref), ArmRun(arm="k 5", seed=1, failed="no")]
    listed = render_page(WHICH, runs, [_arm("k 5", 0.5, 5)], demo=False).split("<h2>Runs</h2>")[1]
    assert re.findall(r'href="([^"]+)"', listed) == [report_file("k 5, seed 0")]
