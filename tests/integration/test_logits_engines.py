"""Several engines of one machine score one store: it is that of one engine, whichever of them are killed on the way."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.errors import TransientError
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from infra.store.claims import Claims
from tasks.engines.pieces import CLAIMS
from tasks.logits import stage
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TopKReader
from tasks.models import resolve
from tests.support.processes import named, of_home
from tests.support.stages import scoring_workspace

K = 5
ONE = Scoring(engine="transformers", max_length=256, tokens_per_shard=600, engines=1)
TWO = ONE.model_copy(update={"engines": 2})
VLLM = ONE.model_copy(update={"engine": "vllm", "max_batched_tokens": 512})


class Scored:
    """A store of its own that `scoring` makes, and what was heard on the way."""

    def __init__(self, rows: ArtifactRef, tag: str, role: str = "teacher"):
        teacher = resolve("demo", role)
        made = scoring_workspace(rows, teacher, K, ONE)
        self.work = Workspace(made.kind, made.version, {**made.spec, "for": tag}, made.inputs)
        self.events: list[dict[str, Any]] = []
        self._rows, self._teacher = rows, teacher

    def score(
        self, scoring: Scoring, kill: int = 0, kill_from: int = 0, hear: Callable[[Any], None] = lambda event: None
    ) -> ArtifactRef:
        """Kill so many engines as soon as more than `kill_from` per cent of the tokens are scored."""
        left = kill

        def on_event(event: dict[str, Any]) -> None:
            nonlocal left
            self.events.append(event)
            hear(event)
            if left and event["event"] == "progress" and 100 * event["done"] > kill_from * event["total"]:
                for process in scorers()[:left]:
                    process.kill()
                    left -= 1

        return stage.score(self.work, self._rows, self._teacher, K, scoring, on_event)

    def written(self) -> dict[str, Any]:
        """Each shard's time and tag in storage."""
        bucket, prefix = storage.split_uri(self.work.uri + SHARDS)
        listed = storage.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
        return {Path(entry["Key"]).name: (entry["LastModified"], entry["ETag"]) for entry in listed}

    @property
    def warnings(self) -> list[str]:
        return [event["text"] for event in self.events if event["event"] == "warning"]

    def rows(self) -> list[Any]:
        """What is stored of each row, in order."""
        ref = self.work.find()
        assert ref is not None
        return [
            (row.row_id, list(row.ids), row.spans, row.topk_ids_RK.tolist(), row.logprobs_RK.tolist())
            for row in TopKReader(ref)
        ]


def scorers() -> list[psutil.Process]:
    """The engines' own processes, not their guardians."""
    found = named(of_home(os.environ["DISTILFLOW_HOME"]), "tasks.logits.scorer")
    return [process for process in found if "infra.processes.guardian" not in " ".join(process.cmdline())]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of as many threads are equal to the last bit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def alone(rows: ArtifactRef) -> Scored:
    """What one engine makes of the rows."""
    scored = Scored(rows, "alone")
    scored.score(ONE)
    return scored


def test_two_engines_make_the_store_of_one_and_one_progress(rows: ArtifactRef, alone: Scored) -> None:
    both = Scored(rows, "both")
    ref = both.score(TWO)
    facts = ArtifactReader(ref).record.facts
    assert facts["engines"] == 2
    assert facts["coverage"] == ArtifactReader(alone.work.find() or ref).record.facts["coverage"]
    assert ref.counts == (alone.work.find() or ref).counts
    assert both.rows() == alone.rows()
    counts = Counter(event["event"] for event in both.events)
    assert counts["loading"] == 1
    progress = [event for event in both.events if event["event"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == ref.counts["tokens"]
    assert both.warnings == []
    assert scorers() == []


def test_a_killed_engine_costs_its_shard_and_when_all_are_killed_a_rerun_continues(
    rows: ArtifactRef, alone: Scored
) -> None:
    killed = Scored(rows, "killed")
    with pytest.raises(TransientError, match="exit code 137"):
        killed.score(TWO, kill_from=10, kill=2)
    assert scorers() == []
    before = killed.written()
    assert 0 < len(before) < len(alone.written())
    assert len(killed.warnings) == 1  # of the first; the last one's end is the error

    killed.events.clear()
    ref = killed.score(TWO, kill_from=60, kill=1)
    (warning,) = killed.warnings
    assert warning.startswith("engine ")
    assert "of 2 is lost, and the others do its part: logits-engine-" in warning
    after = killed.written()
    assert {name: after[name] for name in before} == before  # nothing that was there was scored again
    assert ArtifactReader(ref).record.facts["shards_found"] == len(before)
    assert killed.rows() == alone.rows()


def test_two_engines_of_vllm_are_at_it_together_and_one_finishes_after_the_other_is_killed(
    rows: ArtifactRef, alone: Scored
) -> None:
    """Shards that are held back here keep both at it until both were ready."""
    both = Scored(rows, "two of vllm")
    kept = [f"{SHARDS}{name}" for name in list(alone.written())[-3:]]
    with Claims(both.work.uri + CLAIMS) as claims:
        assert all(claims.take(name) for name in kept)

        def kill_one_of_two(event: dict[str, Any]) -> None:
            if event["event"] == "ready" and event["engine"] == "vllm (2 of 2)":
                first, _second = scorers()
                first.kill()
                for name in kept:
                    claims.release(name)

        ref = both.score(VLLM.model_copy(update={"engines": 2}), hear=kill_one_of_two)
    (warning,) = both.warnings
    assert "of 2 is lost, and the others do its part: logits-engine-" in warning
    assert scorers() == []
    assert_agree(ref, alone.work.find())


@pytest.mark.timeout(600)  # vLLM as three processes, then as one
def test_one_teacher_over_two_processes_of_vllm_makes_the_store_of_one(rows: ArtifactRef) -> None:
    """With the demo's student, whose heads divide by two."""
    spread, whole = (Scored(rows, f"over {parallel}", "student") for parallel in (2, 1))
    workers: list[str] = []

    def look(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and not workers:
            names = (process.name() for process in of_home(os.environ["DISTILFLOW_HOME"]))
            workers.extend(name for name in names if "Worker_TP" in name)

    ref = spread.score(VLLM.model_copy(update={"tensor_parallel": 2}), hear=look)
    assert len(workers) == 2
    assert_agree(ref, whole.score(VLLM.model_copy(update={"tensor_parallel": 1})))


def assert_agree(found: ArtifactRef, wanted: ArtifactRef | None) -> None:
    """In every log-prob, within the error of both stores; tokens that are as likely may change places."""
    assert wanted is not None
    pairs = list(zip(TopKReader(found), TopKReader(wanted), strict=True))
    assert len(pairs) == wanted.counts["rows"] > 100
    for ours, theirs in pairs:
        assert (ours.row_id, list(ours.ids)) == (theirs.row_id, list(theirs.ids))
        np.testing.assert_allclose(ours.logprobs_RK, theirs.logprobs_RK, atol=2 * ONE.max_error)
        np.testing.assert_allclose(ours.actual_logprobs_R, theirs.actual_logprobs_R, atol=2 * ONE.max_error)
    assert np.concatenate([ours.topk_ids_RK == theirs.topk_ids_RK for ours, theirs in pairs]).mean() > 0.99
