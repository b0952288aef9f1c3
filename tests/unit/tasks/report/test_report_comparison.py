"""The verdict says what the numbers allow, and no more."""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np
import pytest

from tasks.report.comparison import comparison_rows, gap_closed, points, verdict
from tasks.report.data import TeacherUse, Variant
from tasks.report.page import render_markdown, render_page
from tasks.report.stage import label_of
from tasks.stats.intervals import PerRow
from tasks.stats.significance import paired_permutation
from tests.support.report_cases import analysed, compared, with_right_answers
from tests.support.report_sample import N, sample_report, unmarked_variants, variants


def test_better_names_share_gain_baseline_and_interval() -> None:
    assert verdict(with_right_answers(both=358, only_kd=78, only_control=39)) == (
        "Distillation helps: SFT+KD answers 68.1 % of 640 held-out requests correctly, 6.1 points above the same "
        "training without the teacher’s logits (SFT control), 95 % interval +2.8 to +9.4."
    )


def test_worse_says_that_it_hurts() -> None:
    sentence = verdict(with_right_answers(both=358, only_kd=39, only_control=78))
    assert sentence.startswith("Distillation hurts: SFT+KD answers 62.0 %")
    assert "6.1 points below the same training" in sentence
    assert sentence.endswith("95 % interval −9.4 to −2.8.")


def test_a_small_gain_is_no_significant_difference() -> None:
    sentence = verdict(with_right_answers(both=380, only_kd=30, only_control=26))
    assert sentence.startswith("No significant difference between SFT+KD and the SFT control: 64.1 % against 63.4 %")
    assert "+0.6 points" in sentence
    assert "helps" not in sentence


@pytest.mark.parametrize(("p", "nearer"), [(0.0004, True), (0.486, False), (None, False)])
def test_no_gain_in_accuracy_names_a_smaller_distance_to_the_teacher_where_a_test_bears_it_out(
    p: float | None, nearer: bool
) -> None:
    data = with_right_answers(both=380, only_kd=30, only_control=26)
    sentence = verdict(data.model_copy(update={"analysis": analysed(compared("kl_to_teacher", 0.231, 0.361, p))}))
    told = "nearer to the teacher all the same (KL 0.231 against 0.361 nats a token, p < 0.001)" in sentence
    assert told == nearer
    assert ("nearer" in sentence) == nearer


def test_equal_answers_are_no_difference() -> None:
    assert "a difference of 0.0 points" in verdict(with_right_answers(both=400, only_kd=0, only_control=0))


def test_without_marks_the_interval_is_the_wider_unpaired_one() -> None:
    paired = with_right_answers(both=380, only_kd=50, only_control=20)
    unpaired = paired.model_copy(
        update={"variants": {name: v.model_copy(update={"correct": None}) for name, v in paired.variants.items()}}
    )
    assert verdict(paired).startswith("Distillation helps")
    assert verdict(unpaired).startswith("No significant difference")


KL_P, CE_P = 0.0004, 0.020


@pytest.mark.parametrize(
    ("kl", "entropy", "expected"),
    [
        ((0.231, KL_P), (0.401, CE_P), ("SFT+KD is nearer to the teacher than", "p < 0.001; it predicts", "better")),
        ((0.231, KL_P), (0.460, CE_P), ("SFT+KD is nearer to the teacher than", "held-out responses worse", "0.020")),
        ((0.356, 0.486), (0.432, 0.9), ("No significant difference in distance", "p = 0.486; no significant", "0.432")),
        ((0.500, KL_P), (0.401, 0.3), ("SFT+KD is further from the teacher than", "; no significant difference in")),
        ((0.231, None), (0.401, None), ("No verdict: SFT+KD was not tested against the SFT control",)),
    ],
)
def test_without_execution_the_verdict_speaks_of_distance_as_far_as_it_was_tested(
    kl: tuple[float, float | None], entropy: tuple[float, float | None], expected: tuple[str, ...]
) -> None:
    given = unmarked_variants(kd={"kl_to_teacher": kl[0], "cross_entropy": entropy[0]})
    tests = compared("kl_to_teacher", kl[0], 0.361, kl[1]), compared("cross_entropy", entropy[0], 0.432, entropy[1])
    sentence = verdict(sample_report(variants=given, analysis=analysed(*tests)))
    for words in expected:
        assert words in sentence
    assert "does not say whether more answers are right" in sentence
    assert "%" not in sentence
    assert "No verdict" in verdict(sample_report(variants=given, analysis=None))


def test_of_arms_that_do_not_differ_hardly_any_report_claims_a_difference() -> None:
    """200 runs of two equal arms, answers executed and not: at most 5 % may say that one is better or nearer."""
    rng = np.random.default_rng(5)
    claims = Counter[str]()
    run, unmarked = sample_report(), sample_report(variants=unmarked_variants())
    for _ in range(200):
        marked = {
            name: run.variants[name].model_copy(update={"correct": arm.tolist(), "exec_accuracy": float(arm.mean())})
            for name, arm in zip(("kd", "sft_control"), rng.random((2, N)) < 0.15, strict=True)
        }
        claims["helps"] += verdict(run.model_copy(update={"variants": marked})).startswith("Distillation helps")
        tokens = rng.integers(8, 60, 80)
        arms = [PerRow.of(rng.gamma(2, 0.2, 80) * tokens, tokens) for _ in range(2)]
        found = paired_permutation(*arms)
        tests = compared("kl_to_teacher", arms[0].value, arms[1].value, found)
        claims["nearer"] += "is nearer to" in verdict(unmarked.model_copy(update={"analysis": analysed(tests)}))
    assert claims["helps"] <= 10
    assert claims["nearer"] <= 10


def test_diverged_training_is_called_that() -> None:
    given = unmarked_variants(kd={"kl_to_teacher": math.nan, "cross_entropy": math.nan})
    assert "diverged" in verdict(sample_report(variants=given))


@pytest.mark.parametrize("missing", ["kd", "sft_control"])
def test_no_verdict_without_both_sides(missing: str) -> None:
    given = {name: variant for name, variant in variants().items() if name != missing}
    assert verdict(sample_report(variants=given)).startswith("No verdict")


def test_rows_share_their_columns_and_follow_the_order_of_training() -> None:
    shuffled = dict(reversed(variants().items()))
    rows = comparison_rows(sample_report(variants=shuffled))
    assert [row["variant"] for row in rows] == ["base", "SFT", "SFT control", "SFT+KD", "teacher"]
    assert len({tuple(row) for row in rows}) == 1


def test_rows_without_execution_have_no_accuracy_columns() -> None:
    rows = comparison_rows(sample_report(variants=unmarked_variants()))
    assert list(rows[0]) == ["variant", "cross-entropy", "KL to teacher", "n"]


def test_gap_closed_is_silent_when_the_teacher_is_no_better() -> None:
    given = variants()
    assert gap_closed(sample_report(variants=given)) == pytest.approx(0.3, abs=0.05)
    given["teacher"] = given["teacher"].model_copy(update={"exec_accuracy": given["sft_control"].exec_accuracy})
    assert gap_closed(sample_report(variants=given)) is None


def test_points_have_a_sign_but_zero_has_none() -> None:
    assert [points(share) for share in (0.061, -0.004, -0.0001)] == ["+6.1", "−0.4", "0.0"]


def test_marks_of_different_lengths_are_refused() -> None:
    given = variants()
    given["kd"] = Variant(
        label="SFT+KD",
        exec_accuracy=1.0,
        cross_entropy=0.4,
        kl_to_teacher=0.2,
        n=2,
        correct=[True, True],
        uri="s3://b/kd/",
    )
    with pytest.raises(ValueError, match=r"different numbers of requests: \[2, 640\]"):
        sample_report(variants=given)


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.020, "SFT+KD predicts held-out responses better than the same training without the teacher’s logits"),
        (0.4, "No significant difference between SFT+KD and the same training without the teacher’s logits"),
        (None, "No verdict: SFT+KD was not tested against the SFT control"),
    ],
)
def test_without_a_teacher_to_compare_with_the_references_decide(p: float | None, expected: str) -> None:
    known = {name: one.model_copy(update={"kl_to_teacher": None}) for name, one in unmarked_variants().items()}
    known.pop("teacher")
    analysis = analysed(compared("cross_entropy", 0.3, 0.4, p))
    asked = TeacherUse(requests=9, prompt_tokens=10, completion_tokens=20, cost_usd=1.5, answers=8, left_out={"cut": 1})
    data = sample_report(variants=known, analysis=analysis, teacher_use=asked, teacher="openai/x")
    assert verdict(data).startswith(expected)
    assert {row["KL to teacher"] for row in comparison_rows(data)} == {"–"}
    page = render_markdown(data)
    assert "KL to the teacher is not known: an API model scores no given text." in page
    assert "8 answers that openai/x wrote to the prompts, asked 9 times for $1.50 (10 and 20 tokens)" in page
    assert "1 prompts are left out (1 cut)" in page
    assert "KL to the teacher is not known" in render_page(data)


def test_each_control_has_one_name_on_every_page() -> None:
    assert (label_of("sft_control"), label_of("kd_continued")) == ("SFT control", "KD control")
    said = render_page(sample_report()) + render_markdown(sample_report())
    assert "against SFT control" in said
    assert not re.search(r"continued \(control", said)
