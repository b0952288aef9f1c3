"""Several workers on one dataset, on one machine or several: they share the work, and what one paid all have."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra import settings
from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tasks.augment import stage
from tasks.augment.settings import Augmentation
from tests.support import augmentation
from tests.support.augmentation import MODEL, load_seeds, start
from tests.support.endpoint import endpoint, tell
from tests.support.program import told
from tests.support.stages import augment_workspace
from tests.support.wait import wait_for

CONCURRENCY = 12
OPTIONS: dict[str, Any] = {"expansions_per_seed": 1, "min_score": 2, "concurrency": CONCURRENCY}
SEEDS, BATCH = 40, 5


@pytest.fixture(scope="module")
def expected(services: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what one worker makes alone: its kept, rejected and failed rows and its card."""
    with pytest.MonkeyPatch.context() as patch, endpoint() as url:
        patch.setenv("DISTILFLOW_BUCKET", "one-worker")
        patch.setenv("DISTILFLOW_HOME", str(tmp_path_factory.mktemp("one")))
        patch.setattr(stage, "_SEEDS_PER_BATCH", BATCH)
        storage.ensure_bucket()
        return augmentation.augment(url, SEEDS, OPTIONS).sha256


def _ref(worker: dict[str, Any]) -> ArtifactRef:
    return ArtifactRef.model_validate(worker["ref"])


def test_two_machines_share_the_batches_and_ask_nothing_twice(expected: str, bucket: str, tmp_path: Path) -> None:
    with endpoint(latency=0.2) as url:
        started = [start(url, SEEDS, OPTIONS, BATCH, DISTILFLOW_HOME=str(tmp_path / name)) for name in ("one", "other")]
        one, other = map(told, started)
        asked = tell(url, "stats")
    assert _ref(one).sha256 == _ref(other).sha256 == expected
    parts = [f"{part}-{index:05}" for part in ("written", "verified") for index in range(SEEDS // BATCH)]
    assert sorted(one["batches"] + other["batches"]) == sorted(parts), "a batch was done twice, or by nobody"
    assert one["batches"]
    assert other["batches"]
    assert asked["requests"] == asked["distinct"]


def test_a_killed_workers_batches_are_taken_over(expected: str, bucket: str, tmp_path: Path) -> None:
    home = {"DISTILFLOW_HOME": str(tmp_path)}  # one machine, so that the answers of the killed one are there
    work = augment_workspace(load_seeds(SEEDS), Augmentation.model_validate(OPTIONS), MODEL)

    def claimed_by(worker: subprocess.Popen[str]) -> set[str]:
        names = list(storage.keys(work.uri + "claims/"))
        claims = {name: json.loads(storage.get(f"{work.uri}claims/{name}") or b"{}") for name in names}
        return {name for name, owner in claims.items() if owner.get("pid") == worker.pid}

    with endpoint(latency=0.2) as url:
        killed, other = (start(url, SEEDS, OPTIONS, BATCH, **home) for _ in range(2))
        wait_for(lambda: claimed_by(killed) and claimed_by(other), alive=[killed, other])
        wait_for(lambda: tell(url, "stats")["in_flight"], alive=[killed, other])
        killed.kill()
        killed.communicate(timeout=30)
        left = claimed_by(killed)
        survivor = told(other)
        asked = tell(url, "stats")
    assert left
    assert left <= set(survivor["batches"]), "the batches of the killed worker were not done by the other one"
    assert _ref(survivor).sha256 == expected
    assert list(storage.keys(work.uri + "claims/")) == []
    assert asked["requests"] - asked["distinct"] <= CONCURRENCY


def test_what_one_machine_paid_another_does_not_pay_again(
    expected: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_SEEDS_PER_BATCH", BATCH)
    with endpoint() as url:
        monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "one"))
        first = augmentation.augment(url, SEEDS, OPTIONS)
        paid = tell(url, "stats")["requests"]
        monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "other"))
        stricter = augmentation.augment(url, SEEDS, {**OPTIONS, "min_score": 6})
        assert stricter.counts["rows"] < first.counts["rows"]
        bucket_uri = f"s3://{settings.bucket()}/"
        for name in [name for name in storage.keys(bucket_uri) if not name.startswith("answers/")]:
            storage.delete(bucket_uri + name)
        monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path / "third"))
        again = augmentation.augment(url, SEEDS, OPTIONS)
        assert tell(url, "stats")["requests"] == paid
    assert again.sha256 == first.sha256 == expected
