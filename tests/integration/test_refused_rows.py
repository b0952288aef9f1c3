"""One row must not stop a run: what a teacher or a context cannot take is left out, counted and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.errors import ConfigurationError
from infra.processes import child
from infra.store.artifacts import ArtifactRef, Workspace
from tasks.engines.generation import Ends
from tasks.engines.scoring import TransformersEngine
from tasks.evaluate.heldout import program as evaluation
from tasks.evaluate.heldout import teachers
from tasks.evaluate.heldout.prepared import prepare_rows
from tasks.evaluate.heldout.teachers import RowScore
from tasks.evaluate.settings import Evaluation
from tasks.logits import program, scorer
from tasks.logits.settings import Scoring
from tasks.logits.store.reader import SHARDS, TOKENIZER, TopKReader
from tasks.models import ModelSource, resolve
from tasks.rows import HELDOUT, KEPT, read_rows
from tasks.seeds.stage import Sources
from tasks.tokens.rows import TokenisedRow
from tasks.tokens.scored import ScoredRow
from tasks.train.data.examples import Examples
from tests.support.stages import evaluation_workspace, load, scoring_workspace

SCORING = Scoring(engine="transformers", max_length=256, tokens_per_shard=3000)
K = 4


class Broken:
    """The demo's teacher, which has no numbers for some rows."""

    def __init__(self, bad: set[str]):
        self.bad, self.calls = bad, 0
        self._engine = TransformersEngine(resolve("demo", "teacher").fetch())

    def score(self, rows: Sequence[TokenisedRow], k: int) -> list[ScoredRow]:
        self.calls += 1
        return [self._broken(row) if row.row_id in self.bad else row for row in self._engine.score(rows, k)]

    def close(self) -> None: ...

    def _broken(self, row: ScoredRow) -> ScoredRow:
        logprobs = row.logprobs_RK.copy()
        logprobs[-1] = np.nan
        return replace(row, logprobs_RK=logprobs)


def _scored(
    rows: ArtifactRef, bad: set[str], monkeypatch: pytest.MonkeyPatch, folder: Path, seed: int
) -> tuple[Workspace, dict[str, Any], Broken]:
    engine = Broken(bad)
    monkeypatch.setattr(scorer, "make_engine", lambda job: engine)
    scoring = SCORING.model_copy(update={"tokens_per_shard": 3000 + seed})
    teacher = resolve("demo", "teacher")
    work = scoring_workspace(rows, teacher, K, scoring)
    spec = {
        "rows": rows.model_dump(),
        "teacher": teacher.model_dump(),
        "k": K,
        "scoring": scoring.model_dump(),
        "turns": "last",
        "workspace": work.description(),
    }
    folder.mkdir(exist_ok=True)
    return work, program.main(spec, child.Reporter(folder)), engine


def test_a_row_without_numbers_is_named_and_scored_once(
    rows: ArtifactRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = sorted(row.id for row in read_rows(rows, KEPT))
    bad = {ids[3], ids[40]}
    work, told, _engine = _scored(rows, bad, monkeypatch, tmp_path / "one", 0)
    assert set(told["facts"]["refused_rows"]) == bad
    assert told["facts"]["skipped"] == {"the teacher gives no number for it": 2}
    assert told["counts"]["rows"] == len(ids) - 2
    _work, again, engine = _scored(rows, bad, monkeypatch, tmp_path / "two", 0)  # as after a kill before the record
    assert engine.calls == 0
    assert again["counts"] == told["counts"]
    store = work.publish((SHARDS, TOKENIZER), told["counts"], told["facts"])
    assert {row.row_id for row in TopKReader(store)} == set(ids) - bad


def test_a_teacher_without_any_number_is_refused(
    rows: ArtifactRef, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    every = {row.id for row in read_rows(rows, KEPT)}
    with pytest.raises(ConfigurationError, match="the teacher gives numbers for no row"):
        _scored(rows, every, monkeypatch, tmp_path / "one", 1)


def test_a_held_out_row_without_numbers_is_left_out_counted_and_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of one variant's; the report is on the rows that every variant has."""
    seeds = load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)
    bad = sorted(row.id for row in read_rows(seeds, HELDOUT))[3]
    real = teachers._Logits.score

    def score(view: teachers._Logits, row: TokenisedRow, *rest: Any) -> RowScore:
        scored = real(view, row, *rest)
        return scored._replace(kl_to_teacher=float("nan")) if row.row_id == bad else scored

    monkeypatch.setattr(teachers._Logits, "score", score)
    settings = Evaluation(max_rows=12, max_new_tokens=4, max_length=384, engine="transformers").following(10)
    base, teacher = resolve("demo", "student"), resolve("demo", "teacher")
    work = evaluation_workspace(base, teacher, seeds, settings)
    spec = {
        "teacher": teacher.model_dump(),
        "heldout": seeds.model_dump(),
        "evaluation": settings.model_dump(),
        "variants": [{"name": "base", "model": base.model_dump(), "workspace": work.description()}],
    }
    evaluation.main(spec, child.Reporter(tmp_path))
    told = work.get_json("metrics.json")
    assert (told["n"], told["unscored_rows"], told["skipped"]) == (11, [bad], {evaluation.NO_NUMBER: 1})
    assert np.isfinite([told["kl_to_teacher"], told["cross_entropy"]]).all()


def _short(tmp_path: Path, **config: Any) -> ModelSource:
    """The demo's student with another context."""
    folder = tmp_path / "short"
    shutil.copytree(str(resolve("demo", "student").path), folder)
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **config}))
    return ModelSource(name="short", path=str(folder))


@pytest.mark.parametrize(
    "config",
    [
        {"max_position_embeddings": 60},
        {
            "max_position_embeddings": 32_768,
            "rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 60},
        },
    ],
    ids=["a short context", "a rope that changes beyond the original one"],
)
def test_rows_beyond_a_context_are_left_out_everywhere(
    config: dict[str, Any], rows: ArtifactRef, tmp_path: Path
) -> None:
    model = _short(tmp_path, **config)
    assert model.context() == 60
    prepared = prepare_rows(read_rows(rows, KEPT), model, "", min(2048, model.context() - 1))
    assert set(prepared.reasons.values()) == {"longer than 59 tokens"}
    assert prepared.tokens
    assert max(len(row.ids) for row in prepared.tokens.values()) <= 59
    stream = Examples(rows, model, min(2048, model.context()), None)
    assert max(len(example.ids) for example in stream) <= 60
    assert stream.facts()["skipped"]["longer than 60 tokens"] > 0
    ends = Ends.of(model, prepared.tokenizer)
    assert (ends.room(40, 256), ends.room(40, 16), ends.room(59, 256)) == (20, 16, 1)
