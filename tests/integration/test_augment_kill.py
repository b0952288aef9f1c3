"""The augmentation stage is killed, again and again: nothing is left behind, nothing is lost, nothing is paid twice."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.store import storage
from infra.store.artifacts import ArtifactRef
from tests.support.augmentation import start
from tests.support.endpoint import endpoint, tell
from tests.support.program import told
from tests.support.wait import wait_for

CONCURRENCY = 12
OPTIONS = {"expansions_per_seed": 1, "min_score": 2, "concurrency": CONCURRENCY, "processes": 1}
SEEDS, BATCH = 40, 10


def _kill_when(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    """SIGKILL to the stage, and to nothing else; then no child of it may live on."""
    wait_for(reached, alive=[process], every_s=0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("tasks.llm.litellm_process" in child.cmdline() for child in children)
    process.kill()
    process.communicate(timeout=30)
    wait_for(lambda: not any(_lives(child) for child in children), 20)


def _lives(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_stage_killed_three_times_publishes_the_rows_of_one_that_was_not(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint() as url:
        unkilled = _ref(start(url, SEEDS, OPTIONS, BATCH, DISTILFLOW_HOME=str(tmp_path / "unkilled")))
        needed = tell(url, "stats")["by_agent"]
    dice = random.Random(3)
    written = sum(count for agent, count in needed.items() if agent != "verification")
    first, second = sorted(dice.sample(range(written // 10, written * 9 // 10), 2))
    third = dice.randrange(needed["verification"] // 2)

    monkeypatch.setenv("DISTILFLOW_BUCKET", "killed-again-and-again")
    storage.ensure_bucket()
    home = {"DISTILFLOW_HOME": str(tmp_path / "killed")}
    with endpoint(latency=0.1) as url:

        def stats() -> dict[str, Any]:
            return tell(url, "stats")

        for reached in (
            lambda: stats()["distinct"] > first,
            lambda: stats()["distinct"] > second,
            lambda: stats()["by_agent"].get("verification", 0) > third,
        ):
            _kill_when(start(url, SEEDS, OPTIONS, BATCH, **home), reached)
            written_so_far = list(storage.keys("s3://killed-again-and-again/augment/"))
            assert not [name for name in written_so_far if name.endswith("/record.json")], "a record before its shards"
        ref = _ref(start(url, SEEDS, OPTIONS, BATCH, **home))
        asked = stats()
    assert ref.counts["rows"] > 0
    assert ref.sha256 == unkilled.sha256
    assert ref.counts == unkilled.counts
    assert asked["distinct"] == sum(needed.values())
    assert asked["requests"] - asked["distinct"] <= 3 * CONCURRENCY, "more was asked again than was in flight"


def _ref(process: subprocess.Popen[str]) -> ArtifactRef:
    return ArtifactRef.model_validate(told(process)["ref"])
