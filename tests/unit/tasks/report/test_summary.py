"""The facts at the top, the table of contents and the settings: each as the data have it, nothing made up."""

from __future__ import annotations

import re
from typing import Any

import pytest

from flows.recipe import Recipe
from tasks.report.data import ChangedSetting, TeacherUse, Variant
from tasks.report.page import render_markdown, render_page
from tasks.report.summary import SPEED, parameters, summary
from tasks.train.settings import Distillation
from tests.support.report_sample import sample_report, variants


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.report.page.plots", lambda data: {})


def measured() -> dict[str, Variant]:
    of = {"kd": (494_032_768, 15_230.4), "teacher": (72_706_203_648, 812.0)}
    return {
        name: one.model_copy(update=dict(zip(("parameters", "tokens_s"), of.get(name, (None, None)), strict=True)))
        for name, one in variants().items()
    }


def facts(**changes: Any) -> dict[str, tuple[str, str]]:
    return {fact.name: (fact.value, fact.note) for fact in summary(sample_report(**changes))}


def test_run_day_models_speed_hours_and_cost_stand_above_the_first_section() -> None:
    data = sample_report(variants=measured(), run="0.5B-from-72B-k10 · otter", made="2026-11-29")
    assert [tuple(fact) for fact in summary(data)] == [
        ("Run", "0.5B-from-72B-k10 · otter", "2026-11-29, seed 17"),
        ("Student", "demo-student (0.62M)", "494M parameters, 15,230 tokens/s"),
        ("Teacher", "demo-teacher (1.77M)", "72.7B parameters, 812 tokens/s, top 10 kept"),
        ("Time", "7 min 13 s", "all stages, when they were made"),
        ("LLM answers", "$6.25", "agents and judge; machines are not in it"),
    ]
    header, first_lines = render_page(data).split("</header>")[0], render_markdown(data).split("##")[0]
    for fact in summary(data):
        assert f"<dt>{fact.name}</dt><dd>{fact.value} <small>{fact.note}</small></dd>" in header
        assert fact.value in first_lines
    assert SPEED in header
    assert SPEED in first_lines


def test_what_was_not_measured_or_is_not_known_is_not_said() -> None:
    assert facts()["Student"] == ("demo-student (0.62M)", "")
    assert SPEED not in render_page(sample_report())
    bare = facts(stages=[], data_flow=None, benchmarks=None)
    assert bare.keys() == {"Run", "Student", "Teacher"}
    assert bare["Run"] == ("SQL completion, demo", "seed 17")
    free = TeacherUse(requests=1, prompt_tokens=1, completion_tokens=1, cost_usd=0.0, answers=1)
    of = facts(teacher_use=free, data_flow=None, benchmarks=None)
    assert of["LLM answers"] == ("–", "teacher: free, or of a model without a known price")


def test_sizes_are_told_as_models_are_called() -> None:
    assert [parameters(n) for n in (620_000, 494_032_768, 1_543_714_304, 671_000_000_000)] == [
        "0.62M",
        "494M",
        "1.54B",
        "671B",
    ]


def test_the_contents_name_every_section_in_order_and_nothing_else() -> None:
    few = sample_report(analysis=None, benchmarks=None, examples=[])
    for data, sections in ((sample_report(), 12), (few, 6)):
        page = render_page(data)
        links = re.findall(r'<li><a href="#([\w-]+)">([^<]+)</a>', page.split("</nav>")[0])
        assert links == re.findall(r'<section id="([\w-]+)">\s*<h2>([^<]+)</h2>', page)
        assert len(links) == page.count("<section") == sections


def test_settings_that_differ_come_first_and_all_can_be_folded() -> None:
    changed = [ChangedSetting(name="kd.lora", value=True, default=False), ChangedSetting(name="a", value="", default=2)]
    part = render_page(sample_report(changed=changed)).split('<section id="settings">')[1].split("</section>")[0]
    rows = re.findall(r"<code>([\w.]+)</code></th><td>([^<]*)</td><td class=\"quiet\">([^<]*)</td>", part)
    assert rows == [("kd.lora", "on", "off"), ("a", "–", "2")]
    assert re.findall(r"<summary>(.*?)</summary>", part) == [
        "Other than the defaults of demo-student (0.62M): 2",
        *(f"All of <code>{name}</code>" for name in ("k", "kd", "sft")),
    ]
    assert part.count("<details") == part.count("<summary>")
    assert "All are the defaults of demo-student" in render_page(sample_report())


def test_a_recipes_changes_are_those_of_its_command() -> None:
    assert Recipe.of({"student": "0.5B", "teacher": "72B"}).about().changed == []
    given = {"student": "0.5B", "teacher": "72B", "k": 5, "seeds": "s.jsonl", "kd": Distillation(temperature=2.0)}
    recipe = Recipe.of(given)
    assert [tuple(one.model_dump().values()) for one in recipe.about("otter").changed] == [
        ("seeds", "s.jsonl", "demo"),
        ("k", 5, 10),
        ("kd.temperature", 2.0, 1.0),
    ]
    assert recipe.about("otter").run == "otter"


def test_an_agent_of_which_several_rows_are_told_is_named_once_over_all_of_them() -> None:
    table = render_page(sample_report()).split("Left out, by agent and reason")[1].split("</table>")[0]
    heads = re.findall(r'rowspan="(\d)">(\w+)<', table)
    agents = ("expansion", "rewriting", "selection", "verification", "rewriting")
    assert heads == list(zip("21211", agents, strict=True))
    assert "<td></td>" not in table
