"""One request in five goes wrong, in every way that it can: every row is accounted for, with who and why."""

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import settings
from infra.errors import ConfigurationError
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace, facts_of
from tasks.augment import card, stage
from tasks.rows import FAILED, KEPT, REJECTED
from tests.support import augmentation
from tests.support.endpoint import FAULTS, endpoint, tell

OPTIONS: dict[str, Any] = {"expansions_per_seed": 2, "concurrency": 32, "timeout_s": 2.0, "min_score": 2}
SEEDS = 30


@pytest.fixture(autouse=True)
def small_batches(bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "_SEEDS_PER_BATCH", 10)
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))


def _table(ref: ArtifactRef, prefix: str) -> list[dict[str, Any]]:
    return [
        row
        for _, data in ArtifactReader(ref).stream(prefix)
        for row in pq.read_table(pa.BufferReader(data)).to_pylist()
    ]


def _by_agent_and_reason(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    counted: dict[str, dict[str, int]] = {}
    for (agent, reason), number in Counter((row["agent"], row["reason"]) for row in rows).items():
        counted.setdefault(agent, {})[reason] = number
    return counted


def test_every_row_is_accounted_for_and_a_rerun_asks_for_what_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(faults=0.2) as url:
        ref = augmentation.augment(url, SEEDS, OPTIONS)
        asked = tell(url, "stats")
        assert set(asked["by_fault"]) == set(FAULTS)
        assert asked["repeated"] == 0, "an answer that was paid for was asked for again"

        kept, rejected, failed = (_table(ref, prefix) for prefix in (KEPT, REJECTED, FAILED))
        assert len(kept) + len(rejected) + len(failed) == SEEDS + ref.counts["expanded"]
        assert failed
        ids = [row["id"] for row in (*kept, *rejected, *failed)]
        assert len(set(ids)) == len(ids)
        assert all(row["agent"] and row["reason"] and row["detail"] for row in failed)
        assert all(row["agent"] and row["reason"] for row in rejected)

        facts, counts = facts_of(ref), ref.counts
        assert (counts["rows"], counts["rejected"], counts["failed"]) == (len(kept), len(rejected), len(failed))
        assert facts["failed"] == _by_agent_and_reason(failed)
        assert facts["rejected"] == _by_agent_and_reason(rejected)
        written = ArtifactReader(ref).read(card.NAME).decode()
        told = re.findall(r"^\| (rejected|failed) \| (.+?) \| (.+?) \| ([\d,]+) \|$", written, re.MULTILINE)
        assert {(outcome, agent, reason): int(number) for outcome, agent, reason, number in told} == {
            (outcome, agent, reason): number
            for outcome in ("rejected", "failed")
            for agent, reasons in facts[outcome].items()
            for reason, number in reasons.items()
        }

        monkeypatch.setenv("DISTILFLOW_BUCKET", "faults-again")
        storage.ensure_bucket()
        again = augmentation.augment(url, SEEDS, OPTIONS)
        anew = tell(url, "stats")["requests"] - asked["requests"]
    assert {row["id"] for row in kept} <= {row["id"] for row in _table(again, KEPT)}
    used = facts_of(again)["usage"]
    assert sum(one["from_cache"] for one in used.values()) > 10 * len(failed), "answers of use were asked for again"
    # an endpoint that still fails: the row's agent is asked again, and the agents that come after it
    assert 0 < anew <= 12 * (len(failed) + counts.get("failed_expansions", 0) * OPTIONS["expansions_per_seed"])


@pytest.mark.parametrize("kind", ["wrong_schema", "refusal"])
def test_a_model_of_no_use_is_paid_for_four_dozen_requests_and_not_for_all(kind: str) -> None:
    """Two agents are tried at once, Expansion and Rewriting, on a dozen rows each, twice a row."""
    with endpoint(faults=1.0, kinds=[kind]) as url:
        with pytest.raises(ConfigurationError) as ended:
            augmentation.augment(url, 60, OPTIONS)
        assert tell(url, "stats")["requests"] <= 48
    assert "agent gets no usable answers from the LLM 'openai/test' at http://127.0.0.1" in str(ended.value)
    words = {"wrong_schema": '{"unexpected": [1, 2, 3]}', "refusal": "I'm sorry, but I can't help with that."}
    assert words[kind] in str(ended.value)


def test_failed_rows_of_a_killed_try_do_not_stay_beside_the_rows_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with endpoint(faults=1.0, kinds=["empty"], faults_of_a_body=1) as url, monkeypatch.context() as patch:
        patch.setattr(Workspace, "put_json", killed)  # the JSON that says that a batch is finished
        with pytest.raises(Killed):
            augmentation.augment(url, 10, OPTIONS)
    monkeypatch.setenv("DISTILFLOW_HOME", os.environ["DISTILFLOW_HOME"] + "-without-those-answers")
    answers = f"s3://{settings.bucket()}/answers/"
    for name in list(storage.keys(answers)):
        storage.delete(answers + name)
    with endpoint() as url:
        ref = augmentation.augment(url, 10, OPTIONS)
    assert ref.counts["failed"] == 0
    assert _table(ref, FAILED) == []
    kept, rejected = _table(ref, KEPT), _table(ref, REJECTED)
    assert len(kept) + len(rejected) == 10 + ref.counts["expanded"]
