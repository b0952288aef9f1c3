"""What to ship, in every case: KD, its control or neither; and what the page makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tasks.report.data import ReportData, StageSummary
from tasks.report.decision import decision, shipped
from tasks.report.page import render_markdown, render_page, verdict
from tests.support.report_cases import analysed, compared, with_right_answers
from tests.support.report_sample import sample_report, unmarked_variants, variants

KD, CONTROL = "Ship SFT+KD.", "Ship SFT control, not SFT+KD."
SAME = "Ship SFT control: SFT+KD is not shown to be better, and takes a teacher."
MIXED = "Ship neither before answers are checked: the two measures disagree."
NO_BETTER = "Ship neither: {} is not shown to be better than the base student."
UNKNOWN = "Ship neither yet."


def with_base(data: ReportData, **changes: Any) -> ReportData:
    base = data.variants["base"].model_copy(update=changes)
    return data.model_copy(update={"variants": data.variants | {"base": base}})


def unchecked(kl: tuple[float, float | None], entropy: tuple[float, float], **base: Any) -> ReportData:
    """KD's KL (0.361 of the control) and cross-entropy (0.432), each with its p."""
    given = unmarked_variants(kd={"kl_to_teacher": kl[0], "cross_entropy": entropy[0]})
    tests = compared("kl_to_teacher", kl[0], 0.361, kl[1]), compared("cross_entropy", entropy[0], 0.432, entropy[1])
    return with_base(sample_report(variants=given, analysis=analysed(*tests)), **base)


def without_teacher(entropy: float, p: float | None) -> ReportData:
    known = {name: one.model_copy(update={"kl_to_teacher": None}) for name, one in unmarked_variants().items()}
    return sample_report(variants=known, analysis=analysed(compared("cross_entropy", entropy, 0.432, p)))


WINS = with_right_answers(both=358, only_kd=78, only_control=39)
LOSES = with_right_answers(both=358, only_kd=39, only_control=78)
EQUAL = with_right_answers(both=380, only_kd=30, only_control=26)
CASES = {
    "better": (WINS, KD, "kd"),
    "worse": (LOSES, CONTROL, "sft_control"),
    "same": (EQUAL, SAME, "sft_control"),
    "better, but not than base": (with_base(WINS, correct=[True] * 640, exec_accuracy=1.0), NO_BETTER, "SFT+KD"),
    "worse, and base no worse": (with_base(LOSES, correct=[True] * 640, exec_accuracy=1.0), NO_BETTER, "SFT control"),
    "nearer": (unchecked((0.231, 0.0004), (0.401, 0.3)), KD, "kd"),
    "nearer and better": (unchecked((0.231, 0.0004), (0.401, 0.02)), KD, "kd"),
    "nearer and worse": (unchecked((0.231, 0.0004), (0.46, 0.02)), MIXED, None),
    "further": (unchecked((0.5, 0.0004), (0.432, 0.9)), CONTROL, "sft_control"),
    "further and better": (unchecked((0.5, 0.0004), (0.401, 0.02)), MIXED, None),
    "as near": (unchecked((0.356, 0.486), (0.432, 0.9)), SAME, "sft_control"),
    "untested": (unchecked((0.231, None), (0.401, 0.02)), UNKNOWN, None),
    "nearer, but base is as good": (unchecked((0.231, 0.0004), (0.401, 0.3), cross_entropy=0.401), NO_BETTER, "SFT+KD"),
    "no teacher, better": (without_teacher(0.3, 0.02), KD, "kd"),
    "no teacher, worse": (without_teacher(0.5, 0.02), CONTROL, "sft_control"),
    "no teacher, same": (without_teacher(0.4, 0.4), SAME, "sft_control"),
    "no teacher, untested": (without_teacher(0.3, None), UNKNOWN, None),
    "diverged": (
        sample_report(variants=unmarked_variants(kd={"cross_entropy": math.nan, "kl_to_teacher": math.nan})),
        CONTROL,
        "sft_control",
    ),
    "no control": (sample_report(variants={"kd": variants()["kd"]}), UNKNOWN, None),
    "nothing": (sample_report(variants={}), UNKNOWN, None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_to_ship_is_said_in_the_first_words_and_only_that_is_put_to_use(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.report.page.plots", lambda data: {})
    data, sentence, which = CASES[case]
    if sentence == NO_BETTER:
        sentence, which = NO_BETTER.format(which), None
    assert (decision(data), shipped(data)) == (sentence, which)
    stages = [
        StageSummary(name=name, seconds=1, uri=f"s3://b/{name}/", fingerprint="f")
        for name in ("sft", "sft_control", "kd")
    ]
    data = data.model_copy(update={"stages": stages, "analysis": None})
    page, markdown = render_page(data), render_markdown(data)
    assert f"<strong>{decision(data)}</strong> {verdict(data)}</h1>" in page
    assert markdown.startswith(f"**{decision(data)}** {verdict(data)}")
    for text in (page, markdown):
        assert ("vllm serve" in text) == (shipped(data) is not None)
        assert all(
            (f"publish student --artifact s3://b/{name}/" in text) == (name == shipped(data))
            for name in ("sft", "sft_control", "kd")
        )


@pytest.mark.parametrize(("data", "plain"), [(WINS, False), (LOSES, True), (EQUAL, True)])
def test_nothing_of_kd_stands_out_unless_it_is_what_to_ship(
    data: ReportData, plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.report.page.plots", lambda data: {})
    page = render_page(data)
    assert ('<body class="plain">' in page) == plain
    assert ('class="decisive"' in page) != plain
    row = page.split('<tr class="highlight">')[1].split("</th>")[0]
    assert row.endswith("SFT control" if plain else "SFT+KD")
