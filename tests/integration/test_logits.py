"""Scoring with the real vLLM on the CPU: equal to transformers, and a kill costs at most one shard."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.errors import ConfigurationError, TransientError
from infra.processes import shared_memory
from infra.processes.supervise import Event
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.logits import stage
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import TopKReader
from tasks.models import resolve
from tasks.rows import KEPT, read_rows, to_parquet
from tasks.tokens.scored import ScoredRow
from tests.support.processes import named, of_home
from tests.support.stages import scoring_workspace

K = 10


@pytest.fixture(scope="module")
def rows(rows: ArtifactRef) -> ArtifactRef:
    """The demo's, every fourth with the three before it as earlier turns."""
    demo = list(read_rows(rows, KEPT))
    talks = [
        last.model_copy(update={"history": tuple(turn for row in before for turn in row.messages)})
        for *before, last in (demo[index : index + 4] for index in range(0, len(demo) - 3, 4))
    ]
    work = Workspace("augment", 1, {"for": "turns"}, {"rows": rows})
    work.put(f"{KEPT}00000.parquet", to_parquet([*talks, *demo[:100]]))
    return work.find() or work.publish((KEPT,), {"rows": len(talks) + 100, "conversations": len(talks)}, {})


def _score(rows: ArtifactRef, scoring: Scoring, tag: int, on_event: Any = lambda event: None) -> ArtifactRef:
    teacher = resolve("demo", "teacher")
    work = scoring_workspace(rows, teacher, K, scoring, "all")
    tagged = Workspace(work.kind, 1000 + tag, work.spec, work.inputs)
    return stage.score(tagged, rows, teacher, K, scoring, on_event, "all")


def _engine_cores() -> list[psutil.Process]:
    return named(of_home(os.environ["DISTILFLOW_HOME"]), "EngineCore")


def _unmapped_memory() -> set[Path]:
    """Shared memory that no process maps: engines of other tests map theirs."""
    return {path for path in Path("/dev/shm").glob("psm_*") if str(path) not in shared_memory._mapped()}


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for what this test's engines put into the temporary one; by a short path, for sockets have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def _rows(ref: ArtifactRef) -> dict[str, ScoredRow]:
    return {row.row_id: row for row in TopKReader(ref)}


@pytest.mark.timeout(600)  # two starts of vLLM as three processes
def test_vllm_killed_in_mid_run_resumes_without_rescoring_and_agrees_with_transformers(
    rows: ArtifactRef, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = Scoring(engine="vllm", max_length=512, tokens_per_shard=6000, max_error=2**-14)
    victims: list[str] = []
    sockets: list[Path] = []

    def kill_the_engine(event: Event) -> None:
        if event["event"] == "progress" and event["done"] < event["total"] and not victims:
            (core,) = _engine_cores()
            sockets.extend(path for path in scratch.rglob("*") if path.is_socket())
            victims.append(core.name())
            core.kill()

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")  # the engine in processes of its own, as on a GPU
    with pytest.raises(TransientError):
        _score(rows, scoring, 0, kill_the_engine)
    assert victims
    assert sockets, "this engine's sockets are elsewhere, so that nothing is seen of what it leaves"
    assert _engine_cores() == []
    assert not list(scratch.iterdir())

    uri = Workspace.from_description(_description(rows, scoring)).uri
    finished = {name: _written_at(uri + name) for name in storage.keys(uri) if name.startswith("shards/")}
    before = _unmapped_memory()
    ref = _score(rows, scoring, 0)
    assert _unmapped_memory() <= before
    assert not list(scratch.iterdir())
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")
    assert ref.counts["rows"] == rows.counts["rows"]
    assert finished == {name: _written_at(uri + name) for name in finished}
    assert ArtifactReader(ref).record.facts["shards_found"] == len(finished)

    # a shard damaged before the store is published is found, named and scored again; a damaged store says what to do
    damaged = f"{uri}shards/00001.topk"
    storage.put(damaged, (storage.get(damaged) or b"")[:-1])
    storage.delete(f"{uri}shards/00000.topk")
    with pytest.raises(ConfigurationError, match="shards/00000.topk is missing.*delete .*record.json and run again"):
        list(TopKReader(ref))
    storage.delete(uri + "record.json")
    again = _score(rows, scoring, 0)
    facts = ArtifactReader(again).record.facts
    assert facts["shards_found"] == again.counts["shards"] - 2
    assert [message.split(" ")[1] for message in facts["shards_repaired"]] == [damaged]
    assert again.counts == ref.counts

    reference = _rows(_score(rows, scoring.model_copy(update={"engine": "transformers"}), 1))
    scored = _rows(again)
    assert scored.keys() == reference.keys()
    assert sum(len(row.spans) == 4 for row in scored.values()) == rows.counts["conversations"]
    for row_id, row in scored.items():
        other = reference[row_id]
        assert list(row.ids) == list(other.ids)
        assert row.spans == other.spans
        np.testing.assert_allclose(row.actual_logprobs_R, other.actual_logprobs_R, atol=1e-3)
        np.testing.assert_allclose(row.logprobs_RK, other.logprobs_RK, atol=1e-3)
        # where neighbours in rank are apart by more than the engines differ, the ids agree
        clear = np.abs(np.diff(other.logprobs_RK, axis=1)) > 2e-3
        same = row.topk_ids_RK == other.topk_ids_RK
        assert same[:, 1:-1][clear[:, :-1] & clear[:, 1:]].all()


def _description(rows: ArtifactRef, scoring: Scoring) -> dict[str, Any]:
    description = scoring_workspace(rows, resolve("demo", "teacher"), K, scoring, "all").description()
    return {**description, "version": 1000}


def _written_at(uri: str) -> Any:
    bucket, key = storage.split_uri(uri)
    return storage.client().head_object(Bucket=bucket, Key=key)["LastModified"]
