"""A student as its teacher's draft: when vLLM takes it, how it is asked, and what is said of it."""

from __future__ import annotations

import json
import shlex

from tasks.report.draft import config, fit_of, flags, sentence
from tests.support.report_sample import sample_report, variants


def test_a_draft_has_the_teachers_tokens_and_another_size_of_embeddings_is_told() -> None:
    teacher = {"vocabulary": ["digest", 152_064]}
    assert fit_of({"vocabulary": ["digest", 152_064]}, teacher) == "as it is"
    assert fit_of({"vocabulary": ["digest", 151_936]}, teacher) == "shared tokens"
    assert fit_of({"vocabulary": ["other", 152_064]}, teacher) is None
    assert fit_of({}, teacher) is None  # evaluated before that was looked at
    assert config("s", "as it is")["draft_sample_method"] == "probabilistic"
    assert config("s", "shared tokens")["use_heterogeneous_vocab"] is True
    name, given = shlex.split(flags("a b/model", "as it is"))
    assert name == "--speculative-config"
    assert json.loads(given) == config("a b/model", "as it is")


def test_what_a_draft_is_worth_is_said_where_it_was_measured() -> None:
    report = sample_report()
    assert report.analysis is not None
    share = report.analysis.metrics["kd"]["acceptance"].estimate
    said = sentence(report, "kd")
    assert said is not None
    assert f"keeps {100 * share:.1f} % of the tokens" in said
    assert f"{(1 - share**5) / (1 - share):.2f} tokens for each step of the teacher with 4 drafted" in said
    assert "keeps at least" in (sentence(sample_report(compared_with_top=10), "kd") or "")
    assert "go by the second number" not in said
    other = {"kd": variants()["kd"].model_copy(update={"draft": "shared tokens"})}
    assert "go by the second number" in (sentence(sample_report(variants=variants() | other), "kd") or "")
    assert sentence(sample_report(analysis=None), "kd") is None
