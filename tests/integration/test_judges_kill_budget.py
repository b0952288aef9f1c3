"""Judging is killed and runs out of money: no judgment is paid twice, and what is missing is told."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from tasks.evaluate.benchmarks import artifacts
from tasks.llm.budget import Usage
from tests.support.endpoint import endpoint, tell
from tests.support.judging import ANOTHER, alpaca_eval, score, some_pairs, start
from tests.support.program import told
from tests.support.wait import wait_for

PRICE = (1000.0, 3000.0)  # $ for a million tokens of prompt and of answer
PAIRS = 30
PAID: dict[str, Any] = {"usd_per_million_tokens": PRICE, "max_output_tokens": 64}


@pytest.fixture
def url() -> Iterator[str]:
    with endpoint(latency=0.05) as running:
        yield running


@pytest.fixture(autouse=True)
def own_home(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "home"))


def _cost(url: str) -> float:
    """What the endpoint would bill."""
    tokens = tell(url, "stats")["tokens"]
    return (tokens["prompt_tokens"] * PRICE[0] + tokens["completion_tokens"] * PRICE[1]) / 1e6


def _usage(ref: ArtifactRef) -> Usage:
    return Usage(**facts_of(ref)["usage"]["alpaca_eval"])


def _read(ref: ArtifactRef, name: str) -> bytes:
    return ArtifactReader(ref).read(name)


def test_judging_killed_twice_publishes_the_verdicts_of_one_that_was_not_and_pays_none_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint() as url:
        unkilled = ArtifactRef.model_validate(told(start(url, PAIRS, {}))["ref"])
        expected = {name: _read(unkilled, name) for name in (artifacts.JUDGMENTS, artifacts.RESULTS)}
    monkeypatch.setenv("DISTILFLOW_BUCKET", "judging-killed-twice")
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "killed"))
    storage.ensure_bucket()
    with endpoint(latency=0.2) as url:
        for reached in (PAIRS // 2, PAIRS * 3 // 2):
            process = start(url, PAIRS, {})
            wait_for(lambda: tell(url, "stats")["distinct"] >= reached, alive=[process], every_s=0.02)  # noqa: B023
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.communicate(timeout=30)
            _, alive = psutil.wait_procs(children, timeout=20)
            assert not alive, "a provider process outlived the stage"
        ref = ArtifactRef.model_validate(told(start(url, PAIRS, {}))["ref"])
        asked = tell(url, "stats")
    assert asked["distinct"] == 2 * PAIRS
    assert asked["requests"] - asked["distinct"] <= 2 * 4, "more was asked again than was in flight"
    assert {name: _read(ref, name) for name in expected} == expected


def test_a_budget_is_kept_the_rest_is_not_judged_and_a_larger_one_pays_only_for_it(url: str, tmp_path: Path) -> None:
    options, answers = alpaca_eval(tmp_path, some_pairs(PAIRS))
    small = score(url, answers, "alpaca_eval", options, {**PAID, "budget_usd": 4.0})
    result, cost = artifacts.result_of(small), _cost(url)
    assert 1.0 < cost <= 4.0  # a request is sent only where the most that it can cost is left: here about 2
    assert result["cost_usd"] == pytest.approx(cost)
    assert set(result["not_judged"]) == {"budget reached"}
    assert result["not_judged"]["budget reached"] + tell(url, "stats")["requests"] == 2 * PAIRS
    assert 0 < result["judged"] < PAIRS
    assert result["win_rate"] == pytest.approx(sum(artifacts.scores_of(small).values()) / result["judged"])

    large = score(url, answers, "alpaca_eval", options, {**PAID, "budget_usd": 1000.0})
    asked = tell(url, "stats")
    assert asked["requests"] == asked["distinct"] == 2 * PAIRS, "a judgment was paid twice"
    assert artifacts.result_of(large)["judged"] == PAIRS
    assert _usage(large).paid_usd == pytest.approx(_cost(url) - cost)
    assert artifacts.scores_of(small).items() <= artifacts.scores_of(large).items()


def test_a_judgment_that_another_variant_paid_for_is_not_paid_again(url: str, tmp_path: Path) -> None:
    options, answers = alpaca_eval(tmp_path, some_pairs(6))
    score(url, answers, "alpaca_eval", options, {})
    pairs = [("quality 9, new", some_pairs(6)[0][1]), *some_pairs(6)[1:]]  # one answer of six is another
    _, others = alpaca_eval(tmp_path, pairs, ANOTHER)
    ref = score(url, others, "alpaca_eval", options, {})
    assert (_usage(ref).requests, _usage(ref).from_cache) == (2, 10)


def test_a_budget_without_a_price_is_refused_before_anything_is_asked(url: str, tmp_path: Path) -> None:
    options, answers = alpaca_eval(tmp_path, some_pairs(3))
    with pytest.raises(ConfigurationError, match=r"judging\.budget_usd needs the price .* judging\.usd_per"):
        score(url, answers, "alpaca_eval", options, {"budget_usd": 1.0})
    assert tell(url, "stats")["requests"] == 0
