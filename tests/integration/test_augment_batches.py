"""The agents through a provider's batch API over HTTP: the same rows, each request paid once, whatever is killed."""

import re
from pathlib import Path
from typing import Any

import pytest

from infra import settings
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactRef, facts_of
from tests.support.augmentation import augment, start
from tests.support.endpoint import endpoint, tell
from tests.support.wait import wait_for

DIRECTLY: dict[str, Any] = {"expansions_per_seed": 1, "min_score": 2}
OPTIONS: dict[str, Any] = {**DIRECTLY, "batch": True, "batch_wait_s": 0.2, "batch_poll_s": 0.2}
SEEDS = 30
PRICE = (1000.0, 3000.0)  # $ for a million tokens of prompt and of answer, half of it in batches


@pytest.fixture(scope="module")
def directly(services: object, tmp_path_factory: pytest.TempPathFactory) -> ArtifactRef:
    """The artifact of the same seeds, asked one by one."""
    with pytest.MonkeyPatch.context() as patch, endpoint() as url:
        patch.setenv("DISTILFLOW_HOME", str(tmp_path_factory.mktemp("directly")))
        patch.setenv("DISTILFLOW_BUCKET", "asked-directly")
        storage.ensure_bucket()
        return augment(url, SEEDS, DIRECTLY)


@pytest.fixture(autouse=True)
def own_home(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))


def _notes() -> list[str]:
    return list(storage.keys(f"s3://{settings.bucket()}/batches/"))


def _needed(ref: ArtifactRef) -> int:
    return int(sum(used["requests"] for used in facts_of(ref)["usage"].values()))


def _half_price(url: str) -> float:
    tokens = tell(url, "stats")["tokens"]
    return (tokens["prompt_tokens"] * PRICE[0] + tokens["completion_tokens"] * PRICE[1]) / 2e6


def _killed_when(url: str, options: dict[str, Any], counted: str, reached: int, **home: str) -> None:
    """SIGKILL to the stage when the endpoint has counted so much."""
    process = start(url, SEEDS, options, **home)
    wait_for(lambda: tell(url, "stats")[counted] >= reached, alive=[process], every_s=0.02)
    process.kill()
    process.communicate(timeout=30)


def test_rows_come_out_as_those_that_are_asked_one_by_one(directly: ArtifactRef) -> None:
    with endpoint(batches="plain") as url:
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    assert ref.sha256 == directly.sha256
    assert facts_of(ref)["usage"] == facts_of(directly)["usage"]
    assert asked["requests"] == _needed(directly) == sum(number for _, number in asked["batches"])
    assert len(asked["batches"]) < asked["requests"] / 10
    assert asked["connections"] < 10, "LiteLLM opens a connection for each call, and leaves it"
    assert _notes() == [], "a note of a batch outlived its answers"


@pytest.mark.parametrize("hold", ["create", "wait", "read"])
def test_killed_it_waits_for_what_it_asked(directly: ArtifactRef, hold: str, tmp_path: Path) -> None:
    """Created and not yet noted; in progress; half read. It goes on in another home, as on another machine."""
    with endpoint(batches="plain", hold=hold) as url:
        _killed_when(url, OPTIONS, "looks" if hold == "wait" else "held", 1, DISTILFLOW_HOME=str(tmp_path / "killed"))
        assert len(_notes()) == 1
        tell(url, "release")
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    assert ref.sha256 == directly.sha256
    assert asked["requests"] == _needed(directly) == sum(number for _, number in asked["batches"])
    assert _notes() == []


def test_people_are_told_what_waits() -> None:
    """Nothing goes on before it is."""
    said: list[str] = []

    def note(text: str) -> None:
        said.append(text)
        tell(url, "release")

    with endpoint(batches="plain", hold="wait") as url:
        augment(url, SEEDS, OPTIONS, note=note)
    assert re.fullmatch(r"12 requests in 1 batch at openai since \w{3} \d\d:\d\d, 100% done", said[0])


def test_a_batch_that_expires_keeps_its_answers_and_the_rest_is_asked_again(directly: ArtifactRef) -> None:
    with endpoint(batches="expires") as url:
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    assert asked["batches"][0][0] == "expired"
    assert ref.sha256 == directly.sha256
    assert asked["requests"] == _needed(directly)


def test_a_batch_that_somebody_cancels_ends_the_run_and_the_next_asks_what_is_left(directly: ArtifactRef) -> None:
    with endpoint(batches="cancelled") as url:
        with pytest.raises(ConfigurationError, match=r"batch batch-0 was cancelled at openai: run again"):
            augment(url, SEEDS, OPTIONS)
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    assert ref.sha256 == directly.sha256
    assert asked["requests"] == _needed(directly)


def test_a_provider_with_little_room_is_given_small_batches(directly: ArtifactRef) -> None:
    with endpoint(batches="plain", batch_most=25) as url:
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    done = [number for status, number in asked["batches"] if status == "completed"]
    assert max(done) <= 25
    assert len(asked["batches"]) - len(done) <= 4, "it is found out once, and not for each batch"
    assert ref.sha256 == directly.sha256
    assert asked["requests"] == _needed(directly)


def test_requests_that_fail_in_a_batch_go_into_the_next(directly: ArtifactRef) -> None:
    with endpoint(batches="plain", faults=0.3, kinds=["429", "500"], faults_of_a_body=2) as url:
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    assert set(asked["by_fault"]) == {"429", "500"}
    assert ref.sha256 == directly.sha256
    assert asked["repeated"] == 0, "an answer that was paid for was asked for again"


def test_bad_answers_are_asked_again_and_every_row_is_accounted_for() -> None:
    with endpoint(batches="plain", faults=0.3, kinds=["truncated", "wrong_schema", "refusal", "empty"]) as url:
        ref = augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
    counts = ref.counts
    assert counts["rows"] + counts["rejected"] + counts["failed"] == SEEDS + counts["expanded"]
    assert counts["failed"] > 0
    assert asked["repeated"] == 0
    assert _notes() == []


def test_a_server_without_batches_says_so_before_anything_is_paid() -> None:
    with endpoint(require_key="sk-secret-key") as url:
        with pytest.raises(ConfigurationError) as ended:
            augment(url, SEEDS, OPTIONS, "sk-secret-key")
        assert tell(url, "stats")["requests"] == 0
    said = str(ended.value)
    assert "cannot be asked in batches" in said
    assert "leave `augmentation.batch` off" in said
    assert "sk-secret-key" not in said
    assert _notes() == []


def test_a_batch_that_is_refused_as_a_whole_is_told_without_the_key() -> None:
    with endpoint(batches="invalid") as url:
        with pytest.raises(ConfigurationError, match="not parseable as valid JSON") as ended:
            augment(url, SEEDS, {**OPTIONS, "routes": {}})
        assert tell(url, "stats")["requests"] == 0
    assert "sk-secret" not in str(ended.value)


def test_a_budget_is_one_of_half_prices_and_is_kept_over_a_kill(tmp_path: Path) -> None:
    options = {**OPTIONS, "budget_usd": 30.0, "max_output_tokens": 200, "usd_per_million_tokens": PRICE}
    with endpoint(batches="plain", hold="wait") as url:
        _killed_when(url, options, "looks", 3, DISTILFLOW_HOME=str(tmp_path / "killed"))
        tell(url, "release")
        ref = augment(url, SEEDS, options)
        cost, asked = _half_price(url), tell(url, "stats")
    assert 15.0 < cost <= 30.0
    assert sum(used["paid_usd"] for used in facts_of(ref)["usage"].values()) == pytest.approx(cost)
    assert asked["requests"] == asked["distinct"]
    failed = facts_of(ref)["failed"]
    assert {reason for reasons in failed.values() for reason in reasons} == {"budget reached"}
