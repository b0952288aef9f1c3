"""The verdict says what the numbers allow, and no more."""

from __future__ import annotations

import math

import pytest

from tasks.report.comparison import comparison_rows, gap_closed, points, verdict
from tasks.report.data import ReportData, Variant
from tests.support.report_sample import N, sample_report, unmarked_variants, variants


def with_right_answers(kd: list[bool], control: list[bool]) -> ReportData:
    given = variants()
    for name, correct in (("kd", kd), ("sft_control", control)):
        marks = {"correct": correct, "exec_accuracy": sum(correct) / len(correct)}
        given[name] = given[name].model_copy(update=marks)
    return sample_report(variants=given)


def marks(both: int, only_kd: int, only_control: int) -> tuple[list[bool], list[bool]]:
    rest = N - both - only_kd - only_control
    kd = [True] * both + [True] * only_kd + [False] * only_control + [False] * rest
    control = [True] * both + [False] * only_kd + [True] * only_control + [False] * rest
    return kd, control


def test_better_names_share_gain_baseline_and_interval() -> None:
    assert verdict(with_right_answers(*marks(both=358, only_kd=78, only_control=39))) == (
        "Distillation helps: SFT+KD answers 68.1 % of 640 held-out requests correctly, 6.1 points above the same "
        "training without the teacher’s logits (SFT control), 95 % interval +2.8 to +9.4."
    )


def test_worse_says_that_it_hurts() -> None:
    sentence = verdict(with_right_answers(*marks(both=358, only_kd=39, only_control=78)))
    assert sentence.startswith("Distillation hurts: SFT+KD answers 62.0 %")
    assert "6.1 points below the same training" in sentence
    assert sentence.endswith("95 % interval −9.4 to −2.8.")


def test_a_small_gain_is_no_significant_difference() -> None:
    sentence = verdict(with_right_answers(*marks(both=380, only_kd=30, only_control=26)))
    assert sentence.startswith("No significant difference between SFT+KD and the SFT control: 64.1 % against 63.4 %")
    assert "+0.6 points" in sentence
    assert "helps" not in sentence


def test_no_gain_in_accuracy_still_reports_a_smaller_distance_to_the_teacher() -> None:
    sentence = verdict(with_right_answers(*marks(both=380, only_kd=30, only_control=26)))
    assert "nearer to the teacher all the same (KL 0.231 against 0.361 nats a token)" in sentence


def test_equal_answers_are_no_difference() -> None:
    assert "a difference of 0.0 points" in verdict(with_right_answers(*marks(both=400, only_kd=0, only_control=0)))


def test_without_marks_the_interval_is_the_wider_unpaired_one() -> None:
    paired = with_right_answers(*marks(both=380, only_kd=50, only_control=20))
    unpaired = paired.model_copy(
        update={"variants": {name: v.model_copy(update={"correct": None}) for name, v in paired.variants.items()}}
    )
    assert verdict(paired).startswith("Distillation helps")
    assert verdict(unpaired).startswith("No significant difference")


@pytest.mark.parametrize(
    ("kl", "cross_entropy", "expected"),
    [
        (0.231, 0.401, ("nearer to the teacher than", ", and predicts held-out responses better")),
        (0.231, 0.460, ("nearer to the teacher than", ", but predicts held-out responses worse")),
        (0.360, 0.432, ("no nearer to the teacher than", ", and predicts held-out responses equally well")),
        (0.500, 0.401, ("further from the teacher than", ", but predicts held-out responses better")),
    ],
)
def test_without_execution_the_verdict_speaks_of_distance(
    kl: float, cross_entropy: float, expected: tuple[str, str]
) -> None:
    given = unmarked_variants(kd={"kl_to_teacher": kl, "cross_entropy": cross_entropy})
    sentence = verdict(sample_report(variants=given))
    for words in expected:
        assert words in sentence
    assert "does not say whether more answers are right" in sentence
    assert "%" not in sentence


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
