"""A budget over HTTP: never exceeded by the endpoint's own count, and what was paid for is kept."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigurationError
from infra.store.artifacts import ArtifactRef, facts_of
from tasks.augment import stage
from tasks.rows import FAILED, KEPT, REJECTED, read_rows
from tests.support import augmentation
from tests.support.endpoint import endpoint, tell
from tests.support.program import told
from tests.support.wait import wait_for

PRICE = (1000.0, 3000.0)  # $ for a million tokens of prompt and of answer
OPTIONS: dict[str, Any] = {
    "expansions_per_seed": 1,
    "min_score": 2,
    "concurrency": 4,
    "max_output_tokens": 200,
    "usd_per_million_tokens": PRICE,
}
SEEDS = 40


@pytest.fixture
def url() -> Iterator[str]:
    with endpoint() as running:
        yield running


@pytest.fixture(autouse=True)
def small_batches(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "_SEEDS_PER_BATCH", 10)
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))


def _cost(url: str) -> float:
    """What the endpoint would bill."""
    tokens = tell(url, "stats")["tokens"]
    return (tokens["prompt_tokens"] * PRICE[0] + tokens["completion_tokens"] * PRICE[1]) / 1e6


def _paid(ref: ArtifactRef) -> float:
    return sum(used["paid_usd"] for used in facts_of(ref)["usage"].values())


def test_a_budget_is_kept_and_a_larger_one_pays_only_for_the_rest(url: str) -> None:
    small = augmentation.augment(url, SEEDS, {**OPTIONS, "budget_usd": 60.0})
    cost = _cost(url)
    assert 40.0 < cost <= 60.0
    assert _paid(small) == pytest.approx(cost)
    assert small.counts["rows"] > 20
    failed = facts_of(small)["failed"]
    assert {reason for reasons in failed.values() for reason in reasons} == {"budget reached"}
    assert "verification" not in failed, "a row was written and scored, and then not verified"
    half_done = sum(failed.get(agent, {}).get("budget reached", 0) for agent in ("preservation", "selection"))
    # in flight, or next in line while another row has the slot
    assert half_done <= 2 * OPTIONS["concurrency"], "rows were rewritten in vain that need not have been begun"
    outcomes = [list(read_rows(small, part)) for part in (KEPT, REJECTED, FAILED)]
    assert sum(map(len, outcomes)) == SEEDS + small.counts["expanded"]
    assert all(row.lineage[-1] == "verification" for row in outcomes[0])

    large = augmentation.augment(url, SEEDS, {**OPTIONS, "budget_usd": 1000.0})
    asked = tell(url, "stats")
    assert asked["requests"] == asked["distinct"], "an answer that was paid for was paid again"
    assert _paid(large) == pytest.approx(_cost(url) - cost)
    assert large.counts["failed"] == 0
    assert large.counts["rows"] > small.counts["rows"]
    assert {row.id for row in outcomes[0]} <= {row.id for row in read_rows(large, KEPT)}


def test_what_the_first_budget_bought_counts_towards_a_larger_one(url: str) -> None:
    for budget in (30.0, 60.0):
        ref = augmentation.augment(url, SEEDS, {**OPTIONS, "budget_usd": budget})
        assert 0.6 * budget < _cost(url) <= budget
        assert sum(used["cost_usd"] for used in facts_of(ref)["usage"].values()) <= budget
    assert facts_of(ref)["failed"]


def test_a_worker_that_wakes_over_its_successor_pays_nothing_more(tmp_path: Path) -> None:
    """Two live owners of one budget: the first was stopped for longer than its claim lasts."""
    with endpoint(latency=0.3) as url:
        _two_owners(url, tmp_path)


def _two_owners(url: str, tmp_path: Path) -> None:
    options = {**OPTIONS, "budget_usd": 60.0}
    first = augmentation.start(url, SEEDS, options, 10, 6.0, DISTILFLOW_HOME=str(tmp_path / "first"))
    wait_for(lambda: tell(url, "stats")["requests"] >= 8, alive=[first])
    first.send_signal(signal.SIGSTOP)
    second = augmentation.start(url, SEEDS, options, 10, 6.0, DISTILFLOW_HOME=str(tmp_path / "second"))
    try:
        before = tell(url, "stats")["requests"]
        wait_for(lambda: tell(url, "stats")["requests"] > before, alive=[second])
        second.send_signal(signal.SIGSTOP)  # so that whoever asks now is the first
        time.sleep(0.5)
        before = tell(url, "stats")["requests"]
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) != 0
        assert tell(url, "stats")["requests"] == before
    finally:
        second.send_signal(signal.SIGCONT)
    assert told(second)["ref"]


def test_a_budget_without_a_known_price_is_refused_before_anything_is_asked(url: str) -> None:
    options = {name: value for name, value in OPTIONS.items() if name != "usd_per_million_tokens"}
    with pytest.raises(ConfigurationError, match="usd_per_million_tokens"):
        augmentation.augment(url, SEEDS, {**options, "budget_usd": 60.0})
    assert tell(url, "stats")["requests"] == 0
