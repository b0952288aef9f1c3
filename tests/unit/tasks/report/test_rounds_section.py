"""The report's section on rounds: from the records of a run to the page, Markdown and words."""

from __future__ import annotations

from typing import Any

import pytest

from infra.store.artifacts import Record
from tasks.report.page import render_markdown, render_page
from tasks.report.rounds import gather, rows, sentences
from tests.support.report_sample import sample_report, variants

MEASURED = {"agreement": 0.8, "shared": 0.6, "kl": 0.21, "own_kl": 0.3, "entropy": 0.9}


def _record(counts: dict[str, int], facts: dict[str, Any], seconds: float = 60.0) -> Record:
    return Record.model_construct(kind="k", fingerprint="f", spec={}, counts=counts, facts=facts, seconds=seconds)


def _records(rounds: int, said: str = "", *, trained: bool = True) -> dict[str, Record]:
    of_answers = {"answer_tokens": 120.5, "cut_off": 0.02, "left_out": 0.05, "said": [said] if said else []}
    by = {"by_position": {"0": {"tokens": 9, **MEASURED}, "1–3": {"tokens": 27, **MEASURED}}}
    found = {"logits": _record({}, {"coverage": {"mean": 0.97}}), "validation_0": _record({}, {"kl": 0.5, "said": []})}
    for number in range(1, rounds + 1):
        found |= {
            f"rollout_{number}": _record({"rows": 95, "rejected": 5}, {}),
            f"logits_{number}": _record({}, {"coverage": {"mean": 0.9}}),
            f"own_{number}": _record({}, {}),
            f"overlap_{number}": _record({}, {**MEASURED, **of_answers, **by}, 1.0),
        }
        if trained:
            found |= {f"round_{number}": _record({}, {}), f"validation_{number}": _record({}, {"kl": 0.4, "said": []})}
    return found


def _after(rounds: int) -> dict[str, Any]:
    kd = variants()["kd"]
    names = [f"round_{number + 1}" for number in range(rounds)] + ["kd_continued"]
    return variants() | {name: kd.model_copy(update={"label": name, "kl_to_teacher": 0.2}) for name in names}


def test_each_round_has_what_it_began_with_what_came_of_it_and_its_cost() -> None:
    found = gather(_records(2), 3)
    assert found is not None
    assert [one.seconds for one in found.rounds] == [301.0, 301.0]
    first, _second = rows(found, _after(2))
    assert (first["answers"], first["tokens an answer"], first["cut off"], first["left out"]) == (
        *("100", "120.5", "2.0 %", "5.0 %"),
    )
    assert (first["same top 1"], first["top-K coverage"], first["KL on own text"]) == ("80.0 %", "90.0 %", "0.300")
    assert (first["validation KL after"], first["KL on references after"], first["time"]) == (
        *("0.4000", "0.200", "5.0 min"),
    )
    done, held = sentences(found, _after(2))
    assert done.startswith("2 of at most 3 rounds were done: KL to the teacher on the held-out references is 0.200")
    assert "90.0 % of its probability on what the student wrote, 97.0 % on the rows of KD" in held


def test_where_rounds_were_stopped_the_page_says_why_and_has_no_student_of_them() -> None:
    found = gather(_records(1, "no on-policy round: too far apart", trained=False), 2)
    assert found is not None
    assert sentences(found, variants()) == ["No on-policy round: too far apart."]
    with_sft = _records(1, trained=False) | {"sft": _record({}, {})}
    assert gather(with_sft, 2, "sft") == gather(with_sft, 2)
    of_none = gather(_records(1, trained=False), 2, "round_2")
    assert of_none is not None
    assert sentences(of_none, variants())[-1].startswith("Nothing was quantised, because round_2 was not done")
    [row] = rows(found, variants())
    assert (row["KL on references after"], row["validation KL after"]) == ("–", "–")


def test_a_run_without_rounds_has_no_section() -> None:
    assert gather({"logits": _record({}, {})}, 0) is None
    assert "On-policy rounds" not in render_markdown(sample_report())


def test_page_and_markdown_have_the_section_with_its_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    report = sample_report(variants=_after(2), rounds=gather(_records(2, "<b>look</b>"), 2))
    html, markdown = render_page(report), render_markdown(report)
    assert 'id="rounds"' in html
    assert 'id="figure-overlap"' in html
    assert "<b>look" not in html
    assert "## On-policy rounds" in markdown
    assert "120.5" in html
    assert "120.5" in markdown
    assert type(report).model_validate_json(report.model_dump_json()).rounds == report.rounds
