"""Summaries, slices, regressions and inheritance, on tables made by hand."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from tasks.evaluate.analysis.analysis import analyse
from tasks.evaluate.analysis.comparisons import compare
from tasks.evaluate.analysis.inherited import distinct, inherited, styles
from tasks.evaluate.analysis.slices import regressions, slices
from tasks.evaluate.heldout.predictions import SCHEMA, from_parquet, summary, to_parquet, without_numbers
from tasks.report.data import ReportData
from tests.support.prediction_tables import full, table, wrong

LABELS = {"base": "base", "sft": "SFT", "sft_control": "control", "kd": "KD", "teacher": "teacher"}


def test_a_summary_weighs_tokens_and_counts_calibration() -> None:
    second: dict[str, Any] = {"nll": 40.0, "response_tokens": 20, "correct": False}
    second |= {"generated_tokens": 5, "truncated": True}
    second |= {"calibration_tokens": [0.0, 10.0] + [0.0] * 13, "calibration_confidence": [0.0, 1.0] + [0.0] * 13}
    second |= {"calibration_hits": [0.0, 4.0] + [0.0] * 13}
    found = summary(table({}, second))
    assert found["cross_entropy"] == pytest.approx(45 / 30)
    assert found["perplexity"] == pytest.approx(math.exp(1.5))
    assert (found["exec_accuracy"], found["truncated"], found["output_tokens"]) == (0.5, 0.5, 4.0)
    assert (found["kl_to_teacher"], found["topk_kl"], found["top1_agreement"]) == pytest.approx((0.1, 0.05, 0.8))
    # bins of 10 tokens each: |0.4 − 0.1| and |0.9 − 0.97|
    assert found["ece"] == pytest.approx((0.3 + 0.07) / 2)
    assert found["calibration"][0] == pytest.approx(
        {"low": 1 / 15, "high": 2 / 15, "tokens": 10, "confidence": 0.1, "accuracy": 0.4}
    )


def test_sampled_answers_have_an_accuracy_of_their_own() -> None:
    first, second = ({"samples": ["a", "b"], "samples_correct": marks} for marks in ([True, False], [False, False]))
    found = summary(table(first, second))
    assert (found["sampled_accuracy"], found["any_sample_correct"]) == (0.25, 0.5)


def test_without_execution_there_is_no_accuracy() -> None:
    found = summary(table({"correct": None}, {"correct": None}))
    assert found["exec_accuracy"] is None
    assert inherited(*[table({"correct": None})] * 3).errors is None


def test_a_table_survives_parquet() -> None:
    rows = [full({}), full(wrong()), full({"correct": None, "row_id": "unjudged"})]
    again = from_parquet(to_parquet(rows))
    assert again["correct"].tolist() == [True, False, None]
    expected = table({}, wrong(), {"correct": None}).assign(row_id=[row["row_id"] for row in rows])
    lists = [name for name in SCHEMA.names if name.startswith(("calibration", "samples"))]
    pd.testing.assert_frame_equal(again.drop(columns=lists), expected.drop(columns=lists), check_dtype=False)
    for name in lists:
        assert [list(value) for value in again[name]] == [list(value) for value in expected[name]]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", ["nll", "kl_to_teacher", "topk_kl"])
def test_few_rows_without_numbers_are_left_out_and_a_diverged_model_keeps_its_own(column: str, bad: float) -> None:
    whole: dict[str, Any] = {"nll": 1.0, "kl_to_teacher": 1.0, "topk_kl": 1.0}
    rows = [{"row_id": f"{i}", **whole} for i in range(20)]
    assert without_numbers(rows) == []
    rows[3][column] = rows[7][column] = bad
    assert without_numbers(rows) == ["3", "7"]
    rows[8][column] = bad
    assert without_numbers(rows) == []  # more than a tenth


def test_slices_are_the_rows_they_name() -> None:
    rows = [
        {"task_category": "join", "response_tokens": 2, "nll": 1.0},
        {"task_category": "join", "response_tokens": 8, "nll": 1.0, "language": "zh"},
        {"task_category": "filter", "response_tokens": 20, "nll": 40.0},
    ]
    teacher = table(*rows)
    kd = table(*(row | change for row, change in zip(rows, ({}, wrong(), {}), strict=True)))
    found = {(one.by, one.name.split(" (")[0]): one for one in slices({"kd": kd, "teacher": teacher})}
    assert found["task category", "join"].values["kd"]["exec_accuracy"].estimate == 0.5
    assert found["task category", "join"].values["teacher"]["cross_entropy"].estimate == pytest.approx(0.2)
    assert found["language", "zh"].n == 1
    assert found["response length", "long"].values["kd"]["cross_entropy"].estimate == 2.0
    assert found["the teacher’s loss", "low"].values["kd"]["exec_accuracy"].estimate == 0.0  # 1 / 8 nats a token
    for by in ("task category", "language", "response length", "the teacher’s loss"):
        assert sum(one.n for (of, _name), one in found.items() if of == by) == 3


def test_regressions_are_what_base_could_do_and_losses_that_grew() -> None:
    base = table({}, wrong(), {}, {})
    kd = table({"nll": 30.0}, wrong(), wrong("SELECT 9") | {"nll": 6.0}, {"nll": 1.0})
    found = regressions(kd, base)
    assert (found.answers, found.losses, found.n) == (1, 2, 4)
    assert [(row.row_id, row.base, row.variant) for row in found.worst_answers] == [("row2", "SELECT 1", "SELECT 9")]
    assert [(row.row_id, row.loss_increase) for row in found.worst_losses] == [
        ("row0", pytest.approx(2.5)),
        ("row2", pytest.approx(0.1)),
    ]


def test_inherited_errors_are_the_teachers_mistakes_beyond_base() -> None:
    teacher = table({}, wrong(), wrong(), wrong("SELECT x", None), wrong())
    base = table(wrong(), wrong(), wrong("SELECT 3", "three"), wrong("SELECT 3", "three"), {})
    student = table({}, wrong("select 2.0"), wrong(), wrong("select  X", None), wrong("SELECT 3", "three"))
    found = inherited(student, base, teacher).errors
    assert found is not None
    # of the teacher's 4 errors the student repeats 3 (two by result, one by text), base 1
    assert (found.n, found.student.estimate, found.base.estimate) == (4, 0.75, 0.25)
    assert found.excess.estimate == 0.5
    assert found.p == 0.5  # 2 gained, none lost


def test_a_right_answer_repeats_no_error_even_where_only_its_case_differs() -> None:
    teacher, student = table(wrong("WHERE city = 'quito'", None)), table({"generated": "WHERE city = 'Quito'"})
    found = inherited(student, student, teacher).errors
    assert found is not None
    assert found.student.estimate == 0


def test_refusals_are_counted_where_the_teacher_refuses() -> None:
    no = {"generated": "I'm sorry, but I can't help with that."}
    found = inherited(table(no, no, no), table({}, no, no), table(no, no, {})).refusals
    assert found is not None
    assert (found.n, found.student.estimate, found.base.estimate) == (2, 1.0, 0.5)
    assert inherited(table(no), table({}), table({})).refusals is None


def test_styles_count_what_a_reader_would() -> None:
    plain, rich = "one two one two", "# Title\n\n- **one**\n- two\n\n```sql\nSELECT 1\n```"
    found = styles({"kd": table({"generated": rich}, {"generated": plain}), "teacher": table({"generated": plain})})
    assert (found["kd"].markdown, found["kd"].lists, found["kd"].code) == (0.5, 0.5, 0.5)
    assert found["kd"].to_teacher == pytest.approx((len(rich) + len(plain)) / 2 / len(plain))
    assert found["kd"].to_base is None
    assert (found["teacher"].markdown, found["teacher"].lists, found["teacher"].code) == (0, 0, 0)


def test_distinct_counts_ngrams_and_cjk_characters() -> None:
    assert distinct(["one two one two"], 1) == 0.5
    assert distinct(["one two one two"], 2) == pytest.approx(2 / 3)
    assert distinct(["你好你"], 1) == pytest.approx(2 / 3)
    assert math.isnan(distinct([""], 1))


def test_comparisons_are_corrected_within_a_metric() -> None:
    right, false = table(*[{}] * 40), table(*[wrong()] * 12, *[{}] * 28)
    tables = {"base": false, "sft": false, "sft_control": false, "kd": right, "teacher": right}
    found = {(c.metric, c.ours, c.theirs): c for c in compare(tables, LABELS)}
    main = found["exec_accuracy", "KD", "control"]
    assert (main.p, main.family) == (2 * 0.5**12, 5)
    assert main.p_adjusted == pytest.approx(5 * 2 * 0.5**12)
    assert found["exec_accuracy", "KD", "teacher"].p == 1.0
    assert ("kl_to_teacher", "KD", "teacher") not in found


def test_an_analysis_survives_json_also_with_a_model_that_diverged() -> None:
    rows = [{"nll": float(index + 1), "task_category": f"c{index % 2}"} for index in range(20)]
    tables = {name: table(*rows) for name in LABELS}
    tables["kd"] = table(*(row | {"nll": math.nan, "calibration_confidence": [math.nan] * 15} for row in rows))
    analysis = analyse(tables, LABELS)
    assert any("cannot be compared" in words for words in analysis.verdicts)
    again = type(analysis).model_validate_json(analysis.model_dump_json())
    assert math.isnan(again.metrics["kd"]["cross_entropy"].estimate)
    assert again.slices[0].values["sft"] == analysis.slices[0].values["sft"]
    assert ReportData.model_fields["analysis"].annotation


def test_without_a_teacher_nothing_is_said_of_one() -> None:
    alone: dict[str, Any] = {"kl_tokens": 0, "kl_to_teacher": 0.0, "topk_kl": 0.0, "top1_agreed": 0}
    tables = {name: table(alone, alone | wrong()) for name in LABELS if name != "teacher"}
    found = analyse(tables, LABELS)
    assert {"kl_to_teacher", "topk_kl", "top1_agreement"}.isdisjoint(found.metrics["kd"])
    assert {one.metric for one in found.comparisons} >= {"exec_accuracy", "cross_entropy"}
    assert found.inherited == {}
    assert {one.by for one in found.slices} == {"task category", "language", "response length"}
    assert found.styles["kd"].to_teacher is None
