"""The estimate is of what the controller really asks: against the endpoint that counts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flows.commands.show import tables
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.augment import stage
from tasks.augment.controller import Dropped
from tasks.augment.estimate import estimate
from tasks.augment.settings import Augmentation
from tasks.llm.protocol import LLMEndpoint
from tasks.rows import Row
from tasks.seeds.stage import Sources
from tests.support.endpoint import endpoint, tell
from tests.support.stages import augment_workspace, load

MODEL = "openai/test"
OPTIONS = Augmentation(expansions_per_seed=2, min_score=0, near_duplicate=1.0, usd_per_million_tokens=(1.0, 10.0))


@pytest.fixture
def seeds(bucket: str) -> ArtifactRef:
    return load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)


def test_a_rehearsal_asks_nothing_and_counts_every_request_that_could_be(seeds: ArtifactRef) -> None:
    with endpoint() as url:
        found = estimate(seeds, OPTIONS, LLMEndpoint(MODEL, url), sample=50)
        assert tell(url, "stats")["requests"] == 0
    asked = {agent: used.requests for agent, used in found.usage.items()}
    each = {"expansion": 200, "category": 200}
    assert asked == each | dict.fromkeys(("rewriting", "preservation", "selection", "verification"), 600)
    assert found.rows == 600
    total = found.total
    assert total.cost_usd == pytest.approx(total.prompt_tokens * 1e-6 + total.completion_tokens * 1e-5, rel=1e-3)
    assert total.paid_usd == 0


def test_verification_sees_no_more_than_max_rows(seeds: ArtifactRef) -> None:
    with endpoint() as url:
        found = estimate(seeds, OPTIONS.model_copy(update={"max_rows": 150}), LLMEndpoint(MODEL, url), sample=50)
    assert found.usage["verification"].requests == found.rows == 150
    assert found.usage["selection"].requests == 600


def test_a_paid_estimate_is_what_the_run_takes_and_the_run_does_not_pay_again(seeds: ArtifactRef) -> None:
    with endpoint() as url:
        found = estimate(seeds, OPTIONS, LLMEndpoint(MODEL, url), sample=200, paid=True)
        paid = tell(url, "stats")["requests"]
        ref = stage.augment(
            augment_workspace(seeds, OPTIONS, MODEL), seeds, OPTIONS, LLMEndpoint(MODEL, url), lambda done, total: None
        )
        assert tell(url, "stats")["requests"] == paid > 0
    used = facts_of(ref)["usage"]
    for agent, expected in found.usage.items():
        assert used[agent]["requests"] + used[agent]["from_cache"] == expected.requests
        assert used[agent]["cost_usd"] == pytest.approx(expected.cost_usd)
    assert found.total.paid_usd == pytest.approx(found.total.cost_usd)
    assert ref.counts["rows"] == found.rows


def test_a_comparison_with_held_out_rows_is_in_the_estimate_and_bounded_by_their_number(seeds: ArtifactRef) -> None:
    most = OPTIONS.model_copy(update={"compare_heldout": 2})
    with endpoint() as url:
        few, exact = (
            estimate(seeds, most, LLMEndpoint(MODEL, url), sample=sample).usage["comparison"] for sample in (20, 200)
        )
        assert "comparison" not in estimate(seeds, OPTIONS, LLMEndpoint(MODEL, url), sample=20).usage
        assert tell(url, "stats")["requests"] == 0
    at_most = 2 * seeds.counts["heldout"] / 10
    assert at_most <= few.requests <= 1.2 * at_most, "a sample's last request is not full"
    assert 0 < exact.requests <= few.requests
    assert 0 < exact.cost_usd <= few.cost_usd


def test_what_became_of_each_seed_is_shown_beside_it(seeds: ArtifactRef) -> None:
    with endpoint() as url:
        found = estimate(seeds, OPTIONS, LLMEndpoint(MODEL, url), sample=5, paid=True)
    asked, kept = {row.origin_seed for row in found.asked}, [one for one in found.became if isinstance(one, Row)]
    assert len(found.asked) == len(asked) == 5
    rows = [one if isinstance(one, Row) else one.row for one in found.became]
    assert {row.origin_seed for row in rows} == asked
    assert kept == list(found.examples)
    console = Console(file=io.StringIO(), width=200)
    for table in tables(found):
        console.print(table)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("│ seed ") == 5
    assert shown.count("│ new ") == sum("expansion" in row.lineage for row in rows) > 0
    for one in found.became:
        if isinstance(one, Dropped):
            assert f"{one.agent}: {one.reason[:10]}" in shown
