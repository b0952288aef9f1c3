"""The leaderboard: the order, the sentence, and what stands where a combination failed."""

from report_sample import sample_report, unmarked_variants, variants

from tasks.report.data import Stage
from tasks.report.leaderboard import Entry, ranked, rows, verdict
from tasks.report.leaderboard_page import render_markdown, render_page

KD = 0.69


def _entry(name: str, skill: float, seconds: float, ranks: int = 1, **changes: object) -> Entry:
    data = sample_report(
        variants=variants({"kd": skill}),
        stages=[
            Stage(name=stage, seconds=seconds, uri="s3://b/x/", fingerprint="x", facts={"ranks": ranks})
            for stage in ("sft", "kd", "sft_control", "evaluate")
        ],
        **changes,
    )
    return Entry(name=name, data=data, link=f"http://ui/{name}")


def test_the_best_comes_first_and_failures_last() -> None:
    entries = [Entry(name="lost", failed="no GPU"), _entry("b", 0.60, 10), _entry("a", 0.69, 10)]
    assert [entry.name for entry in ranked(entries)] == ["a", "b", "lost"]
    table = rows(entries)
    assert [row["#"] for row in table] == ["1", "2", "–"]
    assert table[-1]["outcome"] == "failed: no GPU"
    assert "1 of 3 combinations failed" in verdict(entries)


def test_only_what_makes_the_student_is_its_cost_and_ranks_count() -> None:
    assert _entry("a", KD, 10.0, ranks=4).device_seconds == 2 * 4 * 10.0


def test_a_cheaper_student_that_cannot_be_told_from_the_best_is_named() -> None:
    dear, cheap = _entry("dear", 0.690, 100), _entry("cheap", 0.689, 25)
    sentence = verdict([dear, cheap])
    assert sentence.startswith("dear is best: 69.5 % of 640 held-out requests answered correctly")
    assert "cheap cannot be told from it (69.4 %)" in sentence
    assert "at 25% of its device time" in sentence


def test_a_cheaper_student_that_is_worse_is_not() -> None:
    sentence = verdict([_entry("dear", 0.69, 100), _entry("poor", 0.50, 1)])
    assert "none of the others is as good for less" in sentence


def test_without_checked_answers_cross_entropy_decides_and_the_sentence_says_so() -> None:
    worse = _entry(
        "worse",
        KD,
        1,
    ).model_copy()
    data = sample_report(variants=unmarked_variants(kd={"cross_entropy": 0.30}))
    better = Entry(name="better", data=data)
    worse = Entry(name="worse", data=sample_report(variants=unmarked_variants(kd={"cross_entropy": 0.35})))
    assert [entry.name for entry in ranked([worse, better])] == ["better", "worse"]
    assert "no answer was checked" in verdict([worse, better])
    assert "figure-quality-cost" not in render_page([worse, better])


def test_page_and_markdown_hold_every_combination_and_hostile_names_stay_text() -> None:
    hostile = "<script>alert(1)</script>|`x`"
    entries = [_entry("a", KD, 10), Entry(name=hostile, failed=hostile)]
    page, markdown = render_page(entries), render_markdown(entries)
    assert "<script>alert" not in page + markdown
    assert page.count("<tr") == 3
    assert 'href="http://ui/a"' in page
    assert "figure-quality-cost" in page
    assert "[run](http://ui/a)" in markdown
    assert len({line.count("|") - line.count("\\|") for line in markdown.splitlines() if line.startswith("|")}) == 1
