"""Several workers on one store: shards are shared out by claims, one worker is killed, and nothing is scored twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.engines.scoring import TransformersEngine
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TopKReader
from tasks.models import load_tokenizer, resolve
from tasks.rows import KEPT, read_rows
from tasks.tokens.rows import TokenisedRow, tokenise
from tests.support.stages import scoring_workspace
from tests.support.wait import wait_for

K = 10
SCORING = Scoring(engine="transformers", max_length=256, tokens_per_shard=500)
WORKER = """
import json, sys
from infra.store.artifacts import ArtifactRef
from tasks.models import resolve
from tasks.logits import stage
from tests.support.stages import scoring_workspace
from tasks.logits.settings import Scoring

rows, scoring = ArtifactRef.model_validate_json(sys.argv[1]), Scoring.model_validate_json(sys.argv[2])
teacher = resolve("demo", "teacher")
ref = stage.score(scoring_workspace(rows, teacher, 10, scoring), rows, teacher, 10, scoring, lambda event: None)
print(ref.model_dump_json())
"""


def _worker(rows: ArtifactRef) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, rows.model_dump_json(), SCORING.model_dump_json()],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


def _owners(work: Workspace) -> set[int]:
    """Processes that hold claims."""
    names = storage.keys(work.uri + "claims/")
    found = [storage.get(f"{work.uri}claims/{name}") for name in names]
    return {json.loads(data)["pid"] for data in found if data}


def _written(work: Workspace) -> dict[str, Any]:
    bucket, prefix = storage.split_uri(work.uri + SHARDS)
    listed = storage.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {entry["Key"]: (entry["LastModified"], entry["ETag"]) for entry in listed}


def test_two_workers_share_a_store_and_one_finishes_it_after_the_other_is_killed(rows: ArtifactRef) -> None:
    work = scoring_workspace(rows, resolve("demo", "teacher"), K, SCORING)
    workers = [_worker(rows), _worker(rows)]
    try:
        owners: set[int] = set()

        def both_are_at_it() -> bool:
            owners.update(_owners(work))
            return len(_owners(work)) == 2 and len(_written(work)) >= 3

        wait_for(both_are_at_it, 180, alive=workers, every_s=0.02)
        victim = next(w for w in workers if any(child.pid in owners for child in psutil.Process(w.pid).children(True)))
        scorer = next(child for child in psutil.Process(victim.pid).children(True) if child.pid in owners)
        os.kill(scorer.pid, signal.SIGKILL)
        victim.kill()
        victim.wait()
        finished = _written(work)
        survivor = next(worker for worker in workers if worker is not victim)
        out, _ = survivor.communicate(timeout=180)
        assert survivor.returncode == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    ref = ArtifactRef.model_validate_json(out.splitlines()[-1])
    after = _written(work)
    assert ref.counts["shards"] == len(after) > len(finished) > 0
    assert {name: after[name] for name in finished} == finished  # nothing that was there was scored again
    scored = [row.row_id for row in TopKReader(ref)]
    assert sorted(scored) == sorted(row.id for row in read_rows(rows, KEPT))
    left = storage.keys(work.uri + "claims/")  # of a shard that was written, if the victim died before it gave it back
    assert all(any(key.endswith(name) for key in finished) for name in left)
    assert ArtifactReader(ref).record.facts["shards_repaired"] == []


@pytest.mark.parametrize("k", [1, 10, 50])
def test_the_reference_is_the_softmax_in_double_precision(rows: ArtifactRef, k: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    teacher = resolve("demo", "teacher")
    tokenizer = load_tokenizer(teacher)
    every = (tokenise(row, tokenizer, 256) for row in read_rows(rows, KEPT))
    some = [row for row in every if isinstance(row, TokenisedRow)][:8]
    model: Any = AutoModelForCausalLM.from_pretrained(teacher.fetch(), dtype=torch.float64)
    for row, scored in zip(some, TransformersEngine(teacher.fetch()).score(some, k), strict=True):
        with torch.inference_mode():
            logits_TV = model(input_ids=torch.tensor([list(row.ids)])).logits[0].numpy()
        predicting_RV = logits_TV[row.response_start - 1 : len(row.ids) - 1]
        highest_R1 = predicting_RV.max(axis=1, keepdims=True)
        logprobs_RV = predicting_RV - highest_R1 - np.log(np.exp(predicting_RV - highest_R1).sum(axis=1, keepdims=True))
        exact_RK = -np.sort(-logprobs_RV, axis=1)[:, :k]
        np.testing.assert_allclose(scored.logprobs_RK, exact_RK, atol=1e-4)
        chosen_RK = np.take_along_axis(logprobs_RV, scored.topk_ids_RK.astype(np.int64), axis=1)
        np.testing.assert_allclose(chosen_RK, exact_RK, atol=1e-4)
        labels_R = np.asarray(row.ids)[row.response_start :]
        np.testing.assert_allclose(scored.actual_logprobs_R, logprobs_RV[np.arange(len(labels_R)), labels_R], atol=1e-4)
