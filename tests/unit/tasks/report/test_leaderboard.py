"""The leaderboard: the order, the sentence, and what stands where a combination failed."""

import re
import statistics

import numpy as np
from rich.console import Console

from infra.stage import Unseen, make
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.report import console
from tasks.report.copies import report_file
from tasks.report.data import StageSummary
from tasks.report.leaderboard.entry import Entry
from tasks.report.leaderboard.page import render_markdown, render_page
from tasks.report.leaderboard.ranking import over_seeds, ranked, rows, verdict
from tasks.report.page import DEMO_NOTE
from tasks.report.stage import Leaderboard
from tests.support.report_sample import N, sample_report, unmarked_variants, variants

KD = 0.69


def _entry(name: str, skill: float, seconds: float, ranks: int = 1, **changes: object) -> Entry:
    data = sample_report(
        variants=variants({"kd": skill}),
        stages=[
            StageSummary(name=stage, seconds=seconds, uri="s3://b/x/", fingerprint="x", facts={"ranks": ranks})
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


def test_where_no_test_bears_out_a_best_one_none_is_called_that_and_the_cheapest_is_named() -> None:
    dear, cheap = _entry("dear", 0.690, 100), _entry("cheap", 0.689, 25)
    sentence = verdict([dear, cheap])
    assert sentence.startswith("No combination is significantly the best: dear answers most (69.5 % of 640 held-out")
    assert (
        "cheap is not significantly worse; of these cheap (69.4 %) took the least device time, 25% of dear’s"
        in sentence
    )
    assert "it took the least device time of these" in verdict([_entry("dear", 0.690, 10), cheap])


def test_of_equals_none_answers_most() -> None:
    sentence = verdict([_entry("one", KD, 10), _entry("another", KD, 20)])
    assert sentence.startswith("No combination is significantly the best: one answers as many as any (69.5 % of 640")


def test_where_some_answers_were_not_checked_nothing_is_said_of_accuracy() -> None:
    unchecked = Entry(name="unchecked", data=sample_report(variants=unmarked_variants(kd={"cross_entropy": 0.9})))
    sentence = verdict([unchecked, _entry("checked", KD, 10)])
    assert sentence.startswith("checked has the lowest cross-entropy, ")
    assert "answers of 1 of 2 were checked, and no difference is tested" in sentence


def test_one_that_is_better_than_each_other_is_best() -> None:
    sentence = verdict([_entry("dear", 0.69, 100), _entry("poor", 0.50, 1)])
    assert sentence.startswith("dear is best: it answers 69.5 % of 640 held-out requests correctly, significantly more")


def test_of_many_equal_students_the_luckiest_is_not_called_best() -> None:
    """Of nine at the same skill one is ahead by chance: 16.0 % against 13.0 % of a hundred requests."""
    rng = np.random.default_rng(3)
    wrongly, run = 0, sample_report()
    for _ in range(50):
        entries = []
        for place in range(9):
            right = (rng.random(N) < 0.15).tolist()
            kd = run.variants["kd"].model_copy(update={"correct": right, "exec_accuracy": sum(right) / N})
            entries.append(Entry(name=f"s{place}", data=run.model_copy(update={"variants": run.variants | {"kd": kd}})))
        wrongly += "is best" in verdict(entries)
    assert wrongly <= 2


def test_a_demos_leaderboard_says_that_it_is_one() -> None:
    for text in (render_page([_entry("a", KD, 10)]), render_markdown([_entry("a", KD, 10)])):
        assert DEMO_NOTE in text
    assert DEMO_NOTE not in render_page([_entry("a", KD, 10, demo=False)])


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


def test_quality_against_rows_is_shown_where_students_were_trained_on_different_rows() -> None:
    def trained_on(kept: int) -> Entry:
        entry = _entry(f"keep {kept}", KD, 10)
        assert entry.data is not None
        of_rows = [
            StageSummary(name=name, seconds=1, uri="s3://b/x/", fingerprint="x", counts={"rows": rows})
            for name, rows in (("augment", 400), ("fit", kept))
        ]
        data = entry.data.model_copy(update={"stages": [*entry.data.stages, *of_rows]})
        return entry.model_copy(update={"data": data})

    half, all_rows = trained_on(200), trained_on(400)
    assert (half.rows, all_rows.rows) == (200, 400)
    assert "figure-quality-rows" in render_page([half, all_rows])
    assert "figure-quality-rows" not in render_page([half, trained_on(200)])


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


def _over_seeds(name: str, skills: list[float], seconds: float) -> list[Entry]:
    return [
        _entry(f"{name}-seed={seed}", skill, seconds, seed=seed).model_copy(update={"combination": name})
        for seed, skill in enumerate(skills)
    ]


def test_runs_that_differ_in_their_seed_are_told_by_mean_and_spread() -> None:
    good, poor = _over_seeds("good", [0.70, 0.68, 0.72], 100), _over_seeds("poor", [0.61, 0.63, 0.59], 10)
    students = [entry.data.variants["kd"] for entry in good if entry.data]
    accuracies = [student.exec_accuracy for student in students if student.exec_accuracy is not None]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    first, second = over_seeds([*poor, *good])
    assert (first["combination"], first["seeds"], second["combination"]) == ("good", "3", "poor")
    assert first["accuracy"] == f"{100 * mean:.1f} ± {100 * deviation:.1f} %"
    sentence = verdict([*poor, *good])
    assert sentence.startswith(f"good has the most right answers over 3 seeds: {first['accuracy']} of 640 held-out")
    assert "more than each of the others has" in sentence
    assert "more than without the teacher’s logits" in sentence
    assert "cannot be told" not in sentence
    page, markdown = render_page([*poor, *good]), render_markdown([*poor, *good])
    assert 'id="over-seeds"' in page
    assert "Over seeds" in markdown


def test_a_cheaper_combination_whose_spread_over_seeds_covers_the_best_is_named() -> None:
    dear, cheap = _over_seeds("dear", [0.70, 0.64, 0.69], 100), _over_seeds("cheap", [0.66, 0.70, 0.65], 25)
    assert "; cheap is not significantly worse, and cheap (66.9 ± 3.5 %) took 25% of its device time." in verdict(
        [*dear, *cheap]
    )


def test_a_gain_that_seeds_do_not_bear_out_is_none() -> None:
    assert "no significant difference to the same training" in verdict(_over_seeds("x", [0.50, 0.72], 1))


def test_one_seed_each_is_no_spread() -> None:
    assert over_seeds([*_over_seeds("a", [0.7], 1), *_over_seeds("b", [0.6], 1)]) == []


def test_without_checked_answers_seeds_are_told_by_cross_entropy() -> None:
    entries = []
    for seed, nats in enumerate((0.30, 0.34)):
        data = sample_report(variants=unmarked_variants(kd={"cross_entropy": nats}), seed=seed)
        entries.append(Entry(name=f"x-{seed}", combination="x", data=data))
    assert "has the lowest cross-entropy over 2 seeds, 0.320 ± 0.028 nats a token; no answer was checked" in verdict(
        entries
    )
    assert over_seeds(entries)[0]["accuracy"] == "–"


def test_a_terminal_never_cuts_a_combinations_name() -> None:
    names = ["0.5B-from-72B-k10-kd.temperature=2-seed=0", "0.5B-from-72B-k10-kd.temperature=2-seed=1"]
    terminal = Console(width=80)
    with terminal.capture() as shown:
        terminal.print(console._table("Best.", rows([_entry(name, KD, 1) for name in names])))
    assert all(name in shown.get() for name in names)


def _reported(entry: Entry) -> Entry:
    ref = ArtifactRef(kind="report", uri=f"s3://b/report/{entry.name}/", sha256="a", fingerprint="f")
    return entry.model_copy(update={"report": ref})


def test_the_gain_and_the_cost_come_first_and_every_report_is_linked_to() -> None:
    page = render_page([_reported(_entry("a", KD, 10)), _entry("b", 0.6, 20), Entry(name="lost", failed="no GPU")])
    table = page.split('id="leaderboard"')[1].split("</table>")[0]
    heads = re.findall(r"<th[^>]*>([^<]+)</th>", table)
    costs = ["#", "combination", "accuracy", "gain over SFT control", "device time", "API cost"]
    assert heads == [*costs, "cross-entropy", "KL to teacher", "report"]
    assert "69.5 % <small>65.9 – 73.0</small>" in table
    assert "+8.9 <small>+5.8 to +12.0</small>" in table
    assert '<a href="reports/a.html">report</a> · <a href="http://ui/a">run</a>' in table
    assert "reports/b.html" not in table  # of whose report nobody knows the place
    failed = table.split("<tr>")[-1]
    assert re.findall(r"<td[^>]*>([^<]+)", failed) == ["–", "lost", "failed: no GPU"]
    assert 'colspan="7"' in failed  # what has no figures has no empty cells


def test_over_seeds_the_cost_of_a_run_is_told_too() -> None:
    [row] = over_seeds([*_over_seeds("good", [0.70, 0.68], 100)])
    assert list(row)[4:7] == ["gain over SFT control", "device time", "API cost"]
    assert (row["device time"], row["API cost"]) == ("3 min 20 s", "$1.25")


def test_each_report_has_a_file_of_its_own_whose_name_is_safe() -> None:
    names = ["a-k10-kd.temperature=2", "a/b", "a-b", "../../etc", "ä" * 300, "ä" * 299, "x" * 300, "x" * 299]
    files = [report_file(name) for name in names]
    assert files[0] == "reports/a-k10-kd.temperature=2.html"
    assert files[2] == "reports/a-b.html"
    assert len({*files}) == len(names)
    for file in files:
        assert re.fullmatch(r"reports/[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,130}\.html", file)


def test_the_reports_lie_beside_the_leaderboard(bucket: str) -> None:
    report = Workspace("report", 1, {}, {})
    report.put("report.html", b"<p>one report</p>")
    ref = report.publish(("report.html",), {}, {})
    entry = _entry("a b", KD, 10).model_copy(update={"report": ref})
    board = make(Leaderboard(entries=[entry, Entry(name="lost", failed="no GPU")]), Unseen()).shown
    reader = ArtifactReader(board)
    assert set(reader.names()) == {"leaderboard.html", "leaderboard.md", "leaderboard.json", entry.page}
    assert reader.read(entry.page) == b"<p>one report</p>"
    assert f'href="{entry.page}"' in reader.read("leaderboard.html").decode()
