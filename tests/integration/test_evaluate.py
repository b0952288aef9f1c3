"""Evaluation across tokenizers, against a student that is the teacher with its token ids shuffled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.store.artifacts import ArtifactReader, ArtifactRef, facts_of
from tasks.evaluate import stage
from tasks.evaluate.settings import Evaluation
from tasks.models import ModelSource, resolve
from tasks.seeds.stage import Sources
from tests.support.other_tokenizer import shuffled_ids
from tests.support.stages import evaluation_workspace, load

SETTINGS = Evaluation(
    max_rows=24, max_new_tokens=32, max_length=384, batch_rows=12, engine="transformers", samples=2
).following(10)


@pytest.fixture
def seeds(bucket: str) -> ArtifactRef:
    return load(Sources.of("demo", None, None), heldout_share=0.1, response_required=False)


@pytest.fixture
def shuffled(tmp_path: Path) -> ModelSource:
    return shuffled_ids(resolve("demo", "teacher"), tmp_path / "shuffled")


def _evaluated(models: dict[str, ModelSource], seeds: ArtifactRef) -> dict[str, ArtifactRef]:
    teacher = resolve("demo", "teacher")
    works = {name: evaluation_workspace(model, teacher, seeds, SETTINGS) for name, model in models.items()}
    return stage.evaluate(works, models, teacher, seeds, SETTINGS, lambda event: None)


def test_a_student_that_says_the_same_in_other_ids_is_no_distance_from_its_teacher(
    seeds: ArtifactRef, shuffled: ModelSource
) -> None:
    models = {"teacher": resolve("demo", "teacher"), "kd": shuffled, "base": resolve("demo", "student")}
    refs = _evaluated(models, seeds)
    numbers = {name: facts_of(ref) for name, ref in refs.items()}
    assert numbers["kd"]["kl_to_teacher"] == pytest.approx(0, abs=1e-4)
    assert numbers["kd"]["cross_entropy"] == pytest.approx(numbers["teacher"]["cross_entropy"], abs=1e-4)
    assert numbers["kd"]["exec_accuracy"] == numbers["teacher"]["exec_accuracy"] > 0.5
    assert numbers["base"]["kl_to_teacher"] > 1  # and a student far from it is measured as far
    tables = {name: _predictions(ref) for name, ref in refs.items()}
    assert tables["kd"]["generated"].to_pylist() == tables["teacher"]["generated"].to_pylist()
    assert tables["kd"]["kl_tokens"].to_pylist() == tables["kd"]["response_tokens"].to_pylist()
    _check_the_other_metrics(numbers, tables)


def _check_the_other_metrics(numbers: dict[str, dict[str, Any]], tables: dict[str, pa.Table]) -> None:
    """Of a student equal to its teacher, the teacher, and a base far from it."""
    assert (numbers["teacher"]["top1_agreement"], numbers["teacher"]["topk_kl"]) == (1.0, 0.0)
    assert 0 < numbers["base"]["topk_kl"] < numbers["base"]["kl_to_teacher"]
    assert numbers["kd"]["top1_agreement"] == pytest.approx(1.0, abs=0.01)
    assert numbers["base"]["top1_agreement"] < 0.5
    for name, found in numbers.items():
        assert 0 <= found["topk_kl"] <= found["kl_to_teacher"] + 1e-6
        assert found["perplexity"] == pytest.approx(np.exp(found["cross_entropy"]))
        assert sum(b["tokens"] for b in found["calibration"]) == sum(tables[name]["response_tokens"].to_pylist())
        lengths = tables[name]["generated_tokens"].to_pylist()
        assert found["output_tokens"] == pytest.approx(np.mean(lengths))
        assert max(lengths) <= SETTINGS.max_new_tokens
        assert all(len(marks) == 2 and None not in marks for marks in tables[name]["samples_correct"].to_pylist())
    assert 0 <= numbers["teacher"]["ece"] < 0.15
    assert numbers["teacher"]["any_sample_correct"] >= numbers["teacher"]["sampled_accuracy"] > 0.3
    right = tables["teacher"].filter(tables["teacher"]["correct"])
    assert set(right["wrong_result"].to_pylist()) == {None}


def _predictions(ref: ArtifactRef) -> pa.Table:
    return pq.read_table(pa.BufferReader(ArtifactReader(ref).read("predictions.parquet")))
