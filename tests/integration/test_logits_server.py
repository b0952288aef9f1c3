"""A teacher that a real `vllm serve` has: its store is that of the engines here, and what cannot work is told first."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigurationError, TransientError
from infra.processes import child
from infra.store import storage
from infra.store.artifacts import ArtifactReader, ArtifactRef, Workspace
from tasks.engines import vllm_server
from tasks.engines.server import connect
from tasks.engines.vllm_server import KEY
from tasks.logits import program, stage
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import TopKReader
from tasks.models import BESIDE_WEIGHTS, ModelSource, resolve
from tasks.seeds.stage import Sources
from tasks.tokens.scored import ScoredRow
from tests.support.door import Door
from tests.support.other_tokenizer import shuffled_ids
from tests.support.stages import load, scoring_workspace
from tests.support.vllm_serve import vllm_serve

K, MOST = 10, 12
SECRET = "a0key0without0a0shape"
TINY = 2**-14
pytestmark = pytest.mark.timeout(900)  # whichever comes first starts the server, on a busy machine in minutes


@pytest.fixture(scope="module")
def server(home: Path) -> Iterator[str]:
    """One for all tests, which wants a key and gives at most 12 log-probs of a token."""
    options = (f"--max-logprobs={MOST}", "--max-model-len=400", "--served-model-name=demo")
    with vllm_serve(home, *options, key=SECRET) as address:
        yield address


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """The demo's, without its weights."""
    theirs, folder = Path(resolve("demo", "teacher").path or ""), tmp_path_factory.mktemp("teacher")
    for pattern in BESIDE_WEIGHTS:
        for path in theirs.glob(pattern):
            shutil.copy(path, folder)
    assert not list(folder.glob("*.safetensors"))
    return ModelSource(name="demo", path=str(folder))


def _scoring(server: str, **more: Any) -> Scoring:
    return Scoring(engine="server", server=server, max_length=256, max_error=TINY, **more)


def _score(rows: ArtifactRef, teacher: ModelSource, scoring: Scoring, k: int = K, **more: Any) -> ArtifactRef:
    made = scoring_workspace(rows, teacher, k, scoring)
    work = Workspace(made.kind, made.version, {**made.spec, "for": scoring.engine}, made.inputs)
    return stage.score(work, rows, teacher, k, scoring, lambda event: None, **more)


def _rows(ref: ArtifactRef) -> dict[str, ScoredRow]:
    return {row.row_id: row for row in TopKReader(ref)}


def test_the_store_is_that_of_the_engines_here_and_needs_no_weights(
    rows: ArtifactRef, teacher: ModelSource, server: str
) -> None:
    ref = _score(rows, teacher, _scoring(server))
    facts = ArtifactReader(ref).record.facts
    assert (facts["engine"], facts["engines"]) == ("server", 1)
    assert server not in str(ArtifactReader(ref).record)
    scored = _rows(ref)
    for engine in ("vllm", "transformers"):
        here = Scoring(engine=engine, max_length=256, max_error=TINY)  # type: ignore[arg-type]
        theirs = _rows(_score(rows, resolve("demo", "teacher"), here))
        assert scored.keys() == theirs.keys()
        for row_id, row in scored.items():
            other = theirs[row_id]
            assert (list(row.ids), row.spans) == (list(other.ids), other.spans)
            np.testing.assert_allclose(row.actual_logprobs_R, other.actual_logprobs_R, atol=3 * TINY)
            np.testing.assert_allclose(row.logprobs_RK, other.logprobs_RK, atol=3 * TINY)
            clear = np.abs(np.diff(other.logprobs_RK, axis=1)) > 6 * TINY
            same = row.topk_ids_RK == other.topk_ids_RK
            assert same[:, 1:-1][clear[:, :-1] & clear[:, 1:]].all()


def test_held_out_rows_are_scored_by_it_too(teacher: ModelSource, server: str) -> None:
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=True)
    scoring = _scoring(server, engines=2, tokens_per_shard=300)
    heldout = stage.ScoreHeldout(rows=seeds, teacher=teacher, k=3, scoring=scoring, max_rows=12)
    work = heldout.workspace()
    ref = stage.score(work, seeds, teacher, 3, scoring, lambda event: None, heldout=heldout.heldout)
    assert ref.counts["rows"] == 12
    assert ArtifactReader(ref).record.facts["engines"] == 2


def test_a_server_that_goes_away_is_a_transient_error_and_the_next_try_scores_only_the_rest(
    rows: ArtifactRef, teacher: ModelSource, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(vllm_server, "_PAUSES_S", (0.01, 0.01))
    with Door(server) as door:
        scoring = _scoring(door.url, tokens_per_shard=3000)
        work = scoring_workspace(rows, teacher, K, scoring)
        spec = {"rows": rows.model_dump(), "teacher": teacher.model_dump(), "k": K, "scoring": scoring.model_dump()}
        spec |= {"turns": "last", "workspace": work.description()}
        put = storage.put

        def shut_after_the_second_shard(uri: str, *content: Any, **how: Any) -> Any:
            done = put(uri, *content, **how)
            if len(_shards(work)) == 2:
                door.shut()
            return done

        monkeypatch.setattr(storage, "put", shut_after_the_second_shard)
        with pytest.raises(TransientError, match=f"the server at {door.url} cannot be reached .*scoring.server"):
            program.main(spec, child.Reporter(tmp_path))
        monkeypatch.setattr(storage, "put", put)
        before = _shards(work)
        assert len(before) == 2
        door.open()
        found = program.main(spec, child.Reporter(tmp_path))["facts"]
        assert found["shards_found"] == 2
        assert before.items() <= _shards(work).items()


def _shards(work: Workspace) -> dict[str, Any]:
    bucket, prefix = storage.split_uri(f"{work.uri}shards/")
    listed = storage.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return {entry["Key"]: (entry["LastModified"], entry["ETag"]) for entry in listed}


def test_what_it_cannot_do_is_told_before_a_row_is_scored(
    teacher: ModelSource, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(k: int = K, longest: int = 300, name: str | None = None, model: ModelSource = teacher) -> str:
        with pytest.raises(ConfigurationError) as told:
            connect(server, name, model, k, longest)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert connect(server, None, teacher, MOST, 399).name == "demo"
    assert connect(f"{server}/v1/", "demo", teacher, MOST, 399).name == "demo"
    assert f"gives fewer log-probs of a token than k = {MOST + 1}: start it with `vllm serve … --max-logprobs" in (
        refused(k=MOST + 1)
    )
    assert "takes 400 tokens, and rows have up to 400: start it with `--max-model-len 401`" in refused(longest=400)
    assert "serves 'demo', and not 'large': set scoring.server_model" in refused(name="large")
    other = shuffled_ids(resolve("demo", "teacher"), tmp_path / "other")
    assert "has another tokenizer for 'demo' than the teacher 'shuffled'" in refused(model=other)
    monkeypatch.setenv(KEY, "another0key")
    assert refused() == f"the server at {server} refuses the key in VLLM_API_KEY"
    monkeypatch.delenv(KEY)
    assert refused() == f"the server at {server} wants a key: put it into VLLM_API_KEY"
