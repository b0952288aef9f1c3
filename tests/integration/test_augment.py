"""The agents over HTTP, against the demo LLM server: every row accounted for, and no answer paid twice."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from infra.errors import TransientError
from infra.store.artifacts import ArtifactReader, ArtifactRef
from tasks.augment import stage
from tasks.augment.pairs import export_pairs
from tasks.augment.settings import Augmentation
from tasks.llm.own_server import serving
from tasks.llm.protocol import LLMEndpoint
from tasks.rows import BEFORE_REWRITING, FAILED, KEPT, REJECTED, read_rows
from tasks.seeds.stage import Sources
from tests.support.stages import augment_workspace, load

OPTIONS = Augmentation(expansions_per_seed=2, max_rows=300)


@pytest.fixture
def seeds(bucket: str) -> ArtifactRef:
    return load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)


def _augment(seeds: ArtifactRef, endpoint: LLMEndpoint) -> ArtifactRef:
    work = augment_workspace(seeds, OPTIONS, "demo")
    return stage.augment(work, seeds, OPTIONS, endpoint, lambda done, total: None)


def test_every_row_is_kept_or_rejected_with_a_reason(seeds: ArtifactRef, tmp_path: Path) -> None:
    with serving("demo") as endpoint:
        ref = _augment(seeds, endpoint)
    kept = list(read_rows(ref, KEPT))
    rejected = list(read_rows(ref, REJECTED))
    assert len(kept) == ref.counts["rows"]
    assert len(rejected) == ref.counts["rejected"]
    assert list(read_rows(ref, FAILED)) == []
    assert len(kept) + len(rejected) == 200 + ref.counts["expanded"] == 600
    assert len({row.id for row in kept}) == len(kept)
    seeds_in = {row.id for row in read_rows(seeds, "train/")}
    assert {row.origin_seed for row in [*kept, *rejected]} == seeds_in
    assert all(row.lineage[-1] == "verification" and row.scores and row.verdicts for row in kept)
    corrected = [row for row in kept if BEFORE_REWRITING in row.verdicts]
    assert corrected
    done = export_pairs(ref, tmp_path / "pairs.jsonl")
    assert done.pairs["rewriting"] == len(corrected)
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == done.pairs.total()


def test_a_provider_that_goes_away_is_reported_and_the_rerun_gives_the_same_rows(
    seeds: ArtifactRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving("demo") as endpoint:
        expected = _digest(_augment(seeds, endpoint))
    nobody = dataclasses.replace(endpoint, api_base="http://127.0.0.1:9/v1")
    monkeypatch.setenv("DISTILFLOW_BUCKET", "augment-again")  # nothing of the first run to find
    from infra.store import storage

    storage.ensure_bucket()
    again = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    # the answers are in the request cache: no server, and still the same rows
    assert _digest(_augment(again, nobody)) == expected
    monkeypatch.setenv("DISTILFLOW_HOME", str(tmp_path))  # an empty cache: now the server is missed
    monkeypatch.setenv("DISTILFLOW_BUCKET", "augment-once-more")
    storage.ensure_bucket()
    once_more = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    with pytest.raises(TransientError, match="cannot be reached"):
        _augment(once_more, nobody)


def _digest(ref: ArtifactRef) -> str:
    reader = ArtifactReader(ref)
    return hashlib.sha256(b"".join(reader.read(name) for name in reader.names(KEPT))).hexdigest()
